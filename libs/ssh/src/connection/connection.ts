import type { Duplex } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { cleanLine, cleanText } from '@airdock/core/host/host-text';
import type { Client, ClientChannel } from 'ssh2';
import { commandError } from '../command/command-error.js';
import { betweenMarks, maxOutputBytes } from '../command/command-output.js';
import { firstCommandMs } from '../command/command-time.js';
import type { HostBuffers } from '../command/host-buffers.js';
import { marked, newMark, shellLine } from '../command/shell-line.js';
import type { SshAlgorithms } from './algorithms.js';
import { CommandRun, type ExecOptions, type ExecResult } from './command-run.js';
import { SessionSlots } from './session-slots.js';
import { brokenRule, cleanError, type SshError } from './ssh-error.js';
import { followSession, type OpenSession, refusedExec, shellUnusable, sudoRefused } from './ssh-session.js';

/** Where to log in, as whom, and which host key is expected. */
export interface SshTarget {
  address: string;
  port: number;
  username: string;
  privateKey?: string | undefined;
  passphrase?: string | undefined;
  /** Also what a question of keyboard-interactive authentication is answered with. */
  password?: string | undefined;
  /** Of the user, for sudo where it asks. Given to sudo on its standard input only. */
  sudoPassword?: string | undefined;
  /** The pinned host key: its `SHA256:` fingerprint. Or who pins the first one that is shown. */
  hostKeyFingerprint: string | FirstUse;
  /** Default: those of `defaultAlgorithms`. */
  algorithms?: Partial<SshAlgorithms> | undefined;
}

/**
 * Gets the fingerprint that a host shows, before any credential is sent; answers the one that is pinned from now on,
 * which may be another.
 */
export type FirstUse = (seen: string) => Promise<string>;

/** How the user becomes root on a host. */
export type Elevation = 'root' | 'sudo without password' | 'sudo with password';

/** For what an SSH server answers by itself, without starting anything. */
const answerMs = 30_000;
const closeMs = 2_000;
/**
 * So long a session that has ended for us may go on to count there: sshd lets a program end that was given up. The
 * first one has none before it.
 */
const releaseMs = { first: 3_000, later: 30_000 };
// -S: reads one line of its standard input, byte by byte, so that what follows is the command's. -k: asks in any case,
// and remembers nothing.
const sudoWithPassword = ['sudo', '-S', '-k', '-p', '', '--'];

/** One SSH connection to a host. Close it; `closed` settles when it ends for whatever reason. */
export class SshConnection implements AsyncDisposable {
  /** The reason when the connection broke; undefined when it was closed by us. */
  readonly closed: Promise<AppError | undefined>;
  private failure: AppError | undefined;
  private isClosing = false;
  /** Who waits for an answer that will not come any more. */
  private readonly waiting = new Set<(error: Error) => void>();
  private becomesRoot: Promise<Elevation> | undefined;
  readonly sessions = new SessionSlots();
  /** What the login prints around the programs that it runs, if anything: one line of it. */
  noise: string | undefined;

  constructor(
    readonly client: Client,
    private readonly socket: Duplex,
    private readonly target: SshTarget,
    /** Address, port, and the jump hosts between. */
    readonly where: string,
    private readonly via: SshConnection | undefined,
    readonly buffers: HostBuffers,
  ) {
    this.closed = new Promise((resolve) => {
      const end = () => {
        resolve(this.failure);
        for (const reject of this.waiting) reject(new Error('the connection was closed'));
        this.sessions.end();
      };
      client.once('close', end);
      client.on('error', (error) => {
        if (!this.isClosing) this.failure ??= this.broken(error);
        // What ssh2 leaves half open the host could keep so for ever.
        this.socket.destroy();
        setTimeout(end, closeMs).unref();
      });
    });
  }

  /** Who has logged in. */
  get username(): string {
    return this.target.username;
  }

  /** Ends the connection for a reason, which `closed` and everything that still runs on it get to know. */
  fail(reason: AppError): void {
    this.client.emit('error', reason);
  }

