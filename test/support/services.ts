import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Client, createServiceClient } from '@airdock/clients/service-clients';
import {
  type CrashableServer,
  findProgram,
  freePort,
  startPostgres,
  startRedis,
  waitFor,
} from '@airdock/testing/servers';
import { stringify } from 'yaml';
import { nodeFlags, repository } from './du.js';

export const serviceNames = ['registry', 'image', 'host', 'cluster', 'backup'] as const;
export type ServiceName = (typeof serviceNames)[number];
export type Entry = 'main' | 'worker';

/** One process of one service. It ends with the test process, however that ends. */
export class ServiceProcess {
  #child: ChildProcess | undefined;
  #log = '';

  constructor(
    readonly name: ServiceName,
    readonly entry: Entry,
    readonly port: number,
    private readonly environment: NodeJS.ProcessEnv,
  ) {}

  get pid(): number {
    if (this.#child?.pid === undefined) throw new Error(`${this.name} ${this.entry} does not run`);
    return this.#child.pid;
  }

  /** Its last words. */
  get output(): string {
    return this.#log;
  }

  /** Resolves when it says that it is ready. */
  async start(): Promise<void> {
    const program = [process.execPath, ...nodeFlags, join(repository, `apps/${this.name}-svc/dist/${this.entry}.js`)];
    const setpriv = findProgram('setpriv');
    const [command = '', ...rest] = setpriv ? [setpriv, '--pdeathsig', 'KILL', ...program] : program;
    const env = { ...process.env, ...this.environment, AIRDOCK_HTTP_PORT: String(this.port) };
    const child = spawn(command, rest, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    const keep = (chunk: Buffer) => {
      this.#log = (this.#log + chunk.toString()).slice(-20_000);
    };
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    const ready = async () =>
      (await fetch(`http://127.0.0.1:${this.port}/readyz`, { signal: AbortSignal.timeout(2000) })).ok;
    const giveUp = () =>
      isRunning(child) ? undefined : new Error(`${this.name} ${this.entry} ended at once:\n${this.#log}`);
    await waitFor(ready, {
      what: `${this.name} ${this.entry} to be ready`,
      timeoutMs: 60_000,
      intervalMs: 100,
      giveUp,
    });
  }

  /** Resolves when it is gone. */
  async end(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    const child = this.#child;
    if (!child || !isRunning(child)) return;
    const exited = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), 15_000);
    await exited;
    clearTimeout(timer);
  }
}

const isRunning = (child: ChildProcess): boolean => child.exitCode === null && child.signalCode === null;

/** The five services as ten processes over one Redis and one PostgreSQL, configured by environment and one file. */
export class Services implements AsyncDisposable {
  readonly #extra: ServiceProcess[] = [];

  private constructor(
    readonly dataDir: string,
    readonly bundleDir: string,
    readonly registryPort: number,
    readonly redis: CrashableServer,
    readonly processes: ReadonlyMap<string, ServiceProcess>,
    readonly environment: NodeJS.ProcessEnv,
    private readonly servers: AsyncDisposableStack,
    private readonly token: string,
  ) {}

  /**
   * Everything is below `folder`, bundles too if they are not elsewhere. `airdock` are further keys. All ten are ready
   * when this returns.
   */
  static async start(
    folder: string,
    bundleDir = join(folder, 'bundles'),
    airdock: Record<string, unknown> = {},
  ): Promise<Services> {
    await using servers = new AsyncDisposableStack();
    const redis = servers.use(await startRedis());
    const postgres = servers.use(await startPostgres());
    const dataDir = join(folder, 'data');
    for (const dir of [dataDir, bundleDir]) await mkdir(dir, { recursive: true });
    const token = 'a-token-of-the-test-that-is-long-enough';
    const tokenFile = join(folder, 'token');
    await writeFile(tokenFile, token, { mode: 0o600 });
    const config = join(folder, 'airctl-config.yaml');
    await writeFile(
      config,
      stringify({ privateRegistryType: 'local', airdock: { bundleDirs: [bundleDir], ...airdock } }),
    );

    const entries = serviceNames.flatMap((name) => (['main', 'worker'] as const).map((entry) => ({ name, entry })));
    const ports = await freePorts(entries.length + 2);
    const portOf = (name: ServiceName, entry: Entry) =>
      ports[entries.findIndex((known) => known.name === name && known.entry === entry)] ?? 0;
    const [registryPort = 0] = ports.slice(entries.length);
    const environment = {
      AIRDOCK_CONFIG: config,
      AIRDOCK_DATA_DIR: dataDir,
      AIRDOCK_TOKEN_FILE: tokenFile,
      AIRDOCK_SECRETS_KEY_FILE: join(folder, 'secrets.key'),
      AIRDOCK_LOG_LEVEL: 'warn',
      AIRDOCK_REGISTRY_PORT: String(registryPort),
      DATABASE_URL: postgres.url,
      REDIS_URL: redis.url,
      ...Object.fromEntries(
        serviceNames.map((name) => [`AIRDOCK_${name.toUpperCase()}_URL`, `http://127.0.0.1:${portOf(name, 'main')}`]),
      ),
    };
    const processes = new Map(
      entries.map(
        ({ name, entry }) =>
          [`${name} ${entry}`, new ServiceProcess(name, entry, portOf(name, entry), environment)] as const,
      ),
    );
    const services = new Services(
      dataDir,
      bundleDir,
      registryPort,
      redis,
      processes,
      environment,
      servers.move(),
      token,
    );
    try {
      const started = await Promise.allSettled([...processes.values()].map((process) => process.start()));
      for (const result of started) if (result.status === 'rejected') throw result.reason;
    } catch (error) {
      await services.stop();
      throw error;
    }
    return services;
  }

  process(name: ServiceName, entry: Entry): ServiceProcess {
    return this.processes.get(`${name} ${entry}`) as ServiceProcess;
  }

  /** One more worker of a service, as a second replica is. */
  async addWorker(name: ServiceName, environment: NodeJS.ProcessEnv = {}): Promise<ServiceProcess> {
    const worker = new ServiceProcess(name, 'worker', await freePort(), { ...this.environment, ...environment });
    this.#extra.push(worker);
    await worker.start();
    return worker;
  }

  client(name: ServiceName): Client {
    return createServiceClient(`http://127.0.0.1:${this.process(name, 'main').port}`, this.token);
  }

  /** The last words of all processes. */
  get output(): string {
    return [...this.processes.values(), ...this.#extra]
      .map(({ name, entry, output }) => `${name} ${entry}:\n${output}`)
      .join('\n');
  }

  /** Ends all processes, the registry that they leave running, Redis and PostgreSQL. */
  async stop(): Promise<void> {
    await Promise.all([...this.processes.values(), ...this.#extra].map((process) => process.end()));
    const child = spawn(process.execPath, [join(repository, 'apps/du/dist/main.js'), 'down'], {
      env: { ...process.env, ...this.environment },
      stdio: 'ignore',
    });
    await new Promise((resolve) => child.once('exit', resolve));
    await this.servers.disposeAsync();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>();
  while (ports.size < count) ports.add(await freePort());
  return [...ports];
}
