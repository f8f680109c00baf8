import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createServiceClient } from '@airdock/clients/service-clients';
import { findProgram, freePort, waitFor } from '@airdock/testing/servers';
import { stringify } from 'yaml';

export const repository = join(import.meta.dirname, '..', import.meta.dirname.includes('/dist/') ? '../..' : '..');

/** As `bin/airdock` and docs/operations.md have it. */
export const nodeFlags = ['--max-semi-space-size=4'];
const memory = { MALLOC_ARENA_MAX: '1', MALLOC_MMAP_THRESHOLD_: '69632' };

export interface DuOptions {
  /** Everything of this DU is below it. */
  folder: string;
  privateRegistryType?: string;
  /** Default an own one. */
  bundleDir?: string;
  registryPort?: number;
  environment?: NodeJS.ProcessEnv;
  /** Further keys below `airdock.registry`. */
  registry?: Record<string, unknown>;
  /** Keys below `airdock.packages`; the port is a free one. */
  packages?: Record<string, unknown>;
  /** Keys below `airdock.hosts`. */
  hosts?: Record<string, unknown>;
  /** Keys below `airdock.http`; the port is a free one. */
  http?: Record<string, unknown>;
  /** Further keys below `airdock`. */
  airdock?: Record<string, unknown>;
  /** The registry ends with the DU, also when this process is killed; otherwise it stays, as users have it. */
  stopsRegistry?: boolean;
  /** Default warn. */
  logLevel?: 'warn' | 'debug';
  /** Gets everything that the DU prints, over all its lives. */
  onOutput?: (text: string) => void;
}

/** A DU as users run it: `up` in a process of its own, with a configuration file. */
export class Du implements AsyncDisposable {
  private child: ChildProcess | undefined;
  private log = '';

  private constructor(
    readonly url: string,
    readonly dataDir: string,
    readonly bundleDir: string,
    readonly configFile: string,
    readonly registryPort: number,
    readonly packagePort: number,
    private readonly environment: NodeJS.ProcessEnv,
    private readonly stopsRegistry: boolean,
    private readonly onOutput: (text: string) => void,
  ) {}

  /** Writes the configuration and starts the DU; it is ready when this returns. */
  static async start(options: DuOptions): Promise<Du> {
    const {
      folder,
      bundleDir = join(folder, 'bundles'),
      privateRegistryType = 'local',
      registryPort = await freePort(),
      environment = {},
      stopsRegistry = false,
      registry = {},
      packages = {},
      hosts = {},
      http = {},
      airdock: further = {},
      logLevel = 'warn',
      onOutput = () => undefined,
    } = options;
    const dataDir = join(folder, 'data');
    await mkdir(folder, { recursive: true });
    await mkdir(bundleDir, { recursive: true });
    const port = await freePort();
    const configFile = join(folder, 'airctl-config.yaml');
    const packagePort = await freePort();
    const airdock = {
      dataDir,
      http: { port, ...http },
      registry: { port: registryPort, ...registry },
      packages: { port: packagePort, ...packages },
      hosts,
      bundleDirs: [bundleDir],
      logLevel,
      ...further,
    };
    await writeFile(configFile, stringify({ privateRegistryType, airdock }));
    const du = new Du(
      `http://127.0.0.1:${port}`,
      dataDir,
      bundleDir,
      configFile,
      registryPort,
      packagePort,
      environment,
      stopsRegistry,
      onOutput,
    );
    try {
      await du.startProcess();
    } catch (error) {
      await du.stop();
      throw error;
    }
    return du;
  }

  async startProcess(): Promise<void> {
    // Ends also when the test process is killed; `exec` keeps the pid.
    const setpriv = findProgram('setpriv');
    const up = [
      process.execPath,
      ...nodeFlags,
      join(repository, 'apps/du/dist/main.js'),
      'up',
      '--config',
      this.configFile,
      ...(this.stopsRegistry ? ['--stop-registry'] : []),
    ];
    const [program, ...rest] = setpriv ? [setpriv, '--pdeathsig', 'TERM', ...up] : up;
    const child = spawn(program as string, rest, {
      env: { ...process.env, ...memory, ...this.environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.child = child;
    const keep = (chunk: Buffer) => {
      this.onOutput(chunk.toString());
      this.log = (this.log + chunk.toString()).slice(-20_000);
    };
    child.stdout?.on('data', keep);
    child.stderr?.on('data', keep);
    const ready = () => this.log.includes(`Airdock is ready on ${this.url}`);
    const giveUp = () =>
      child.exitCode === null && child.signalCode === null
        ? undefined
        : new Error(`the DU ended at once:\n${this.log}`);
    await waitFor(ready, { what: 'the DU to be ready', timeoutMs: 120_000, giveUp });
  }

  /** Its last words. */
  get output(): string {
    return this.log;
  }

  get pid(): number | undefined {
    return this.child?.pid;
  }

  /** The Unix socket of its API. */
  get socket(): string {
    return join(this.dataDir, 'api.sock');
  }

  async token(): Promise<string> {
    return (await readFile(join(this.dataDir, 'admin.token'), 'utf8')).trim();
  }

  /** What its services show each other. */
  async internalToken(): Promise<string> {
    return (await readFile(join(this.dataDir, 'internal.token'), 'utf8')).trim();
  }

  async client() {
    return createServiceClient(this.url, await this.token());
  }

  /** As operators on the DU itself have it: without a token. */
  localClient() {
    return createServiceClient({ url: 'http://localhost', socketPath: this.socket });
  }

  /** Ends the process; the registry goes on. SIGKILL is the worst moment. */
  async end(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    const { child } = this;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), 20_000);
    await exited;
    clearTimeout(timer);
    if (signal === 'SIGTERM' && child.signalCode === 'SIGKILL')
      throw new Error('the DU did not end within 20 s of SIGTERM');
    this.log = '';
  }

  /** Ends the DU and its registry. */
  async stop(): Promise<void> {
    await this.end();
    const child = spawn(
      process.execPath,
      [join(repository, 'apps/du/dist/main.js'), 'down', '--config', this.configFile],
      { stdio: 'ignore' },
    );
    await new Promise((resolve) => child.once('exit', resolve));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
