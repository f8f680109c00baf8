import type { ChildProcess } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startOwned } from '@airdock/disk/programs/start-program';
import { servedHostOf } from '../served-host.js';
import { leaveVerdict, type WorkerVerdict } from './worker-verdict.js';

/** What a worker is told when it begins. Never an argument: it may hold passwords. */
export interface WorkerStart {
  type: 'start';
  /** The configuration file of the parent. */
  file: string | undefined;
  /** By dotted key, as those of `loadConfig`. */
  overrides: Record<string, unknown>;
  /** Where it notes whose data it looks at. */
  servedFile: string;
  /** It answers health and metrics on the port of the configuration. */
  answersHealth: boolean;
}
export type ToWorker = WorkerStart | { type: 'stop' };

export type FromWorker =
  | { type: 'ready' }
  /** `heaviest` is the host that most is kept in memory for. */
  | { type: 'beat'; heaviest?: { hostId: string; bytes: number } | undefined };

export interface HostWorkerOptions {
  dataDir: string;
  start: Pick<WorkerStart, 'file' | 'overrides' | 'answersHealth'>;
  maxMemoryBytes: number;
  log: (about: Record<string, unknown>, message: string) => void;
  /** What the child runs; for tests. */
  main?: string;
}

/** The child says every second that its event loop turns. */
export const beatMs = 1_000;
const lookMs = 500;
/** With the look that finds it, five seconds. */
const silenceMs = 4_500;
/** Until it says anything: a busy machine takes its time to load it. */
const loadMs = 120_000;
/** Until it is ready: a database is opened, what an earlier one left is put right. */
const startMs = 20_000;
const stopMs = 8_000;
const firstPauseMs = 100;
const maxPauseMs = 30_000;
/** One that lived so long has not failed to start. */
const settledMs = 60_000;
const heapMib = 256;
/** What is kept for one host is worth naming from here on. */
const heavyBytes = 1024 * 1024;

/**
 * The process that speaks to hosts, apart from everything else, and its watchdog. One that is silent for five seconds,
 * or takes more memory than it may, is killed and started anew; whose data it was looking at is left for the new one as
 * a verdict.
 */
export class HostWorker {
  private readonly runDir: string;
  private readonly servedFile: string;
  private child: ChildProcess | undefined;
  private exited: Promise<void> = Promise.resolve();
  private watch: NodeJS.Timeout | undefined;
  private restart: NodeJS.Timeout | undefined;
  private isStopping = false;
  private heardAt = 0;
  private allowedMs = loadMs;
  private lookedAt = 0;
  private heaviest: { hostId: string; bytes: number } | undefined;
  private verdict: WorkerVerdict['reason'] | undefined;
  private pauseMs = firstPauseMs;
  private isReady: () => void = () => undefined;
  /** Resolves when the first one is ready. */
  readonly ready: Promise<void>;

  constructor(private readonly options: HostWorkerOptions) {
    this.runDir = join(options.dataDir, 'run');
    this.servedFile = join(this.runDir, `host-worker-${process.pid}.served`);
    this.ready = new Promise((resolve) => {
      this.isReady = resolve;
    });
  }

  /** Process id of the one that runs. */
  get pid(): number | undefined {
    return this.child?.pid;
  }

  /** Starts the process: the database is there, and the API answers. Not after `stop`. */
  start(): void {
    if (this.isStopping) return;
    mkdirSync(this.runDir, { recursive: true, mode: 0o700 });
    this.spawn();
    this.lookedAt = performance.now();
    this.watch = setInterval(() => this.look(), lookMs);
  }

  /** Ends it: it hands back what it works on, and is killed if that takes too long. */
  async stop(): Promise<void> {
    this.isStopping = true;
    clearInterval(this.watch);
    clearTimeout(this.restart);
    this.send({ type: 'stop' });
    const timer = setTimeout(() => this.child?.kill('SIGKILL'), stopMs);
    await this.exited;
    clearTimeout(timer);
    rmSync(this.servedFile, { force: true });
  }

