import type { ChildProcess } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { chmod, lstat, mkdir, open, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AppError } from '@airdock/core/errors';
import { freeBytesOf } from '@airdock/disk/files/durable-file';
import { readOrMakeOnce } from '@airdock/disk/files/made-once';
import { inSandbox, programFile } from '@airdock/disk/programs/sandbox';
import { outputOf, startDetached } from '@airdock/disk/programs/start-program';
import { RegistryHttp } from '@airdock/oci/registry-client/registry-http';
import { directFetch } from '@airdock/outbound/direct-fetch';
import { stringify } from 'yaml';
import { type Repair, repairRegistry } from '../folder/registry-repair.js';
import { challengeHeader, type FrontConfiguration, proofHeader, proofOf } from './front.js';
import {
  endProcess,
  type ForeignListener,
  foreignListeners,
  type OwnProcess,
  ProcessIdentity,
  processesThatShow,
  type ShownProcess,
} from './own-process.js';

/** Where the registry keeps its things, where it listens, and what it may do. */
export interface RegistryEngineOptions {
  /** Folder for configuration, log and process records; not for images. */
  stateDir: string;
  storageDir: string;
  /** Folder for the registry's sockets: this user's own, closed to others. */
  socketDir: string;
  /** The distribution program, a path or a name on PATH. */
  binary: string;
  /**
   * The port on localhost to pull from, and who may push there. Without it the registry is reached by its sockets
   * alone.
   */
  front?: { port: number; push: FrontConfiguration['push'] } | undefined;
}

/** Addresses of the two instances, as `RegistryClient` takes them. */
export interface RegistrySockets {
  readWrite: string;
  readOnly: string;
}

/** Where an engine with this folder for its sockets listens. */
export const registrySockets = (socketDir: string): RegistrySockets => ({
  readWrite: `unix:${join(socketDir, 'read-write.sock')}`,
  readOnly: `unix:${join(socketDir, 'read-only.sock')}`,
});

const fenceIsUp = 'up';

type Instance = 'readOnly' | 'front' | 'readWrite';
const fileNames: Record<Instance, string> = { readWrite: 'read-write', readOnly: 'read-only', front: 'front' };

const startTimeoutMs = 15_000;
/** A process that was killed keeps its port until its last thread has ended, which may have to wait for the disk. */
const portTimeoutMs = 5_000;
/** sun_path of unix(7), without its closing zero. */
const maxSocketPath = 107;

/**
 * A real `distribution` registry as two child processes over one storage folder, each on a Unix socket, and its front
 * on localhost. They are sessions of their own: they outlive Airdock, and the next start adopts them when they still
 * run with the configuration that is wanted. Configuration:
 * https://distribution.github.io/distribution/about/configuration/
 */
export class ProcessRegistryEngine {
  /** What was spawned here. */
  private readonly children = new Map<Instance, ChildProcess>();
  private readonly sockets: RegistrySockets;

  constructor(private readonly options: RegistryEngineOptions) {
    this.sockets = registrySockets(options.socketDir);
  }

