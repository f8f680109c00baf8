import { connect } from 'node:net';
import type { Duplex, Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { AppError } from '@airdock/core/errors';
import ssh2, { type Client, type ClientChannel, type ServerHostKeyAlgorithm } from 'ssh2';
import { algorithmsToOffer, type SshAlgorithms } from './algorithms.js';
import { commandError } from './command-error.js';
import { fingerprintOf, readablePrivateKey } from './keys.js';

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

/** Gets the fingerprint that a host shows, before any credential is sent; answers the one that is pinned from now on, which may be another. */
export type FirstUse = (seen: string) => Promise<string>;

export interface ConnectOptions {
  signal?: AbortSignal | undefined;
  /** A connection to a jump host, through which this one goes. It belongs to the new one from here on: it is closed with it, and when connecting fails. */
  via?: SshConnection | undefined;
}

/** How the user becomes root on a host. */
export type Elevation = 'root' | 'sudo without password' | 'sudo with password';

export interface ExecOptions {
  /** Written to the command's standard input; destroyed on failure. */
  stdin?: Readable | string | undefined;
  signal?: AbortSignal | undefined;
  /** Run as root, through sudo when the user is another. */
  sudo?: boolean;
  /** Ends the command when it prints and takes nothing for this long. Default 120 000. */
  stallTimeoutMs?: number;
  /** Called whenever the command prints something. */
  onOutput?: (() => void) | undefined;
}

export interface ExecResult {
  exitCode: number;
  /** At most 1 MiB is kept. */
  stdout: string;
  stderr: string;
  /** There was more than that on standard output. */
  isCut: boolean;
}

const maxOutputBytes = 1024 * 1024;
const connectTimeoutMs = 10_000;
/** For the first commands on a host, which have nothing to do: one that hangs is not waited for as long as one that works. */
export const firstCommandMs = 30_000;
// -S: reads one line of its standard input, byte by byte, so that what follows is the command's. -k: asks in any case, and remembers nothing.
const sudoWithPassword = ['sudo', '-S', '-k', '-p', '', '--'];

// A server shows one of its keys, the first that the client asks for. The pinned one may be any of them.
const hostKeyTypes: ServerHostKeyAlgorithm[][] = [
  ['ssh-ed25519'],
  ['ecdsa-sha2-nistp256', 'ecdsa-sha2-nistp384', 'ecdsa-sha2-nistp521'],
  ['rsa-sha2-512', 'rsa-sha2-256'],
];

/**
 * Connects and logs in, after the host has shown the pinned key.
 * Throws `host_unreachable`, `host_timeout`, `host_key_mismatch` (with both fingerprints), `host_auth_failed`; `detail` names the host and the way to it.
 */
export async function connectSsh(target: SshTarget, options: ConnectOptions = {}): Promise<SshConnection> {
  // On first use all types are asked for at once: the first one that the host has is taken.
  const attempts = typeof target.hostKeyFingerprint === 'string' ? hostKeyTypes : [hostKeyTypes.flat()];
  let mismatch: AppError | undefined;
  try {
    for (const serverHostKey of attempts) {
      try {
        return await connectOnce(target, serverHostKey, options);
      } catch (error) {
        if (!(error instanceof AppError) || error.code !== 'host_key_mismatch') throw error;
        // A type that the host does not have shows no key; what it did show is the better message.
        mismatch = mismatch?.details.seen ? mismatch : error;
      }
    }
    throw mismatch ?? new AppError('host_key_mismatch');
  } catch (error) {
    await options.via?.close();
    throw error;
  }
}

async function connectOnce(target: SshTarget, serverHostKey: ServerHostKeyAlgorithm[], { signal, via }: ConnectOptions): Promise<SshConnection> {
  signal?.throwIfAborted();
  const client = new ssh2.Client();
  const { hostKeyFingerprint, password } = target;
  let pinned = typeof hostKeyFingerprint === 'string' ? hostKeyFingerprint : undefined;
  let seen: string | undefined;
  let notPinned: unknown;
  let asksForMore = false;
  let abort = () => undefined as unknown;
  let socket: Duplex;
  const where = `${target.address}:${target.port}${via ? ` through ${via.where}` : ''}`;
  const verify = (key: Buffer, answer: (permitted: boolean) => void) => {
    seen = fingerprintOf(key);
    // Asked once: keys are exchanged again in the life of a connection.
    if (pinned !== undefined || typeof hostKeyFingerprint === 'string') return answer(seen === pinned);
    hostKeyFingerprint(seen).then(
      (answered) => {
        pinned = answered;
        answer(seen === pinned);
      },
      (error: unknown) => {
        notPinned = error;
        answer(false);
      },
    );
  };
  try {
    // Nagle's algorithm costs a factor of forty on small writes.
    socket = (await via?.forwardTo(target)) ?? connect({ host: target.address, port: target.port, noDelay: true });
    await new Promise<void>((resolve, reject) => {
      abort = () => reject(signal?.reason);
      signal?.addEventListener('abort', abort, { once: true });
      if (signal?.aborted) abort();
      let isAnswered = false;
      client
        .once('ready', resolve)
        .once('error', reject)
        .once('close', () => reject(Object.assign(new Error('the connection was closed'), { level: 'client-socket' })))
        .on('keyboard-interactive', (_name, _instructions, _language, prompts, finish) => {
          // The first hidden question is that for the password. A second one is for a one-time code, or for a new password.
          const isFirst = !isAnswered && prompts.some(({ echo }) => !echo);
          asksForMore ||= !isFirst;
          isAnswered ||= isFirst;
          finish(prompts.map(({ echo }) => (isFirst && !echo ? (password ?? '') : '')));
        })
        .connect({
          sock: socket,
          username: target.username,
          ...(target.privateKey ? readablePrivateKey(target.privateKey, target.passphrase) : {}),
          ...(password ? { password, tryKeyboard: true } : {}),
          // Not 'none' first, which every sshd refuses, and OpenSSH only after some milliseconds.
          authHandler: [
            ...(password ? ['password' as const] : []),
            ...(target.privateKey ? ['publickey' as const] : []),
            ...(password ? ['keyboard-interactive' as const] : []),
          ],
          readyTimeout: connectTimeoutMs,
          keepaliveInterval: 5_000,
          keepaliveCountMax: 3,
          algorithms: { ...algorithmsToOffer(target.algorithms), serverHostKey },
          hostVerifier: verify,
        });
    });
  } catch (cause) {
    client.on('error', () => undefined).destroy();
    if (cause instanceof AppError) throw cause;
    signal?.throwIfAborted();
    if (notPinned) throw notPinned;
    const { level, message, code } = cause as Error & { level?: string; code?: string };
    const details = { host: where };
    if (seen && pinned && seen !== pinned)
      throw new AppError('host_key_mismatch', { ...details, detail: `pinned ${pinned}, but ${where} shows ${seen}`, pinned, seen });
    if (/no matching host key/i.test(message))
      throw new AppError('host_key_mismatch', {
        ...details,
        detail: pinned ? `${where} has no key of the pinned kind` : `${where} has no Ed25519, ECDSA or RSA key`,
        pinned,
      });
    if (level === 'client-authentication')
      throw new AppError(
        'host_auth_failed',
        { ...details, detail: `${target.username}@${where}${asksForMore ? ', which asks for more than the password' : ''}` },
        { cause },
      );
    if (level === 'client-timeout')
      throw new AppError('host_timeout', { ...details, detail: `${where} did not answer within ${connectTimeoutMs / 1000} s` }, { cause });
    throw new AppError('host_unreachable', { ...details, detail: `${where}: ${code ?? message}` }, { cause });
  } finally {
    signal?.removeEventListener('abort', abort);
  }
  return new SshConnection(client, socket, target, where, via);
}

/** One SSH connection to a host. Close it; `closed` settles when it ends for whatever reason. */
export class SshConnection implements AsyncDisposable {
  /** The reason when the connection broke; undefined when it was closed by us. */
  readonly closed: Promise<Error | undefined>;
  private failure: Error | undefined;
  private becomesRoot: Promise<Elevation> | undefined;

  constructor(
    readonly client: Client,
    private readonly socket: Duplex,
    private readonly target: SshTarget,
    /** Address, port, and the jump hosts between. */
    readonly where: string,
    private readonly via: SshConnection | undefined,
  ) {
    client.on('error', (error) => {
      this.failure ??= error;
    });
    this.closed = new Promise((resolve) => client.once('close', () => resolve(this.failure)));
  }

  /**
   * Runs a program with arguments. Nothing is spliced into a command line: each argument is quoted for the remote shell as it is.
   * A non-zero exit code is a result, not an error. Throws `host_unreachable` when the connection breaks, `host_timeout` on a stall,
   * `host_sudo_failed`, and the signal's reason.
   */
  async exec(argv: string[], { sudo = false, ...options }: ExecOptions = {}): Promise<ExecResult> {
    const elevation = sudo ? await this.elevation(options.signal) : 'root';
    const result =
      elevation === 'root'
        ? await this.start(argv, options)
        : elevation === 'sudo without password'
          ? await this.start(['sudo', '-n', '--', ...argv], options)
          : // Through `sh`, as when it was tried: where some programs need no password, their input must not begin with one.
            await this.start([...sudoWithPassword, 'sh', '-c', 'exec "$@"', 'sh', ...argv], { ...options, firstLine: this.target.sudoPassword });
    if (elevation !== 'root' && result.exitCode === 1 && /^(?:sudo: |Sorry, try again)/.test(result.stderr)) throw this.sudoFailed(result);
    return { ...result, stderr: this.withoutSecrets(result.stderr) };
  }

  /**
   * How the user becomes root; asked of the host once per connection, so that a wrong password is tried once. Throws `host_sudo_failed`.
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
    const without = await this.start(['sudo', '-k', '-n', '--', 'sh', '-c', ':'], { signal, stallTimeoutMs: firstCommandMs });
    if (without.exitCode === 0) return 'sudo without password';
    if (without.exitCode === 127) throw new AppError('host_sudo_failed', { detail: `${this.where} has no sudo: ${this.words(without)}` });
    if (!sudoPassword) throw this.sudoFailed(without);
    const result = await this.start([...sudoWithPassword, 'sh', '-c', ':'], { signal, stallTimeoutMs: firstCommandMs, firstLine: sudoPassword });
    if (result.exitCode !== 0) throw this.sudoFailed(result);
    return 'sudo with password';
  }

  private sudoFailed(result: ExecResult): AppError {
    const { username, sudoPassword } = this.target;
    const words = this.words(result);
    const reason = /must have a tty/.test(words)
      ? 'requiretty is set in the sudoers of the host'
      : sudoPassword
        ? `sudo did not let ${username} in with the sudoPassword of the credential`
        : `sudo did not let ${username} in, and the credential has no sudoPassword`;
    return new AppError('host_sudo_failed', { detail: `${this.where}: ${reason}: ${words}` });
  }

  /** What a command said when it failed, bounded. */
  private words({ stderr, stdout }: ExecResult): string {
    return this.withoutSecrets((stderr || stdout).trim()).slice(-1000);
  }

  /** A host that is hostile, or talks too much, may say the passwords that it was given. */
  private withoutSecrets(text: string): string {
    const { password, sudoPassword } = this.target;
    return [password, sudoPassword].reduce<string>((rest, secret) => (secret ? rest.replaceAll(secret, '…') : rest), text);
  }

  /** `firstLine` goes before everything else to the standard input. */
  private async start(
    full: string[],
    { stdin, signal, stallTimeoutMs = 120_000, onOutput, firstLine }: Omit<ExecOptions, 'sudo'> & { firstLine?: string | undefined },
  ): Promise<ExecResult> {
    signal?.throwIfAborted();
    const first = firstLine === undefined ? '' : `${firstLine}\n`;
    // Its end may be in the same packet as its beginning: whoever listens later misses it.
    let code: number | undefined;
    let isClosed = () => undefined as unknown;
    const closed = new Promise<number | undefined>((resolve) => {
      isClosed = () => resolve(code);
    });
    const channel = await new Promise<ClientChannel>((resolve, reject) => {
      // ssh2 throws at once when the connection is already closed.
      this.client.exec(full.map(quote).join(' '), (error, opened) => {
        if (error) return reject(error);
        opened.once('exit', (value: number | null) => {
          code = value ?? 255;
        });
        opened.once('close', isClosed);
        resolve(opened);
      });
    }).catch((error: unknown) => {
      throw this.broken(error);
    });
    const ended = new AbortController();
    const stop = (reason: unknown) => {
      ended.abort(reason);
      // The server keeps the channel until the program has gone, which nobody waits for here.
      channel.signal('TERM');
      channel.close();
    };
    const stall = stallTimer(stallTimeoutMs, () => stop(new AppError('host_timeout', { detail: `${full[0]} did nothing for ${stallTimeoutMs / 1000} s` })));
    const abort = () => stop(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    const onChunk = () => {
      stall.touch();
      onOutput?.();
    };
    const output = { stdout: collect(channel, onChunk), stderr: collect(channel.stderr, stall.touch) };
    const stopped = new Promise<never>((_, reject) => {
      ended.signal.addEventListener('abort', () => reject(ended.signal.reason), { once: true });
    });
    const exit = Promise.race([closed, stopped]);
    // A stop may come while the input is still being fed.
    exit.catch(() => undefined);
    if (signal?.aborted) abort();
    let fed: unknown;
    try {
      if (stdin === undefined || typeof stdin === 'string') channel.end(first + (stdin ?? ''));
      // The program may end before it has read everything; its exit code tells why.
      else {
        if (first) channel.write(first);
        await pipeline(stdin, touching(stall.touch), channel.stdin, { signal: ended.signal }).catch((error: unknown) => {
          fed = error;
          channel.end();
        });
      }
      const exitCode = await exit;
      if (fed && (exitCode === undefined || exitCode === 0)) throw fed;
      if (exitCode === undefined) throw this.broken(new Error('the connection was closed'));
      return { exitCode, stdout: output.stdout.text(), stderr: output.stderr.text(), isCut: output.stdout.isCut() };
    } finally {
      stall.stop();
      signal?.removeEventListener('abort', abort);
    }
  }

  /** As `exec`, but a non-zero exit code throws `host_command_failed` with the command's own message, or `host_disk_full`; so does more output than is kept. Returns standard output, trimmed. */
  async run(argv: string[], options?: ExecOptions): Promise<string> {
    const result = await this.exec(argv, options);
    const { exitCode } = result;
    const command = argv.slice(0, 3).join(' ');
    if (exitCode !== 0) throw commandError('host_command_failed', { detail: `${command}: ${this.words(result)}`, exitCode });
    // Half an answer is none.
    if (result.isCut)
      throw new AppError('host_command_failed', {
        detail: `${command}: printed more than ${maxOutputBytes} bytes; does the login shell of ${this.target.username} print something at every command?`,
      });
    return result.stdout.trim();
  }

  /** A channel from this host to another one. Throws `host_unreachable` when this host cannot, or may not, open it. */
  async forwardTo({ address, port }: { address: string; port: number }): Promise<ClientChannel> {
    return new Promise<ClientChannel>((resolve, reject) => {
      this.client.forwardOut('127.0.0.1', 0, address, port, (error, channel) => (error ? reject(error) : resolve(channel)));
    }).catch((cause: Error & { reason?: unknown }) => {
      if (cause.reason === undefined) throw this.broken(cause);
      const isForbidden = /prohibited/i.test(cause.message);
      const detail = `${address}:${port} through ${this.where}: ${cause.message}${isForbidden ? '; its sshd needs AllowTcpForwarding' : ''}`;
      throw new AppError('host_unreachable', { detail, host: `${address}:${port}` }, { cause });
    });
  }

  /** A channel to a socket on the host, with the rights of the user that logged in. Undefined where the host does not open it. Throws `host_unreachable`. */
  async forwardToSocket(path: string): Promise<ClientChannel | undefined> {
    return new Promise<ClientChannel>((resolve, reject) => {
      // ssh2 throws at once when the connection is already closed.
      this.client.openssh_forwardOutStreamLocal(path, (error, channel) => (error ? reject(error) : resolve(channel)));
    }).catch((cause: Error & { reason?: unknown }) => {
      if (cause.reason === undefined) throw this.broken(cause);
      return undefined;
    });
  }

  /** What is written meanwhile goes out together: ssh2 writes a packet in three pieces, each of which would be a system call and a segment of its own. */
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
    await new Promise<void>((resolve, reject) => {
      try {
        // Ending a forward that never was: the server says no, at once. ssh2 has no other question.
        this.client.unforwardIn('127.0.0.1', 1, () => resolve());
        void this.closed.then(() => reject(new Error('the connection was closed')));
      } catch (error) {
        reject(error);
      }
    }).catch((error: unknown) => {
      throw this.broken(error);
    });
    return performance.now() - started;
  }

  /** Errors of a broken connection in our words. */
  broken(cause: unknown): AppError {
    if (cause instanceof AppError) return cause;
    return new AppError('host_unreachable', { detail: `${this.where}: ${(this.failure ?? (cause as Error)).message}` }, { cause });
  }

  /** Closes the connection, and those to its jump hosts. */
  async close(): Promise<void> {
    this.client.end();
    const timer = setTimeout(() => {
      this.client.destroy();
      // A channel through a host that is gone ends only with the connection to that host.
      void this.via?.close();
    }, 2_000);
    await this.closed;
    clearTimeout(timer);
    await this.via?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** POSIX single quotes: everything in them is literal. */
const quote = (argument: string): string => (/^[A-Za-z0-9_/:=.,@%+-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`);

/** Keeps the first megabyte of a stream, and drains the rest. */
function collect(stream: Readable, touch: () => void): { text: () => string; isCut: () => boolean } {
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on('data', (chunk: Buffer) => {
    touch();
    if (bytes < maxOutputBytes) chunks.push(chunk.subarray(0, maxOutputBytes - bytes));
    bytes += chunk.length;
  });
  return { text: () => Buffer.concat(chunks).toString('utf8'), isCut: () => bytes > maxOutputBytes };
}

const touching = (touch: () => void) =>
  async function* (source: AsyncIterable<Buffer>) {
    for await (const chunk of source) {
      touch();
      yield chunk;
    }
  };

function stallTimer(ms: number, onStall: () => void) {
  let last = Date.now();
  const check = () => {
    if (Date.now() - last < ms) return;
    clearInterval(timer);
    onStall();
  };
  const timer = setInterval(check, Math.min(ms, 1_000));
  const touch = () => {
    last = Date.now();
  };
  return { touch, stop: () => clearInterval(timer) };
}