  private spawn(): void {
    const flags = ['--max-semi-space-size=4', `--max-old-space-size=${heapMib}`];
    const main = this.options.main ?? fileURLToPath(new URL('../host-worker-main.js', import.meta.url));
    // `bin/airdock` sets these for a process that mostly waits; this one moves the bytes of tunnels.
    const { MALLOC_ARENA_MAX: _arenas, MALLOC_MMAP_THRESHOLD_: _threshold, ...env } = process.env;
    // Also when it is frozen.
    const child = startOwned([process.execPath, ...flags, main], 'KILL', {
      env,
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    const startedAt = performance.now();
    this.child = child;
    this.verdict = undefined;
    this.heaviest = undefined;
    this.allowedMs = loadMs;
    rmSync(this.servedFile, { force: true });
    child.on('message', (message: FromWorker) => {
      this.heardAt = performance.now();
      if (message.type === 'ready') {
        this.allowedMs = silenceMs;
        this.isReady();
      } else {
        this.heaviest = message.heaviest;
        this.allowedMs = Math.min(this.allowedMs, startMs);
      }
    });
    child.on('error', (error) => this.options.log({ err: error }, 'the host worker could not be started or spoken to'));
    this.exited = new Promise((resolve) => child.once('close', resolve));
    child.once('close', (code, signal) => this.onExit(child, startedAt, code, signal));
    this.heardAt = performance.now();
    this.send({ type: 'start', servedFile: this.servedFile, ...this.options.start });
  }

  private onExit({ pid }: ChildProcess, startedAt: number, code: number | null, signal: NodeJS.Signals | null): void {
    if (this.isStopping) return;
    // Whoever kills it from outside blames nobody.
    const isCrash = signal
      ? ['SIGABRT', 'SIGSEGV', 'SIGBUS', 'SIGILL', 'SIGFPE', 'SIGTRAP'].includes(signal)
      : code !== 0;
    const reason = this.verdict ?? 'crashed';
    const hostId =
      reason === 'memory' ? this.heavyHost() : this.verdict || isCrash ? servedHostOf(this.servedFile) : undefined;
    const lived = performance.now() - startedAt;
    if (lived > settledMs) this.pauseMs = firstPauseMs;
    this.options.log(
      { pid, code, signal, reason: this.verdict, hostId },
      'the host worker has ended, and is started anew',
    );
    try {
      leaveVerdict(this.runDir, {
        owner: `${hostname()}/${pid}/`,
        hostId: hostId ?? null,
        reason,
        at: new Date().toISOString(),
      });
    } catch (error) {
      this.options.log({ err: error }, 'what ended the host worker could not be noted');
    }
    this.restart = setTimeout(() => this.spawn(), this.pauseMs);
    this.pauseMs = Math.min(maxPauseMs, this.pauseMs * 2);
  }

  /** Of one that took too much memory: whoever is served at the moment when that is found may be anybody. */
  private heavyHost(): string | undefined {
    return this.heaviest && this.heaviest.bytes > heavyBytes ? this.heaviest.hostId : undefined;
  }

  private look(): void {
    const at = performance.now();
    // It was this process that stood still, or the whole machine: what the child has said meanwhile is yet to be read.
    if (at - this.lookedAt > 2 * lookMs + beatMs) this.heardAt = Math.max(this.heardAt, at);
    this.lookedAt = at;
    const { child } = this;
    if (!child?.pid || child.exitCode !== null || child.signalCode !== null) return;
    if (at - this.heardAt > this.allowedMs) this.kill(child, 'silent', { silentMs: Math.round(at - this.heardAt) });
    else {
      const bytes = residentBytes(child.pid);
      if (bytes > this.options.maxMemoryBytes) this.kill(child, 'memory', { bytes });
    }
  }

  private kill(child: ChildProcess, reason: WorkerVerdict['reason'], about: Record<string, unknown>): void {
    if (this.verdict) return;
    this.verdict = reason;
    this.options.log({ pid: child.pid, reason, ...about }, 'the host worker is killed');
    child.kill('SIGKILL');
  }

  private send(message: ToWorker): void {
    // One that is gone is noticed by its exit.
    if (this.child?.connected) this.child.send(message, () => undefined);
  }
}

/** What a process has in memory (proc_pid_status(5)), whatever the size of a page is; 0 when it is gone. */
function residentBytes(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}