  /**
   * Brings all instances up, or adopts them. Idempotent. Returns which of them had to be started, and what
   * `repairRegistry` did before that. When only the front cannot be had, the registry works without it, and
   * `frontError` says why: another program on its port must not keep hosts from their images. With `isReadOnly` nothing
   * writes to the storage, which must be there: the read-write instance is ended. Throws `registry_engine_missing`,
   * `registry_socket_taken`, `registry_start_failed`.
   */
  async start(
    signal?: AbortSignal,
    { isReadOnly = false } = {},
  ): Promise<{ started: Instance[]; repair: Repair; frontError: AppError | undefined }> {
    await this.version();
    for (const folder of [this.options.stateDir, ...(isReadOnly ? [] : [this.options.storageDir])])
      await mkdir(folder, { recursive: true, mode: 0o700 });
    if (!isReadOnly) await this.closeStorage();
    await this.prepareSocketDir();
    const started = new Map<Instance, string>();
    const repair: Repair = { changed: [], failed: [] };
    let frontError: AppError | undefined;
    // What an Airdock of before has started may have the front's port.
    for (const instance of ['readOnly', 'readWrite'] as const)
      for (const found of await this.unmarkedProcesses(instance)) await endProcess(found);
    // Hosts pull while the storage is looked through, which takes seconds when there is much of it.
    if (isReadOnly) for (const found of await this.findProcesses('readWrite')) await endProcess(found);
    for (const instance of this.instances(isReadOnly)) {
      const { version, content } = await this.configurationOf(instance);
      if (await this.isWell(instance, { version })) continue;
      for (const found of await this.findProcesses(instance)) await endProcess(found);
      await this.clearSocketPath(instance);
      if (instance === 'readWrite') {
        // Nobody else's registry may be at work there.
        if (await this.isAnswering(instance))
          throw new AppError('registry_socket_taken', { detail: this.sockets.readWrite });
        // However it ended, and whoever ended it.
        Object.assign(repair, await repairRegistry(this.options.storageDir, signal));
      }
      if (instance === 'front') frontError = await this.portError();
      if (instance === 'front' && frontError) continue;
      await this.spawn(instance, version, content);
      started.set(instance, version);
    }
    const front = started.get('front');
    for (const [instance, version] of started)
      if (instance !== 'front') await this.waitUntilAnswering(instance, version, signal);
    try {
      if (front !== undefined) await this.waitUntilAnswering('front', front, signal);
    } catch (error) {
      signal?.throwIfAborted();
      // Somebody was faster than it.
      frontError =
        (await this.portError()) ??
        (error instanceof AppError ? error : new AppError('registry_start_failed', {}, { cause: error }));
      started.delete('front');
    }
    return { started: [...started.keys()], repair, frontError };
  }

  /**
   * Stops all instances at once, and waits until they are gone. Idempotent. Throws `process_not_ended` for the first
   * that stays.
   */
  async stop(options: { graceMs?: number } = {}): Promise<void> {
    const found = (
      await Promise.all((Object.keys(fileNames) as Instance[]).map((instance) => this.findProcesses(instance)))
    ).flat();
    const ended = await Promise.allSettled(found.map((one) => endProcess(one, options)));
    for (const result of ended) if (result.status === 'rejected') throw result.reason;
  }

  /**
   * True when all instances run and answer. Without `isAsked` it is only seen whether they run, which costs next to
   * nothing.
   */
  async isHealthy({ isAsked = true, isReadOnly = false } = {}): Promise<boolean> {
    if (isReadOnly && (await (await this.identityOf('readWrite')).recorded())) return false;
    for (const instance of this.instances(isReadOnly)) if (!(await this.isWell(instance, { isAsked }))) return false;
    return true;
  }

  /** The process ids of the registry's two instances, of those that run: read-write first. */
  async pids(): Promise<number[]> {
    return (await Promise.all((['readWrite', 'readOnly'] as const).map((instance) => this.findProcesses(instance))))
      .flat()
      .map(({ pid }) => pid);
  }

  /** Who else listens on the front's port of localhost. */
  async squatters(): Promise<ForeignListener[]> {
    const { front } = this.options;
    return front ? foreignListeners(front.port, (await (await this.identityOf('front')).recorded())?.pid) : [];
  }

  /** Processes that show the arguments of our registry and are not ours. */
  async decoys(): Promise<ShownProcess[]> {
    const shown = await processesThatShow((words) =>
      words.some((word) => word.startsWith(join(this.options.stateDir, 'read-'))),
    );
    const identities = await Promise.all(
      (['readWrite', 'readOnly'] as const).map((instance) => this.identityOf(instance)),
    );
    const isOwn = async ({ pid }: ShownProcess) =>
      (await Promise.all(identities.map((identity) => identity.versionOf(pid)))).some(
        (version) => version !== undefined,
      );
    const own = await Promise.all(shown.map(isOwn));
    return shown.filter((_, index) => !own[index]);
  }

