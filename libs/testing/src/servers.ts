/**
 * Real servers for tests: Redis, a registry, PostgreSQL, each as a child of the test process on loopback. They die with
 * the test process, and their folders go when they are stopped. For hosts and container engines see `lab/`.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { chown, mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import {
  createServer as createHttpServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type RequestListener,
  type ServerResponse,
} from 'node:http';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { text } from 'node:stream/consumers';
import { promisify } from 'node:util';

const run = promisify(execFile);

/**
 * A loopback TCP port that nothing listens on now. It is below the ports that the system gives to connections and to
 * listeners without a wish (Linux: 32768 and above), or another test's connection could hold it before or after whoever
 * asked for it.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(15_000, 32_768);
    if (await isPortFree(port)) return port;
  }
}

/** Whether nothing listens on a loopback port now. */
export async function isPortFree(port: number): Promise<boolean> {
  const server = createServer();
  const isFree = await new Promise<boolean>((resolve) =>
    server.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true)),
  );
  await new Promise((resolve) => server.close(resolve));
  return isFree;
}

/** A folder for one test. It goes with `remove` (or `await using`), at the latest when the process exits. */
export interface TempDir extends AsyncDisposable {
  path: string;
  remove(): Promise<void>;
}

const tempDirs = new Set<string>();
process.once('exit', () => {
  for (const path of tempDirs) rmSync(path, { recursive: true, force: true });
});

/** Creates an empty folder `airdock-<prefix>-…` in the system's folder for temporary files. */
export async function tempDir(prefix = 'test'): Promise<TempDir> {
  const path = await mkdtemp(join(tmpdir(), `airdock-${prefix}-`));
  tempDirs.add(path);
  const remove = async () => {
    await rm(path, { recursive: true, force: true, maxRetries: 5 });
    tempDirs.delete(path);
  };
  return { path, remove, [Symbol.asyncDispose]: remove };
}

export interface WaitOptions {
  /** Default 10 000. */
  timeoutMs?: number;
  /** Default 25. */
  intervalMs?: number;
  /** What is awaited, for the error message: "the job to succeed". */
  what?: string;
  /** Ends the wait at once with the error returned. */
  giveUp?: () => Error | undefined;
}

/** How long some program had to wait for a core so far, ms; 0 where the kernel does not tell (PSI, Linux 4.20). */
function stalledMs(): number {
  try {
    return Number(/^some .*total=(\d+)/m.exec(readFileSync('/proc/pressure/cpu', 'utf8'))?.[1] ?? 0) / 1000;
  } catch {
    return 0;
  }
}

/** What other programs take of the machine counts as a tenth. */
const stalledShare = 0.1;

/**
 * Calls `condition` until it returns something truthy, and returns that. A condition that throws counts as not
 * fulfilled; its last error becomes the cause when the time is over. The time hardly passes while programs wait for a
 * core: on a busy machine everything takes longer, and nothing is wrong.
 */
export async function waitFor<T>(condition: () => T | Promise<T>, options: WaitOptions = {}): Promise<NonNullable<T>> {
  const { timeoutMs = 10_000, intervalMs = 25, what = 'a condition' } = options;
  let [waitedMs, at, stalled] = [0, performance.now(), stalledMs()];
  let last: unknown;
  for (;;) {
    const reason = options.giveUp?.();
    if (reason) throw reason;
    try {
      const value = await condition();
      if (value) return value;
      last = undefined;
    } catch (error) {
      last = error;
    }
    const [now, nowStalled] = [performance.now(), stalledMs()];
    waitedMs += Math.max((now - at) * stalledShare, now - at - (nowStalled - stalled));
    [at, stalled] = [now, nowStalled];
    if (waitedMs > timeoutMs) {
      const why = last instanceof Error ? `: ${last.message}` : '';
      throw new Error(`waited ${timeoutMs} ms for ${what}${why}`, { cause: last });
    }
    await new Promise((resolve) => setTimeout(resolve, intervalMs));
  }
}