  /**
   * Runs a program with arguments. Nothing is spliced into a command line: each argument is quoted for the remote shell
   * as it is. A non-zero exit code is a result, not an error. Throws `host_unreachable` when the connection breaks,
   * `host_timeout` on a stall, `host_command_timeout`, `host_output_exceeded`, `host_buffer_exceeded`,
   * `host_sudo_failed`, and the signal's reason.
   */
  async exec(argv: string[], { sudo = false, ...options }: ExecOptions = {}): Promise<ExecResult> {
    const elevation = sudo ? await this.elevation(options.signal) : 'root';
    const mark = newMark();
    // Marked once more: sudo, and what PAM lets it say, print too. Through `sh`, as when it was tried: where some
    // programs need no password, their input must not begin with one.
    const result =
      elevation === 'root'
        ? await this.start(argv, options)
        : elevation === 'sudo without password'
          ? await this.start(['sudo', '-n', '--', ...marked(argv, mark)], options)
          : await this.start([...sudoWithPassword, ...marked(argv, mark)], {
              ...options,
              firstLine: this.target.sudoPassword,
            });
    const [stdout, stderr] = elevation === 'root' ? [result.stdout, result.stderr] : this.within(result, mark);
    return { exitCode: result.exitCode, stdout, stderr: cleanText(this.withoutSecrets(stderr), maxOutputBytes) };
  }

  /** Both outputs of what sudo has run. Throws `host_sudo_failed` where it has run nothing. */
  private within(result: ExecResult, mark: string): [stdout: string, stderr: string] {
    const stdout = betweenMarks(result.stdout, mark);
    if (stdout === undefined) throw this.sudoFailed(result);
    const stderr = betweenMarks(result.stderr, mark);
    for (const one of [stdout, stderr]) this.noteNoise(one?.noise ?? '');
    return [stdout.text, stderr?.text ?? result.stderr];
  }

  private noteNoise(text: string): void {
    if (text !== '') this.noise ??= cleanLine(this.withoutSecrets(text)) || undefined;
  }

  /**
   * How the user becomes root; asked of the host once per connection, so that a wrong password is tried once. Throws
   * `host_sudo_failed`.
   */
  elevation(signal?: AbortSignal): Promise<Elevation> {
    this.becomesRoot ??= this.findElevation(signal).catch((error: unknown) => {
      if (!(error instanceof AppError) || error.code !== 'host_sudo_failed') this.becomesRoot = undefined;
      throw error;
    });
    return this.becomesRoot;
  }

  private async findElevation(signal?: AbortSignal): Promise<Elevation> {
    const { username, sudoPassword } = this.target;
    if (username === 'root') return 'root';
    // -k: an answer that holds for the whole connection, not for as long as sudo remembers an earlier login.
    const without = await this.start(['sudo', '-k', '-n', '--', 'sh', '-c', ':'], {
      signal,
      stallTimeoutMs: firstCommandMs,
    });
    if (without.exitCode === 0) return 'sudo without password';
    if (without.exitCode === 127)
      throw new AppError('host_sudo_failed', { detail: `${this.where} has no sudo: ${this.words(without)}` });
    if (!sudoPassword) throw this.sudoFailed(without);
    const result = await this.start([...sudoWithPassword, 'sh', '-c', ':'], {
      signal,
      stallTimeoutMs: firstCommandMs,
      firstLine: sudoPassword,
    });
    if (result.exitCode !== 0) throw this.sudoFailed(result);
    return 'sudo with password';
  }

  private sudoFailed(result: ExecResult): AppError {
    return sudoRefused(this.where, this.target.username, Boolean(this.target.sudoPassword), this.words(result));
  }

  /** What a command said when it failed, bounded. */
  private words({ stderr, stdout }: ExecResult): string {
    return cleanText(this.withoutSecrets((stderr || stdout).slice(-4000).trim()).slice(-1000));
  }