  /**
   * Keeps writes away from the front, or lets them in again. Idempotent; holds until it is changed, whoever restarts.
   * What is being written when the fence goes up is ended with the processes that do it: `start` has to follow.
   */
  async setFence(isUp: boolean): Promise<void> {
    if (!isUp) return rm(this.fenceFile, { force: true });
    if (this.isFenced) return;
    await mkdir(this.frontDir, { recursive: true, mode: 0o700 });
    await writeFile(this.fenceFile, 'going up', { mode: 0o600 });
    for (const instance of ['front', 'readWrite'] as const)
      for (const found of await this.findProcesses(instance)) await endProcess(found);
    // Only now: whoever is killed in between ends them the next time.
    await writeFile(this.fenceFile, fenceIsUp);
  }

  get isFenced(): boolean {
    return existsSync(this.fenceFile) && readFileSync(this.fenceFile, 'utf8') === fenceIsUp;
  }

  /** The program's version, e.g. `2.8.2`. Throws `registry_engine_missing`. */
  async version(): Promise<string> {
    try {
      const command = inSandbox([this.options.binary, '--version'], { readable: this.programFiles() });
      const words = await outputOf(command, { timeoutMs: 10_000 });
      return /(\d+\.\d+\.\d+[^\s]*)/.exec(words)?.[1] ?? words.trim();
    } catch (cause) {
      throw new AppError('registry_engine_missing', { detail: `${this.options.binary} could not be run` }, { cause });
    }
  }

  private programFiles(): string[] {
    const file = programFile(this.options.binary);
    return file ? [...new Set([this.options.binary.includes('/') ? this.options.binary : file, file])] : [];
  }

  /** The front sees this folder; the registry, which somebody may have taken over, does not. */
  private get frontDir(): string {
    return join(this.options.stateDir, 'front');
  }

  private get fenceFile(): string {
    return join(this.frontDir, 'fence');
  }

  private instances(isReadOnly: boolean): Instance[] {
    return [
      'readOnly',
      ...(this.options.front ? ['front' as const] : []),
      ...(isReadOnly ? [] : ['readWrite' as const]),
    ];
  }

  private async identityOf(instance: Instance): Promise<ProcessIdentity> {
    return new ProcessIdentity(join(this.options.stateDir, `${fileNames[instance]}.process`), await this.secret(), [
      process.geteuid?.() ?? 0,
    ]);
  }

  /** All processes of an instance, whatever moment Airdock was killed at. Looks at every process of the machine. */
  private async findProcesses(instance: Instance): Promise<Pick<OwnProcess, 'pid' | 'startTime'>[]> {
    const identity = await this.identityOf(instance);
    return [...(await identity.find()), ...(await this.unmarkedProcesses(instance))];
  }

  /**
   * The processes of an Airdock that gave them no mark yet. They are looked for until this one has started its own:
   * this user's processes with a configuration file that lies in a folder which nobody else can write to.
   */
  private async unmarkedProcesses(instance: Instance): Promise<Pick<OwnProcess, 'pid' | 'startTime'>[]> {
    if (instance === 'front' || existsSync(join(this.options.stateDir, `${fileNames[instance]}.process`))) return [];
    const prefix = join(this.options.stateDir, `${fileNames[instance]}.`);
    const shown = await processesThatShow((words) =>
      words.some((word, at) => words[at - 1] === 'serve' && word.startsWith(prefix) && existsSync(word)),
    );
    return shown.filter(({ uid }) => uid === process.geteuid?.()).map(({ pid, startTime }) => ({ pid, startTime }));
  }