/** The path of a program, looked for in PATH and where Debian puts servers; undefined when it is missing. */
export function findProgram(name: string, extraDirs: readonly string[] = []): string | undefined {
  const dirs = [...extraDirs, ...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return dirs.map((dir) => join(dir, name)).find((path) => existsSync(path));
}

/**
 * Whether the process holds the listening socket of this loopback port: another server that took the port would answer
 * just as well.
 */
async function listens(pid: number | undefined, port: number): Promise<boolean> {
  const address = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const rows = (await readFile('/proc/net/tcp', 'utf8')).split('\n').map((row) => row.trim().split(/\s+/));
  // Columns of proc_net_tcp(5): local address, state (0A is LISTEN), inode.
  const inode = rows.find((row) => row[1] === address && row[3] === '0A')?.[9];
  const fds = await readdir(`/proc/${pid}/fd`);
  const targets = await Promise.all(fds.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')));
  return inode !== undefined && targets.includes(`socket:[${inode}]`);
}

interface ChildOptions {
  program: string;
  args: readonly string[];
  /** The loopback port that it must listen on itself. */
  port?: number;
  /** True when the server answers. */
  ready: () => Promise<boolean>;
  /**
   * The signal that ends it in good order, also when the test process dies. Default SIGTERM, and SIGKILL at the death
   * of the parent.
   */
  stopSignal?: 'SIGTERM' | 'SIGINT' | 'SIGQUIT';
  /** For its start; default 20 000. */
  timeoutMs?: number;
  /** Runs it as another user. */
  as?: { uid: number; gid: number };
}

/** One server process that can be started again with the same arguments. */
export class ServerProcess {
  #child: ChildProcess | undefined;
  #output = '';

  constructor(private readonly options: ChildOptions) {}

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Resolves when the server answers; rejects with its last output when it ends before that. */
  async start(): Promise<void> {
    const { program, args, as, stopSignal } = this.options;
    const setpriv = findProgram('setpriv');
    // PR_SET_PDEATHSIG: the kernel ends the server when the test process dies, however that happens.
    const wrapper = setpriv ? [setpriv, '--pdeathsig', (stopSignal ?? 'SIGKILL').slice(3)] : [];
    if (setpriv && as) wrapper.push('--reuid', `${as.uid}`, '--regid', `${as.gid}`, '--clear-groups');
    const [command = program, ...rest] = [...wrapper, program, ...args];
    const env = { PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin`, LANG: 'C.UTF-8' };
    const child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'], env, cwd: '/', ...(setpriv ? {} : as) });
    this.#child = child;
    this.#output = '';
    let failure: (() => Error) | undefined;
    const collect = (chunk: Buffer) => {
      this.#output = (this.#output + chunk.toString()).slice(-4096);
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.once('error', (error) => {
      failure = () => error;
    });
    // Its last words may arrive after its end, so the message is made when it is needed.
    child.once('exit', (code, signal) => {
      failure = () => new Error(`${program} ended with ${code ?? signal}: ${this.#output.trim()}`);
    });
    const { port, ready, timeoutMs = 20_000 } = this.options;
    const isUp = async () => (port === undefined || (await listens(child.pid, port))) && ready();
    try {
      await waitFor(isUp, { timeoutMs, what: `${program} to answer`, giveUp: () => failure?.() });
    } catch (error) {
      await this.end('SIGKILL');
      throw error;
    }
  }

  /**
   * Sends the signal, SIGKILL ten seconds later, and resolves when the process is gone. Does nothing when it is not
   * running.
   */
  async end(signal: NodeJS.Signals = this.options.stopSignal ?? 'SIGTERM'): Promise<void> {
    const child = this.#child;
    if (!child || child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
    // Not `close`: a grandchild may hold the pipes longer.
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
    await gone;
    clearTimeout(timer);
    child.stdout?.destroy();
    child.stderr?.destroy();
  }
}

/** What every server here can do. */
export interface TestServer extends AsyncDisposable {
  url: string;
  /** Ends the server and removes the folders that were made for it. */
  stop(): Promise<void>;
}

/** A server whose crash and return can be tested. */
export interface CrashableServer extends TestServer {
  /** Ends it with SIGKILL; its address and storage stay reserved for `restart`. */
  kill(): Promise<void>;
  /** Ends it if it runs, and starts it again on the same address. */
  restart(): Promise<void>;
}

function crashable(server: ServerProcess, url: string, cleanUp: () => Promise<void>): CrashableServer {
  const stop = async () => {
    await server.end();
    await cleanUp();
  };
  const restart = async () => {
    await server.end();
    await server.start();
  };
  return { url, stop, restart, kill: () => server.end('SIGKILL'), [Symbol.asyncDispose]: stop };
}

/**
 * Starts on a fixed port once, on a free port up to three times: the port may be taken between finding and using it.
 */
async function onPort<T>(port: number | undefined, start: (port: number) => Promise<T>): Promise<T> {
  if (port !== undefined) return start(port);
  for (let attempt = 1; ; attempt++) {
    try {
      return await start(await freePort());
    } catch (error) {
      if (attempt === 3) throw error;
    }
  }
}

function exchange(target: { host: string; port: number } | { path: string }, message: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ ...target, timeout: 2000 }, () => socket.write(message));
    socket.once('data', (data) => {
      resolve(data.toString());
      socket.destroy();
    });
    socket.once('timeout', () => socket.destroy(new Error('no answer')));
    socket.once('error', reject);
    socket.once('end', () => reject(new Error('closed without an answer')));
  });
}

