import { execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, readFile, rename, rm, statfs, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { stringify } from 'yaml';
import { z } from 'zod';

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

const recordSchema = z.object({ pid: z.number().int(), startedAtTicks: z.string(), configDigest: z.string() });
type ProcessRecord = z.infer<typeof recordSchema>;

const startTimeoutMs = 15_000;
const stopTimeoutMs = 10_000;

/**
 * A real `distribution` registry as two child processes over one storage folder. They are sessions of their own: they outlive Airdock, and the next
 * start adopts them when they still run with the configuration that is wanted. Configuration: https://distribution.github.io/distribution/about/configuration/
 */
export class ProcessRegistryEngine {
  constructor(private readonly options: RegistryEngineOptions) {}

  /**
   * Brings both instances up, or adopts them. Idempotent. Returns which of them had to be started.
   * Throws `registry_engine_missing`, `registry_port_taken`, `registry_start_failed`.
   */
  async start(signal?: AbortSignal): Promise<Instance[]> {
    await this.version();
    await mkdir(this.options.stateDir, { recursive: true, mode: 0o700 });
    await mkdir(this.options.storageDir, { recursive: true, mode: 0o700 });
    const started: Instance[] = [];
    for (const instance of instances) {
      const config = await this.configFor(instance);
      const configDigest = createHash('sha256').update(config).digest('hex');
      const record = await this.livingRecord(instance);
      if (record?.configDigest === configDigest && (await this.isAnswering(instance))) continue;
      if (record) await this.end(record.pid, record.startedAtTicks);
      await this.spawn(instance, config, configDigest);
      started.push(instance);
    }
    for (const instance of instances) await this.waitUntilAnswering(instance, signal);
    return started;
  }

  /** Stops both instances, and waits until they are gone. Idempotent. */
  async stop(): Promise<void> {
    for (const instance of instances) {
      const record = await this.livingRecord(instance);
      if (record) await this.end(record.pid, record.startedAtTicks);
      await rm(this.file(instance, 'pid.json'), { force: true });
    }
  }

  /** True when both processes that this engine started are alive and answer. */
  async isHealthy(): Promise<boolean> {
    for (const instance of instances) if (!(await this.livingRecord(instance)) || !(await this.isAnswering(instance))) return false;
    return true;
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

  private file(instance: Instance, suffix: string): string {
    return join(this.options.stateDir, `${instance === 'readWrite' ? 'read-write' : 'read-only'}.${suffix}`);
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

  private async spawn(instance: Instance, config: string, configDigest: string): Promise<void> {
    await assertPortFree(this.portOf(instance));
    const configFile = this.file(instance, 'yml');
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
    child.unref();
    const pid = child.pid as number;
    const record: ProcessRecord = { pid, startedAtTicks: (await startTicks(pid)) ?? '', configDigest };
    await writeFile(this.file(instance, 'pid.json'), JSON.stringify(record));
  }

  /** The record of an instance whose process is alive: same pid and same start time, so that a reused pid is never taken for it. */
  private async livingRecord(instance: Instance): Promise<ProcessRecord | undefined> {
    let text: string;
    try {
      text = await readFile(this.file(instance, 'pid.json'), 'utf8');
    } catch {
      return undefined;
    }
    const record = recordSchema.safeParse(JSON.parse(text || 'null')).data;
    return record && (await startTicks(record.pid)) === record.startedAtTicks ? record : undefined;
  }

  private async end(pid: number, ticks: string): Promise<void> {
    const deadline = Date.now() + stopTimeoutMs;
    process.kill(pid, 'SIGTERM');
    while ((await startTicks(pid)) === ticks) {
      if (Date.now() > deadline) process.kill(pid, 'SIGKILL');
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  private async isAnswering(instance: Instance): Promise<boolean> {
    return (await probeRegistry(`http://127.0.0.1:${this.portOf(instance)}`)).ok;
  }

  private async waitUntilAnswering(instance: Instance, signal?: AbortSignal): Promise<void> {
    const deadline = Date.now() + startTimeoutMs;
    while (!(await this.isAnswering(instance))) {
      signal?.throwIfAborted();
      if (!(await this.livingRecord(instance))) throw new AppError('registry_start_failed', { detail: `the ${instance} process ended at once` });
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
  const { bavail, bsize } = await statfs(storageDir);
  return { usedBytes: Number.parseInt(stdout, 10) * 1024, freeBytes: bavail * bsize };
}

/** A process's start time in clock ticks since boot, field 22 of /proc/PID/stat; undefined when it is gone or a zombie. */
async function startTicks(pid: number): Promise<string | undefined> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

async function assertPortFree(port: number): Promise<void> {
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));
  } catch (cause) {
    throw new AppError('registry_port_taken', { detail: `port ${port} on 127.0.0.1`, port }, { cause });
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
}