  /**
   * A folder that somebody else made, or can write to, would let him answer for the registry. Throws
   * `registry_socket_taken`, `configuration_invalid`.
   */
  private async prepareSocketDir(): Promise<void> {
    const { socketDir } = this.options;
    const longest = this.sockets.readWrite.slice('unix:'.length);
    if (Buffer.byteLength(longest) > maxSocketPath)
      throw new AppError('configuration_invalid', {
        detail: `airdock.dataDir is too long: a socket's path may have ${maxSocketPath} bytes, and ${longest} has more`,
      });
    await mkdir(socketDir, { recursive: true, mode: 0o700 });
    const info = await lstat(socketDir);
    if (!info.isDirectory() || info.uid !== process.geteuid?.() || (info.mode & 0o077) !== 0)
      throw new AppError('registry_socket_taken', {
        detail: `${socketDir} must be a folder of this user with mode 0700`,
      });
  }

  /**
   * Nobody else goes into the storage: a registry that was taken over could leave a program there with its own user's
   * rights for whoever starts it.
   */
  private async closeStorage(): Promise<void> {
    const { uid, mode } = await stat(this.options.storageDir);
    if (uid === process.geteuid?.() && (mode & 0o007) !== 0) await chmod(this.options.storageDir, mode & 0o770);
  }

  /** A registry that was taken over could put something there that keeps the next one from listening. */
  private async clearSocketPath(instance: Instance): Promise<void> {
    if (instance === 'front') return;
    const path = this.sockets[instance].slice('unix:'.length);
    const info = await lstat(path).catch(() => undefined);
    if (info && !info.isSocket()) await rm(path, { recursive: true });
  }

  /**
   * What an instance is started with; `version` changes with all that matters for it: its configuration, the program's
   * file, and its sandbox.
   */
  private async configurationOf(instance: Instance): Promise<{ version: string; content: string }> {
    const content = instance === 'front' ? await this.frontConfiguration() : await this.registryConfiguration(instance);
    const files = instance === 'front' ? [process.execPath, ...frontFiles] : this.programFiles();
    const stamps = await Promise.all(
      files.map((path) => stat(path).then(({ ino, size, mtimeMs }) => `${path} ${ino} ${size} ${mtimeMs}`)),
    );
    const all = JSON.stringify([content, stamps, this.commandOf(instance, '')]);
    return { content, version: createHash('sha256').update(all).digest('hex').slice(0, 16) };
  }

  private commandOf(instance: Instance, configFile: string): [string, ...string[]] {
    const { binary, socketDir, storageDir } = this.options;
    if (instance === 'front') {
      const readable = [process.execPath, ...frontFiles, socketDir, this.frontDir, configFile];
      return inSandbox([process.execPath, ...frontFlags, frontFile, configFile], {
        readable,
        hasNetwork: true,
        endsWithParent: false,
      });
    }
    const [readable, writable] = [
      [...this.programFiles(), configFile],
      [storageDir, socketDir],
    ];
    return inSandbox([binary, 'serve', configFile], { readable, writable, endsWithParent: false });
  }

  private async registryConfiguration(instance: Exclude<Instance, 'front'>): Promise<string> {
    return stringify({
      version: '0.1',
      log: { level: 'warn', accesslog: { disabled: true } },
      storage: {
        filesystem: { rootdirectory: this.options.storageDir, maxthreads: 100 },
        delete: { enabled: true },
        // No blob descriptor cache: it would go on answering for blobs that were collected or restored behind its back.
        maintenance: {
          // An upload that broke in the middle cannot be cancelled (distribution 2.8 answers BLOB_UPLOAD_INVALID): the
          // registry sweeps it.
          uploadpurging:
            instance === 'readOnly' ? { enabled: false } : { enabled: true, age: '24h', interval: '1h', dryrun: false },
          readonly: { enabled: instance === 'readOnly' },
        },
      },
      http: {
        net: 'unix',
        addr: this.sockets[instance].slice('unix:'.length),
        relativeurls: true,
        secret: await this.secret(),
      },
      health: { storagedriver: { enabled: false } },
    });
  }