export interface RedisOptions {
  /** Loopback port; default a free one. */
  port?: number;
  /** Listens on this Unix socket instead; `url` is then `unix://PATH`. */
  socket?: string;
}

/** An empty Redis without persistence that never evicts; after `restart` its data is lost. */
export async function startRedis({ port, socket }: RedisOptions = {}): Promise<CrashableServer> {
  const dir = await tempDir('redis');
  const common = [
    '--save',
    '',
    '--appendonly',
    'no',
    '--maxmemory-policy',
    'noeviction',
    '--dir',
    dir.path,
    '--loglevel',
    'warning',
  ];
  const start = async (listen: string[], target: { host: string; port: number } | { path: string }) => {
    const ready = async () => (await exchange(target, 'PING\r\n')).startsWith('+PONG');
    const port = 'port' in target ? { port: target.port } : {};
    const server = new ServerProcess({
      program: findProgram('redis-server') ?? 'redis-server',
      args: [...listen, ...common],
      ready,
      ...port,
    });
    await server.start();
    return server;
  };
  try {
    if (socket) {
      const server = await start(['--port', '0', '--unixsocket', socket, '--unixsocketperm', '700'], { path: socket });
      return crashable(server, `unix://${socket}`, dir.remove);
    }
    return await onPort(port, async (chosen) => {
      const server = await start(['--bind', '127.0.0.1', '--port', `${chosen}`], { host: '127.0.0.1', port: chosen });
      return crashable(server, `redis://127.0.0.1:${chosen}`, dir.remove);
    });
  } catch (error) {
    await dir.remove();
    throw error;
  }
}

export interface RegistryOptions {
  /** Refuses every write with 405. Default false. */
  readOnly?: boolean;
  /** Uses this folder, and leaves it there when stopped; default an own one that goes. Two registries may share one. */
  storageDir?: string;
  /** Loopback port; default a free one. */
  port?: number;
}

/** A real registry. */
export interface TestRegistry extends CrashableServer {
  /** `localhost:PORT`, as it stands in image references. */
  host: string;
  port: number;
  storageDir: string;
}

/**
 * Debian's `docker-registry` (distribution 2.8) over a folder, without descriptor cache, so that what happens to the
 * folder shows at once.
 */
export async function startRegistry(options: RegistryOptions = {}): Promise<TestRegistry> {
  const dir = await tempDir('registry');
  const storageDir = options.storageDir ?? join(dir.path, 'storage');
  try {
    await mkdir(storageDir, { recursive: true });
    return await onPort(options.port, async (port) => {
      const config = join(dir.path, `${port}.yml`);
      await writeFile(config, registryConfig(port, storageDir, options.readOnly ?? false));
      const url = `http://127.0.0.1:${port}`;
      const ready = async () => (await fetch(`${url}/v2/`, { signal: AbortSignal.timeout(2000) })).status === 200;
      const server = new ServerProcess({
        program: findProgram('docker-registry') ?? 'docker-registry',
        args: ['serve', config],
        port,
        ready,
      });
      await server.start();
      return { ...crashable(server, url, dir.remove), host: `localhost:${port}`, port, storageDir };
    });
  } catch (error) {
    await dir.remove();
    throw error;
  }
}

function registryConfig(port: number, storageDir: string, readOnly: boolean): string {
  // JSON is YAML. The fixed secret lets uploads go on after a restart, and at another registry over the same storage.
  return JSON.stringify({
    version: 0.1,
    log: { level: 'error', accesslog: { disabled: true } },
    storage: {
      filesystem: { rootdirectory: storageDir },
      delete: { enabled: true },
      maintenance: { uploadpurging: { enabled: false }, readonly: { enabled: readOnly } },
    },
    http: { addr: `127.0.0.1:${port}`, secret: 'airdock-test' },
  });
}

