import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { stringify } from 'yaml';
import { freeBytesOf } from '../oci-client/durable-file.js';
import { type Repair, repairRegistry } from '../oci-client/registry-repair.js';

const run = promisify(execFile);

export interface RegistryEngineOptions {
  /** Folder for configuration, log and process records; not for images. */
  stateDir: string;
  storageDir: string;
  /** Read-write, loopback. */
  port: number;
  /** Read-only over the same storage, loopback: what tunnels lead to. */
  readOnlyPort: number;
  /** The distribution program, a path or a name on PATH. */
  binary: string;
}

type Instance = 'readWrite' | 'readOnly';
const instances: readonly Instance[] = ['readWrite', 'readOnly'];
const fileNames: Record<Instance, string> = { readWrite: 'read-write', readOnly: 'read-only' };

const startTimeoutMs = 15_000;
const stopTimeoutMs = 10_000;
const portTimeoutMs = 5_000;

/**
 * A real `distribution` registry as two child processes over one storage folder. They are sessions of their own: they outlive Airdock, and the next
 * start adopts them when they still run with the configuration that is wanted. Configuration: https://distribution.github.io/distribution/about/configuration/
 */
export class ProcessRegistryEngine {
  /** What was spawned here. */
  private readonly children = new Map<Instance, ChildProcess>();

  constructor(private readonly options: RegistryEngineOptions) {}

  /**
   * Brings both instances up, or adopts them. Idempotent. Returns which of them had to be started, and what `repairRegistry` did before that.
   * Throws `registry_engine_missing`, `registry_port_taken`, `registry_start_failed`.
   */
  async start(signal?: AbortSignal): Promise<{ started: Instance[]; repair: Repair }> {
    await this.version();
    await mkdir(this.options.stateDir, { recursive: true, mode: 0o700 });
    await mkdir(this.options.storageDir, { recursive: true, mode: 0o700 });
    const started: Instance[] = [];
    const repair: Repair = { changed: [], failed: [] };
    // Hosts pull while the storage is looked through, which takes seconds when there is much of it.
    for (const instance of instances.toReversed()) {
      const config = await this.configFor(instance);
      // Another program has to be started anew, whatever its configuration.
      const configFile = this.configFile(instance, createHash('sha256').update(config).update(this.options.binary).digest('hex').slice(0, 16));
      const running = await this.findProcesses(instance);
      if (running.length === 1 && running[0]?.configFile === configFile && (await this.isAnswering(instance))) continue;
      for (const { pid } of running) await endProcess(pid);
      // However it ended, and whoever ended it.
      if (instance === 'readWrite') {
        // Nobody else's registry may be at work there.
        await assertPortFree(this.portOf(instance));
        Object.assign(repair, await repairRegistry(this.options.storageDir, signal));
      }
      await this.spawn(instance, configFile, config);
      started.push(instance);
    }
    for (const instance of instances) await this.waitUntilAnswering(instance, signal);
    return { started, repair };
  }

  /** Stops both instances, and waits until they are gone. Idempotent. */
  async stop(): Promise<void> {
    for (const instance of instances) for (const { pid } of await this.findProcesses(instance)) await endProcess(pid);
  }

  /** True when both instances run and answer. */
  async isHealthy(): Promise<boolean> {
    for (const instance of instances) if ((await this.findProcesses(instance)).length !== 1 || !(await this.isAnswering(instance))) return false;
    return true;
  }

  /** The process ids of both instances, of those that run. */
  async pids(): Promise<number[]> {
    return (await Promise.all(instances.map((instance) => this.findProcesses(instance)))).flat().map(({ pid }) => pid);
  }

  /** The program's version, e.g. `2.8.2`. Throws `registry_engine_missing`. */
  async version(): Promise<string> {
    try {
      const { stdout } = await run(this.options.binary, ['--version'], { timeout: 10_000 });
      return /(\d+\.\d+\.\d+[^\s]*)/.exec(stdout)?.[1] ?? stdout.trim();
    } catch (cause) {
      throw new AppError('registry_engine_missing', { detail: `${this.options.binary} could not be run` }, { cause });
    }
  }

  /** The name carries the digest of the content: what a process runs with is seen in its arguments. */
  private configFile(instance: Instance, digest: string): string {
    return join(this.options.stateDir, `${fileNames[instance]}.${digest}.yml`);
  }

  /**
   * Processes of this engine, found by their arguments in /proc: no record can be lost, or be wrong about a process id that was used again, whatever
   * moment Airdock was killed at.
   */
  private async findProcesses(instance: Instance): Promise<{ pid: number; configFile: string }[]> {
    const prefix = join(this.options.stateDir, `${fileNames[instance]}.`);
    const found: { pid: number; configFile: string }[] = [];
    for (const entry of await readdir('/proc')) {
      if (!/^\d+$/.test(entry)) continue;
      const words = (await readFile(`/proc/${entry}/cmdline`, 'utf8').catch(() => '')).split('\0');
      // Not at a fixed place: a program that is a script has its interpreter before it.
      const configFile = words[words.indexOf('serve', 1) + 1];
      if (words.includes('serve', 1) && configFile?.startsWith(prefix)) found.push({ pid: Number(entry), configFile });
    }
    return found;
  }

  private portOf(instance: Instance): number {
    return instance === 'readWrite' ? this.options.port : this.options.readOnlyPort;
  }

