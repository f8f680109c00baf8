import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { AppError } from '@airdock/core/errors';
import { MarkedOutput, readInto } from '../command/command-output.js';
import {
  type CommandKind,
  deadlineOf,
  defaultStallMs,
  firstCommandMs,
  stallTimer,
  touching,
} from '../command/command-time.js';
import type { HostBuffers } from '../command/host-buffers.js';
import type { OpenSession } from './ssh-session.js';

/** How a command is run: its input, its user, its bounds. */
export interface ExecOptions {
  /** Written to the command's standard input; destroyed on failure. */
  stdin?: Readable | string | undefined;
  signal?: AbortSignal | undefined;
  /** Run as root, through sudo when the user is another. */
  sudo?: boolean;
  /** Ends the command when it prints and takes nothing for this long. Default 120 000. */
  stallTimeoutMs?: number;
  /**
   * Bounds its time in all. Default: `transfer` with a stream as input, `work` where the stall timeout is longer than
   * that of a look, else `look`.
   */
  kind?: CommandKind | undefined;
  /** Instead of the time of its kind. */
  deadlineMs?: number | undefined;
  /** Called whenever the command prints something. */
  onOutput?: (() => void) | undefined;
}

/** How a command ended. An exit code other than 0 is a result, not an error. */
export interface ExecResult {
  exitCode: number;
  stdout: string;
  /** Without what a terminal would act on. */
  stderr: string;
}

/** What a run needs beside its session. */
export interface CommandRunOptions extends Omit<ExecOptions, 'sudo'> {
  /** Of the program, for errors. */
  name: string;
  /** What its outputs are marked with. */
  mark: string;
  /** Goes before everything else to the standard input. */
  firstLine?: string | undefined;
  buffers: HostBuffers;
  errors: {
    broken(error: unknown): AppError;
    unusable(exitCode: number | undefined, said: string): AppError;
  };
}

/** One command in a session that was opened for it: what it gets, what it prints, and everything that can end it. */
export class CommandRun {
  private readonly stopped = new AbortController();
  private readonly exit: Promise<number | undefined>;
  private readonly stdout: MarkedOutput;
  private readonly stderr: MarkedOutput;
  private readonly stall: ReturnType<typeof stallTimer>;
  private readonly timers: NodeJS.Timeout[];

  constructor(
    private readonly session: OpenSession,
    private readonly options: CommandRunOptions,
  ) {
    const { name, mark, buffers, stdin, stallTimeoutMs = defaultStallMs } = options;
    const kind = options.kind ?? (isStream(stdin) ? 'transfer' : undefined);
    const timeMs = options.deadlineMs ?? deadlineOf(stallTimeoutMs, kind);
    this.stdout = new MarkedOutput(buffers, mark);
    this.stderr = new MarkedOutput(buffers, mark);
    this.stall = stallTimer(stallTimeoutMs, () =>
      this.stop(new AppError('host_timeout', { detail: `${name} did nothing for ${stallTimeoutMs / 1000} s` })),
    );
    const tooLong = () => new AppError('host_command_timeout', { detail: `${name} after ${timeMs / 1000} s` });
    this.timers = [
      setTimeout(() => this.stop(tooLong()), timeMs),
      // A menu of the login, say: it would wait for an answer until the time is over.
      setTimeout(() => {
        if (!this.stdout.hasBegun && this.said !== '') this.stop(options.errors.unusable(undefined, this.said));
      }, firstCommandMs),
    ];
    const stopped = new Promise<never>((_, reject) => {
      this.stopped.signal.addEventListener('abort', () => reject(this.stopped.signal.reason), { once: true });
    });
    this.exit = Promise.race([session.closed, stopped]);
    // A stop may come while the input is still being fed.
    this.exit.catch(() => undefined);
  }

  /** Ends the command; `result` throws the reason. */
  stop(reason: unknown): void {
    this.stopped.abort(reason);
    // The server keeps the channel until the program has gone, which nobody waits for here.
    this.session.channel.signal('TERM');
    this.session.channel.close();
  }

  /** What the login printed around the command, of either output. */
  get noise(): string[] {
    return [this.stdout.noise, this.stderr.noise];
  }

  /** Throws the reason of a stop, what broke the connection, and `host_shell_unusable`. */
  async result(): Promise<ExecResult> {
    const { stdout, stderr } = this;
    const { signal, errors } = this.options;
    const abort = () => this.stop(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      this.readOutputs();
      if (signal?.aborted) abort();
      const feedError = await this.feed();
      const code = await this.exit;
      // What the shell does at its end may give another one.
      const exitCode = stdout.exitCode ?? code;
      if (exitCode === undefined) throw feedError ?? errors.broken(new Error('the connection was closed'));
      if (!stdout.hasBegun || (exitCode === 0 && stdout.exitCode === undefined))
        throw errors.unusable(exitCode, this.said);
      if (feedError && exitCode === 0) throw feedError;
      return { exitCode, stdout: stdout.text(), stderr: stderr.text() };
    } finally {
      this.stall.stop();
      for (const timer of this.timers) clearTimeout(timer);
      stdout.release();
      stderr.release();
      signal?.removeEventListener('abort', abort);
    }
  }

  /** What the login said before the command began. */
  private get said(): string {
    return this.stdout.noise || this.stderr.noise;
  }

  private readOutputs(): void {
    const { stdout, stderr } = this;
    const { name, onOutput } = this.options;
    const { channel, hasSaidAll } = this.session;
    const onChunk = (isOutput: boolean) => {
      this.stall.touch();
      if (isOutput && stdout.size > 0) onOutput?.();
      if (stdout.exitCode !== undefined && stderr.exitCode !== undefined) hasSaidAll();
    };
    const onExcess = (error: unknown) =>
      this.stop(
        error instanceof AppError ? new AppError(error.code, { detail: `${name}: ${error.details.detail}` }) : error,
      );
    readInto(stdout, channel, () => onChunk(true), onExcess);
    readInto(stderr, channel.stderr, () => onChunk(false), onExcess);
  }

  /**
   * Writes the standard input. Resolves to what kept a stream from being taken whole: the program may end before it has
   * read everything, and its exit code tells why.
   */
  private async feed(): Promise<unknown> {
    const { stdin, firstLine, name } = this.options;
    const { channel } = this.session;
    const first = firstLine === undefined ? '' : `${firstLine}\n`;
    if (!isStream(stdin)) {
      channel.end(first + (stdin ?? ''));
      return undefined;
    }
    if (first) channel.write(first);
    // Of a channel that is closed already ssh2 says nothing more, neither that its input was taken nor that it was not.
    const over = new AbortController();
    this.exit.then(
      () => over.abort(),
      () => undefined,
    );
    const signal = AbortSignal.any([this.stopped.signal, over.signal]);
    try {
      await pipeline(stdin, touching(this.stall.touch), channel.stdin, { signal });
      return undefined;
    } catch (error) {
      channel.end();
      if (!over.signal.aborted || this.stopped.signal.aborted) return error;
      if (stdin.readableEnded) return undefined;
      return new AppError(
        'host_command_failed',
        { detail: `${name} ended before it had read its input` },
        { cause: error },
      );
    }
  }
}

const isStream = (stdin: Readable | string | undefined): stdin is Readable =>
  stdin !== undefined && typeof stdin !== 'string';