  private async frontConfiguration(): Promise<string> {
    const configuration: FrontConfiguration = {
      port: this.options.front?.port ?? 0,
      readOnlySocket: this.sockets.readOnly.slice('unix:'.length),
      readWriteSocket: this.sockets.readWrite.slice('unix:'.length),
      fenceFile: this.fenceFile,
      proofSecret: createHash('sha256')
        .update(`front\0${await this.secret()}`)
        .digest('hex'),
      push: this.options.front?.push ?? null,
    };
    return JSON.stringify(configuration, undefined, 2);
  }

  /** Signs the state of uploads: it must stay the same, or a restart of the registry would end them. */
  private secret(): Promise<string> {
    return readOrMakeOnce(join(this.options.stateDir, 'http.secret'), () => randomBytes(32).toString('hex'));
  }

  private async spawn(instance: Instance, version: string, content: string): Promise<void> {
    const { stateDir } = this.options;
    const configFile = join(stateDir, `${fileNames[instance]}.${version}.${instance === 'front' ? 'json' : 'yml'}`);
    await writeFile(configFile, content, { mode: 0o600 });
    await using log = await open(join(stateDir, 'engine.log'), 'a', 0o600);
    const identity = await this.identityOf(instance);
    await mkdir(this.frontDir, { recursive: true, mode: 0o700 });
    const env = {
      PATH: process.env.PATH ?? '',
      HOME: stateDir,
      OTEL_TRACES_EXPORTER: 'none',
      ...identity.environment(version),
    };
    const child = await startDetached(this.commandOf(instance, configFile), { env, logFd: log.fd }).catch(
      (cause: unknown) => Promise.reject(new AppError('registry_start_failed', {}, { cause })),
    );
    this.children.set(instance, child);
    for (const name of await readdir(stateDir)) {
      const path = join(stateDir, name);
      if (name.startsWith(`${fileNames[instance]}.`) && /\.(?:yml|json)$/.test(name) && path !== configFile)
        await rm(path);
    }
  }

  /** The process that was written down runs, sees the storage folder that is there now, and answers. */
  private async isWell(
    instance: Instance,
    { version, isAsked = true }: { version?: string; isAsked?: boolean } = {},
  ): Promise<boolean> {
    const recorded = await (await this.identityOf(instance)).recorded();
    if (!recorded || (version !== undefined && recorded.version !== version)) return false;
    return (
      (instance === 'front' || (await this.seesStorage(recorded.pid))) &&
      (!isAsked || (await this.isAnswering(instance)))
    );
  }

  /** A sandbox goes on showing a folder that was removed, or the disk that was mounted there. */
  private async seesStorage(pid: number): Promise<boolean> {
    const { storageDir } = this.options;
    const [here, there] = await Promise.all(
      [storageDir, `/proc/${pid}/root${storageDir}`].map((path) => stat(path).catch(() => undefined)),
    );
    return here?.ino === there?.ino && here?.dev === there?.dev;
  }

  private async isAnswering(instance: Instance): Promise<boolean> {
    if (instance !== 'front') return (await probeRegistry(this.sockets[instance])).ok;
    const { port, proofSecret } = JSON.parse(await this.frontConfiguration()) as FrontConfiguration;
    const challenge = randomBytes(16).toString('hex');
    const answer = await directFetch(`http://127.0.0.1:${port}/v2/`, {
      headers: { [challengeHeader]: challenge },
      signal: AbortSignal.timeout(2_000),
    }).catch(() => undefined);
    await answer?.body?.cancel();
    // Whatever else it answers: only our front can answer this.
    return answer?.headers.get(proofHeader) === proofOf(proofSecret, challenge);
  }