  /** A host that is hostile, or talks too much, may say the passwords that it was given. */
  private withoutSecrets(text: string): string {
    const { password, sudoPassword } = this.target;
    return [password, sudoPassword].reduce<string>(
      (rest, secret) => (secret ? rest.replaceAll(secret, '…') : rest),
      text,
    );
  }

  /** `firstLine` goes before everything else to the standard input. */
  private async start(
    argv: string[],
    options: Omit<ExecOptions, 'sudo'> & { firstLine?: string | undefined },
  ): Promise<ExecResult> {
    options.signal?.throwIfAborted();
    const mark = newMark();
    const session = await this.openSession(shellLine(marked(argv, mark)), options.signal);
    const run = new CommandRun(session, { ...options, name: argv[0] ?? '', mark, buffers: this.buffers, errors: this });
    // The end of the channel comes first, with an exit code perhaps, where it comes at all.
    const lost = (error: Error) => setImmediate(() => run.stop(this.broken(error)));
    this.waiting.add(lost);
    try {
      return await run.result();
    } finally {
      this.waiting.delete(lost);
      for (const text of run.noise) this.noteNoise(text);
    }
  }

  /**
   * A session in which the login shell reads this line. Throws `host_session_refused`, `host_shell_unusable`, what
   * breaks the connection, and the signal's reason.
   */
  private async openSession(line: string, signal: AbortSignal | undefined): Promise<OpenSession> {
    const since = Date.now();
    for (;;) {
      await this.sessions.take(signal);
      try {
        const session = await this.answered<OpenSession>(signal, (resolve, reject) => {
          this.client.exec(line, (error, channel) =>
            error ? reject(refusedExec(error, this.where, this.target.username)) : resolve(followSession(channel)),
          );
        });
        this.sessions.hasOpened = true;
        void session.freed.then(() => this.sessions.give());
        return session;
      } catch (error) {
        const isRefusal = (error as SshError).reason !== undefined;
        const others = isRefusal ? this.sessions.refuse() : this.sessions.give();
        if (!isRefusal) throw error;
        if (others) continue;
        // One that has just ended, as we see it, may still count there.
        if (Date.now() - since > (this.sessions.hasOpened ? releaseMs.later : releaseMs.first))
          throw new AppError(
            'host_session_refused',
            { detail: `${this.where}: ${(error as Error).message}` },
            { cause: error },
          );
        await delay(100, undefined, { signal });
      }
    }
  }