/**
 * A throw-away PostgreSQL cluster without fsync, with the superuser `postgres` and no password, on loopback and on a
 * Unix socket.
 */
export async function startPostgres(): Promise<TestServer & { socketDir: string; port: number }> {
  const versions = await readdir('/usr/lib/postgresql').catch(() => []);
  const dirs = versions.sort((a, b) => Number(b) - Number(a)).map((version) => `/usr/lib/postgresql/${version}/bin`);
  const program = (name: string) => findProgram(name, dirs) ?? name;
  const dir = await tempDir('postgres');
  const data = join(dir.path, 'data');
  try {
    const as = process.getuid?.() === 0 ? await userIds('postgres') : undefined;
    if (as) await chown(dir.path, as.uid, as.gid);
    await run(
      program('initdb'),
      ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync'],
      { ...as, cwd: '/', timeout: 60_000 },
    );
    return await onPort(undefined, async (port) => {
      const settings = {
        listen_addresses: '127.0.0.1',
        unix_socket_directories: dir.path,
        fsync: 'off',
        synchronous_commit: 'off',
        full_page_writes: 'off',
      };
      const args = [
        '-D',
        data,
        '-p',
        `${port}`,
        ...Object.entries(settings).flatMap(([key, value]) => ['-c', `${key}=${value}`]),
      ];
      const isReady = ['-q', '-h', '127.0.0.1', '-p', `${port}`];
      const ready = () => run(program('pg_isready'), isReady, { timeout: 5000 }).then(() => true);
      // SIGQUIT: PostgreSQL ends at once, with its children and shared memory; nobody needs the data.
      const server = new ServerProcess({
        program: program('postgres'),
        args,
        port,
        ready,
        stopSignal: 'SIGQUIT',
        ...(as ? { as } : {}),
      });
      await server.start();
      const {
        url,
        stop,
        [Symbol.asyncDispose]: dispose,
      } = crashable(server, `postgres://postgres@127.0.0.1:${port}/postgres`, dir.remove);
      return { url, stop, [Symbol.asyncDispose]: dispose, socketDir: dir.path, port };
    });
  } catch (error) {
    await dir.remove();
    throw error;
  }
}

async function userIds(name: string): Promise<{ uid: number; gid: number }> {
  const [uid, gid] = await Promise.all(
    ['-u', '-g'].map(async (flag) => Number((await run('id', [flag, name])).stdout)),
  );
  return { uid: uid ?? 0, gid: gid ?? 0 };
}

export interface JsonRequest {
  method: string;
  path: string;
  query: URLSearchParams;
  headers: IncomingHttpHeaders;
  /** The parsed JSON; undefined without one. */
  body: unknown;
}

/**
 * Another service of Airdock as a component test needs it: answers a path with what the table says now, or with what
 * the function there returns; everything else is 404. Problem documents are answered with their status.
 */
export async function startJsonServer(answers: Record<string, unknown>): Promise<TestServer> {
  const answerTo = async (request: JsonRequest): Promise<unknown> => {
    const { path } = request;
    const answer =
      path in answers
        ? answers[path]
        : { code: 'resource_not_found', title: 'stub', status: 404, type: 'stub', nextStep: 'stub', detail: path };
    return typeof answer === 'function' ? (answer as (asked: JsonRequest) => unknown)(request) : answer;
  };
  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { pathname: path, searchParams: query } = new URL(request.url ?? '', 'http://stub');
    const body = await text(request);
    const answer = await answerTo({
      method: request.method ?? '',
      path,
      query,
      headers: request.headers,
      body: body ? JSON.parse(body) : undefined,
    });
    const { status, nextStep } = (answer ?? {}) as { status?: number; nextStep?: string };
    response.writeHead(nextStep && status ? status : 200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(answer));
  };
  return startHttpServer(
    (request, response) => void serve(request, response).catch((error: Error) => response.destroy(error)),
  );
}

/** A server on a free port that answers as the listener does; `stop` closes its connections too. */
export async function startHttpServer(listener: RequestListener): Promise<TestServer> {
  const server = createHttpServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (!address || typeof address === 'string') throw new Error('the system gave no port');
  const stop = async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://127.0.0.1:${address.port}`, stop, [Symbol.asyncDispose]: stop };
}