  private async configFor(instance: Instance): Promise<string> {
    return stringify({
      version: '0.1',
      log: { level: 'warn', accesslog: { disabled: true } },
      storage: {
        filesystem: { rootdirectory: this.options.storageDir, maxthreads: 100 },
        delete: { enabled: true },
        // No blob descriptor cache: it would go on answering for blobs that were collected or restored behind its back.
        maintenance: {
          // An upload that broke in the middle cannot be cancelled (distribution 2.8 answers BLOB_UPLOAD_INVALID): the registry sweeps it.
          uploadpurging: instance === 'readOnly' ? { enabled: false } : { enabled: true, age: '24h', interval: '1h', dryrun: false },
          readonly: { enabled: instance === 'readOnly' },
        },
      },
      http: { addr: `127.0.0.1:${this.portOf(instance)}`, secret: await this.secret() },
      health: { storagedriver: { enabled: false } },
    });
  }

  /** Signs the state of uploads: it must stay the same, or a restart of the registry would end them. */
  private async secret(): Promise<string> {
    const path = join(this.options.stateDir, 'http.secret');
    if (!existsSync(path)) {
      await writeFile(`${path}.new`, randomBytes(32).toString('hex'), { mode: 0o600 });
      await rename(`${path}.new`, path);
    }
    return readFile(path, 'utf8');
  }

  private async spawn(instance: Instance, configFile: string, config: string): Promise<void> {
    await assertPortFree(this.portOf(instance));
    await writeFile(configFile, config, { mode: 0o600 });
    await using log = await open(join(this.options.stateDir, 'engine.log'), 'a', 0o600);
    const child = spawn(this.options.binary, ['serve', configFile], {
      detached: true,
      stdio: ['ignore', log.fd, log.fd],
      env: { PATH: process.env.PATH ?? '', HOME: this.options.stateDir, OTEL_TRACES_EXPORTER: 'none' },
    });
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (cause) => reject(new AppError('registry_start_failed', {}, { cause })));
    });
    this.children.set(instance, child);
    child.unref();
    for (const name of await readdir(this.options.stateDir)) {
      const path = join(this.options.stateDir, name);
      if (name.startsWith(`${fileNames[instance]}.`) && path !== configFile) await rm(path);
    }
  }

  private async isAnswering(instance: Instance): Promise<boolean> {
    return (await probeRegistry(`http://127.0.0.1:${this.portOf(instance)}`)).ok;
  }

  private async waitUntilAnswering(instance: Instance, signal?: AbortSignal): Promise<void> {
    const deadline = Date.now() + startTimeoutMs;
    while (!(await this.isAnswering(instance))) {
      signal?.throwIfAborted();
      // Not by its arguments: while a script becomes the program that it is for, a process has none.
      const child = this.children.get(instance);
      if (child && (child.exitCode ?? child.signalCode) !== null)
        throw new AppError('registry_start_failed', { detail: `the ${fileNames[instance]} process ended at once` });
      if (Date.now() > deadline) throw new AppError('registry_start_failed', { detail: `no answer on port ${this.portOf(instance)}` });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

/** One `GET /v2/`: does a registry answer at this URL, and how fast. Never throws. */
export async function probeRegistry(url: string, timeoutMs = 2_000): Promise<{ ok: boolean; latencyMs: number; error?: string }> {
  const started = performance.now();
  try {
    const response = await fetch(`${url}/v2/`, { signal: AbortSignal.timeout(timeoutMs) });
    await response.arrayBuffer();
    const ok = response.status === 200 || response.status === 401;
    return { ok, latencyMs: Math.round(performance.now() - started), ...(ok ? {} : { error: `status ${response.status}` }) };
  } catch (error) {
    const { cause, message } = error as Error & { cause?: { code?: string } };
    return { ok: false, latencyMs: Math.round(performance.now() - started), error: cause?.code ?? message };
  }
}

/** Bytes used below the storage folder and free on its disk. Counts blobs, not the links between them. */
export async function storageUsage(storageDir: string): Promise<{ usedBytes: number; freeBytes: number }> {
  await mkdir(storageDir, { recursive: true });
  const { stdout } = await run('du', ['-sk', storageDir], { timeout: 120_000 });
  return { usedBytes: Number.parseInt(stdout, 10) * 1024, freeBytes: await freeBytesOf(storageDir) };
}

/** Ends a process in good order, after a while by force, and waits until it is gone. */
async function endProcess(pid: number): Promise<void> {
  const deadline = Date.now() + stopTimeoutMs;
  const signal = (name: 'SIGTERM' | 'SIGKILL') => {
    try {
      process.kill(pid, name);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  };
  // A zombie without threads holds nothing any more; whoever started it will reap it. The state is the first field behind the name in brackets, see proc_pid_stat(5).
  const isRunning = async () => {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return stat !== '' && (fields[0] !== 'Z' || Number(fields[17]) > 1);
  };
  signal('SIGTERM');
  while (await isRunning()) {
    if (Date.now() > deadline) signal('SIGKILL');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A process that was killed keeps its port until its last thread has ended, which may have to wait for the disk. Throws `registry_port_taken`. */
async function assertPortFree(port: number): Promise<void> {
  const deadline = Date.now() + portTimeoutMs;
  for (;;) {
    const server = createServer();
    try {
      return await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));
    } catch (cause) {
      if (Date.now() > deadline) throw new AppError('registry_port_taken', { detail: `port ${port} on 127.0.0.1`, port }, { cause });
      await new Promise((resolve) => setTimeout(resolve, 100));
    } finally {
      await new Promise((resolve) => server.close(resolve));
    }
  }
}