  private async waitUntilAnswering(instance: Instance, version: string, signal?: AbortSignal): Promise<void> {
    const deadline = Date.now() + startTimeoutMs;
    const child = this.children.get(instance);
    while (!(await this.isAnswering(instance))) {
      signal?.throwIfAborted();
      // Not by its arguments: while a script becomes the program that it is for, a process has none.
      if (child && (child.exitCode ?? child.signalCode) !== null)
        throw new AppError('registry_start_failed', { detail: `the ${fileNames[instance]} process ended at once` });
      if (Date.now() > deadline)
        throw new AppError('registry_start_failed', { detail: `the ${fileNames[instance]} process does not answer` });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    // Not the child's id: what runs in a sandbox has another.
    const identity = await this.identityOf(instance);
    const [found] = (await identity.find()).filter((one) => one.version === version);
    if (found) await identity.record(found.pid, version);
  }

  /** `registry_port_taken`, which names who has the port of the front; undefined when it is free. */
  private async portError(): Promise<AppError | undefined> {
    const port = this.options.front?.port ?? 0;
    const deadline = Date.now() + (this.children.has('front') ? portTimeoutMs : 0);
    for (;;) {
      const server = createServer();
      try {
        await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));
        return undefined;
      } catch (cause) {
        if (Date.now() > deadline) {
          const who = (await foreignListeners(port, undefined)).map(describe).join(', ');
          return new AppError(
            'registry_port_taken',
            { detail: `port ${port} on 127.0.0.1${who ? `: ${who}` : ''}`, port },
            { cause },
          );
        }
        await new Promise((resolve) => setTimeout(resolve, 100));
      } finally {
        await new Promise((resolve) => server.close(resolve));
      }
    }
  }
}

/** A heap of this size is enough for what passes through. */
const frontFlags = ['--max-old-space-size=64', '--max-semi-space-size=1'];
const frontFile = fileURLToPath(
  new URL(import.meta.url.endsWith('.ts') ? './front.ts' : './front.js', import.meta.url),
);
/** With what says that it is a module. */
const frontFiles = [frontFile, fileURLToPath(new URL('../../package.json', import.meta.url))];

/** For people: `pid 812 of user 65534 (/usr/bin/python3.11)`. */
export const describe = ({ pid, uid, program }: { pid: number | null; uid: number; program: string | null }): string =>
  `${pid === null ? 'a process' : `pid ${pid}`} of user ${uid}${program ? ` (${program})` : ''}`;

/** One `GET /v2/`: does a registry answer at this address, and how fast. Never throws. */
export async function probeRegistry(
  address: string,
  timeoutMs = 2_000,
): Promise<{ ok: boolean; latencyMs: number; error?: string }> {
  const started = performance.now();
  const http = new RegistryHttp(address, { timeoutMs });
  try {
    const response = await http.send(
      { method: 'GET', path: '/v2/', signal: AbortSignal.timeout(timeoutMs) },
      () => true,
    );
    await response.discard();
    const ok = response.status === 200 || response.status === 401;
    return {
      ok,
      latencyMs: Math.round(performance.now() - started),
      ...(ok ? {} : { error: `status ${response.status}` }),
    };
  } catch (error) {
    const { cause, message } = error as Error & { cause?: { code?: string } };
    return { ok: false, latencyMs: Math.round(performance.now() - started), error: cause?.code ?? message };
  } finally {
    await http.close();
  }
}

/** Bytes used below the storage folder and free on its disk. Counts blobs, not the links between them. */
export async function storageUsage(storageDir: string): Promise<{ usedBytes: number; freeBytes: number }> {
  await mkdir(storageDir, { recursive: true });
  // It fails when a file goes away while it looks, and says the sum of the others.
  const words = await outputOf(['du', '-sk', storageDir], { timeoutMs: 120_000 }).catch(
    (error: { stdout?: string }) => {
      if (!/^\d+\t/.test(error.stdout ?? '')) throw error;
      return error.stdout ?? '';
    },
  );
  return { usedBytes: Number.parseInt(words, 10) * 1024, freeBytes: await freeBytesOf(storageDir) };
}