  /**
   * An answer of the SSH server itself: it comes soon, or the host cannot be waited for. ssh2 throws at once when the
   * connection is already closed.
   */
  private async answered<T>(
    signal: AbortSignal | undefined,
    ask: (resolve: (answer: T) => void, reject: (error: unknown) => void) => void,
  ): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    let abort = () => undefined as unknown;
    let giveUp = (_error: Error) => undefined as unknown;
    try {
      return await new Promise<T>((resolve, reject) => {
        timer = setTimeout(
          () => reject(new AppError('host_timeout', { detail: `${this.where}: no answer for ${answerMs / 1000} s` })),
          answerMs,
        );
        abort = () => reject(signal?.reason);
        signal?.addEventListener('abort', abort, { once: true });
        giveUp = reject;
        this.waiting.add(giveUp);
        ask(resolve, reject);
      });
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      // Whoever asked knows best what a refusal means.
      if ((error as SshError).reason !== undefined) throw cleanError(error);
      throw this.broken(error);
    } finally {
      clearTimeout(timer);
      this.waiting.delete(giveUp);
      signal?.removeEventListener('abort', abort);
    }
  }

  /**
   * As `exec`, but a non-zero exit code throws `host_command_failed` with the command's own message, or
   * `host_disk_full`. Returns standard output, trimmed.
   */
  async run(argv: string[], options?: ExecOptions): Promise<string> {
    const result = await this.exec(argv, options);
    const { exitCode } = result;
    if (exitCode !== 0)
      throw commandError('host_command_failed', {
        detail: `${argv.slice(0, 3).join(' ')}: ${this.words(result)}`,
        exitCode,
      });
    return result.stdout.trim();
  }

  /** A channel from this host to another one. Throws `host_unreachable` when this host cannot, or may not, open it. */
  async forwardTo({ address, port }: { address: string; port: number }): Promise<ClientChannel> {
    return this.answered<ClientChannel>(undefined, (resolve, reject) => {
      this.client.forwardOut('127.0.0.1', 0, address, port, (error, channel) =>
        error ? reject(error) : resolve(channel),
      );
    }).catch((cause: SshError) => {
      if (cause.reason === undefined) throw cause;
      const isForbidden = /prohibited/i.test(cause.message);
      const detail = `${address}:${port} through ${this.where}: ${cause.message}${isForbidden ? '; AllowTcpForwarding of its sshd must be yes, all or local' : ''}`;
      throw new AppError(
        isForbidden ? 'host_forwarding_refused' : 'host_unreachable',
        { detail, host: `${address}:${port}` },
        { cause },
      );
    });
  }

  /**
   * A channel to a socket on the host, with the rights of the user that logged in. Undefined where the host does not
   * open it. Throws `host_unreachable`, `host_timeout`.
   */
  async forwardToSocket(path: string): Promise<ClientChannel | undefined> {
    return this.answered<ClientChannel>(undefined, (resolve, reject) => {
      this.client.openssh_forwardOutStreamLocal(path, (error, channel) => (error ? reject(error) : resolve(channel)));
    }).catch((cause: SshError) => {
      if (cause.reason === undefined) throw cause;
      return undefined;
    });
  }

  /**
   * What is written meanwhile goes out together: ssh2 writes a packet in three pieces, each of which would be a system
   * call and a segment of its own.
   */
  batched<T>(write: () => T): T {
    this.socket.cork();
    try {
      return write();
    } finally {
      this.socket.uncork();
    }
  }

  /** Milliseconds of one question and its answer; nothing is started on the host for it. */
  async roundTrip(): Promise<number> {
    const started = performance.now();
    // Ending a forward that never was: the server says no, at once. ssh2 has no other question.
    await this.answered<void>(undefined, (resolve) => this.client.unforwardIn('127.0.0.1', 1, () => resolve()));
    return performance.now() - started;
  }

  /**
   * Lets the host listen for a tunnel, on a port of `address` or a Unix socket, or no longer. Throws ssh2's error of a
   * refusal, and what breaks the connection.
   */
  async forwardFrom(place: number | string, isWanted: boolean, address = '127.0.0.1'): Promise<void> {
    await this.answered<void>(undefined, (resolve, reject) => {
      const done = (error?: Error | null) => (error ? reject(Object.assign(error, { reason: 'refused' })) : resolve());
      if (typeof place === 'number') {
        if (isWanted) this.client.forwardIn(address, place, done);
        else this.client.unforwardIn(address, place, done);
      } else if (isWanted) this.client.openssh_forwardInStreamLocal(place, done);
      else this.client.openssh_unforwardInStreamLocal(place, done);
    });
  }

  /** The login shell began no program, and ended with this code, if it ended. */
  unusable(exitCode: number | undefined, said: string): AppError {
    return shellUnusable(this.where, this.target.username, exitCode, this.withoutSecrets(said));
  }

  /** Errors of a broken connection in our words. */
  broken(cause: unknown): AppError {
    if (cause instanceof AppError) return cause;
    if (this.failure) return this.failure;
    const clean = cleanError(cause);
    return new AppError(
      brokenRule(clean) ?? 'host_unreachable',
      { detail: `${this.where}: ${clean.message}` },
      { cause: clean },
    );
  }

  /** Closes the connection, and those to its jump hosts. */
  async close(): Promise<void> {
    this.isClosing = true;
    this.client.end();
    // Also one that the host has made half closed, or a channel through a host that is gone: that ends only with the
    // connection to that host.
    const timer = setTimeout(
      () => this.client.emit('error', new Error('the host did not close the connection')),
      closeMs,
    );
    await this.closed;
    clearTimeout(timer);
    await this.via?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
