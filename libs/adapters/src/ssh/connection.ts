import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { AppError } from '@airdock/core/errors';
import ssh2, { type Client, type ClientChannel, type ServerHostKeyAlgorithm } from 'ssh2';

export interface SshTarget {
  address: string;
  port: number;
  username: string;
  privateKey?: string | undefined;
  passphrase?: string | undefined;
  password?: string | undefined;
  /** The pinned host key: its `SHA256:` fingerprint. */
  hostKeyFingerprint: string;
}

export interface ExecOptions {
  /** Written to the command's standard input; destroyed on failure. */
  stdin?: Readable | string | undefined;
  signal?: AbortSignal | undefined;
  /** Run as root through `sudo -n` when the user is another. */
  sudo?: boolean;
  /** Ends the command when it prints and takes nothing for this long. Default 120 000. */
  stallTimeoutMs?: number;
}

export interface ExecResult {
  exitCode: number;
  /** At most 1 MiB is kept. */
  stdout: string;
  stderr: string;
}

const maxOutputBytes = 1024 * 1024;
const connectTimeoutMs = 10_000;

/** `SHA256:` and base64 without padding, as OpenSSH prints fingerprints. */
export const fingerprintOf = (key: Buffer): string => `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`;

/**
 * The fingerprint of a host key given as `SHA256:…`, or as a line of `ssh-keyscan` or of a `.pub` file. Throws `request_invalid`.
 */
export function parseHostKey(text: string): string {
  const trimmed = text.trim();
  if (/^SHA256:[A-Za-z0-9+/]{43}$/.test(trimmed)) return trimmed;
  const base64 = /(?:^|\s)(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]+=*)(?:\s|$)/.exec(trimmed)?.[1];
  if (!base64)
    throw new AppError('request_invalid', {
      detail: 'hostKey: give SHA256:… or a public key line, e.g. from `ssh-keyscan` or /etc/ssh/ssh_host_ed25519_key.pub',
    });
  return fingerprintOf(Buffer.from(base64, 'base64'));
}

/** Checks that a private key can be read. Returns its public key's fingerprint. Throws `credential_invalid`. */
export function parsePrivateKey(privateKey: string, passphrase?: string): { fingerprint: string; type: string } {
  const key = ssh2.utils.parseKey(privateKey, passphrase);
  // The message of ssh2 may quote the key; it stays out.
  if (key instanceof Error)
    throw new AppError('credential_invalid', {
      detail: passphrase ? 'the key cannot be read with this passphrase' : 'the key cannot be read; if it is encrypted, give its passphrase',
    });
  const first = Array.isArray(key) ? key[0] : key;
  if (!first?.isPrivateKey()) throw new AppError('credential_invalid', { detail: 'this is a public key' });
  return { fingerprint: fingerprintOf(first.getPublicSSH()), type: first.type };
}

// A server shows one of its keys, the first that the client asks for. The pinned one may be any of them.
const hostKeyTypes: ServerHostKeyAlgorithm[][] = [
  ['ssh-ed25519'],
  ['ecdsa-sha2-nistp256', 'ecdsa-sha2-nistp384', 'ecdsa-sha2-nistp521'],
  ['rsa-sha2-512', 'rsa-sha2-256'],
];

/**
 * Connects and logs in, after the host has shown the pinned key.
 * Throws `host_unreachable`, `host_timeout`, `host_key_mismatch` (with both fingerprints), `host_auth_failed`.
 */
export async function connectSsh(target: SshTarget, signal?: AbortSignal): Promise<SshConnection> {
  let mismatch: AppError | undefined;
  for (const serverHostKey of hostKeyTypes) {
    try {
      return await connectOnce(target, serverHostKey, signal);
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== 'host_key_mismatch') throw error;
      // A type that the host does not have shows no key; what it did show is the better message.
      mismatch = mismatch?.details.seen ? mismatch : error;
    }
  }
  throw mismatch ?? new AppError('host_key_mismatch');
}

async function connectOnce(target: SshTarget, serverHostKey: ServerHostKeyAlgorithm[], signal?: AbortSignal): Promise<SshConnection> {
  signal?.throwIfAborted();
  const client = new ssh2.Client();
  let seen: string | undefined;
  let abort = () => undefined as unknown;
  const where = `${target.address}:${target.port}`;
  try {
    await new Promise<void>((resolve, reject) => {
      abort = () => reject(signal?.reason);
      signal?.addEventListener('abort', abort, { once: true });
      client
        .once('ready', resolve)
        .once('error', reject)
        .once('close', () => reject(Object.assign(new Error('the connection was closed'), { level: 'client-socket' })))
        .connect({
          host: target.address,
          port: target.port,
          username: target.username,
          ...(target.privateKey ? { privateKey: target.privateKey } : {}),
          ...(target.passphrase ? { passphrase: target.passphrase } : {}),
          ...(target.password ? { password: target.password } : {}),
          readyTimeout: connectTimeoutMs,
          keepaliveInterval: 5_000,
          keepaliveCountMax: 3,
          algorithms: { serverHostKey, cipher: { prepend: ['aes128-gcm@openssh.com'], append: [], remove: [] } },
          hostVerifier: (key: Buffer) => {
            seen = fingerprintOf(key);
            return seen === target.hostKeyFingerprint;
          },
        });
    });
  } catch (cause) {
    client.on('error', () => undefined).destroy();
    if (cause instanceof AppError) throw cause;
    signal?.throwIfAborted();
    const { level, message, code } = cause as Error & { level?: string; code?: string };
    const details = { host: where };
    if (seen && seen !== target.hostKeyFingerprint)
      throw new AppError('host_key_mismatch', {
        ...details,
        detail: `pinned ${target.hostKeyFingerprint}, but ${where} shows ${seen}`,
        pinned: target.hostKeyFingerprint,
        seen,
      });
    if (/no matching host key/i.test(message))
      throw new AppError('host_key_mismatch', { ...details, detail: `${where} has no key of the pinned kind`, pinned: target.hostKeyFingerprint });
    if (level === 'client-authentication') throw new AppError('host_auth_failed', { ...details, detail: `${target.username}@${where}` }, { cause });
    if (level === 'client-timeout')
      throw new AppError('host_timeout', { ...details, detail: `${where} did not answer within ${connectTimeoutMs / 1000} s` }, { cause });
    throw new AppError('host_unreachable', { ...details, detail: `${where}: ${code ?? message}` }, { cause });
  } finally {
    signal?.removeEventListener('abort', abort);
  }
  // Nagle's algorithm costs a factor of forty on small writes.
  client.setNoDelay(true);
  return new SshConnection(client, target);
}

/** One SSH connection to a host. Close it; `closed` settles when it ends for whatever reason. */
export class SshConnection implements AsyncDisposable {
  /** The reason when the connection broke; undefined when it was closed by us. */
  readonly closed: Promise<Error | undefined>;
  private failure: Error | undefined;

  constructor(
    readonly client: Client,
    private readonly target: SshTarget,
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
  async exec(argv: string[], { stdin, signal, sudo = false, stallTimeoutMs = 120_000 }: ExecOptions = {}): Promise<ExecResult> {
    signal?.throwIfAborted();
    const full = sudo && this.target.username !== 'root' ? ['sudo', '-n', '--', ...argv] : argv;
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
    const output = { stdout: collect(channel, stall.touch), stderr: collect(channel.stderr, stall.touch) };
    const stopped = new Promise<never>((_, reject) => {
      ended.signal.addEventListener('abort', () => reject(ended.signal.reason), { once: true });
    });
    const exit = Promise.race([closed, stopped]);
    // A stop may come while the input is still being fed.
    exit.catch(() => undefined);
    if (signal?.aborted) abort();
    let fed: unknown;
    try {
      if (stdin === undefined || typeof stdin === 'string') channel.end(stdin);
      // The program may end before it has read everything; its exit code tells why.
      else
        await pipeline(stdin, touching(stall.touch), channel.stdin, { signal: ended.signal }).catch((error: unknown) => {
          fed = error;
          channel.end();
        });
      const exitCode = await exit;
      if (fed && (exitCode === undefined || exitCode === 0)) throw fed;
      if (exitCode === undefined) throw this.broken(new Error('the connection was closed'));
      const result = { exitCode, stdout: output.stdout(), stderr: output.stderr() };
      if (full[0] === 'sudo' && exitCode === 1 && /^sudo: /.test(result.stderr))
        throw new AppError('host_sudo_failed', { detail: result.stderr.trim().slice(0, 500) });
      return result;
    } finally {
      stall.stop();
      signal?.removeEventListener('abort', abort);
    }
  }

  /** As `exec`, but a non-zero exit code throws `host_command_failed` with the command's own message. Returns standard output, trimmed. */
  async run(argv: string[], options?: ExecOptions): Promise<string> {
    const { exitCode, stdout, stderr } = await this.exec(argv, options);
    if (exitCode !== 0)
      throw new AppError('host_command_failed', { detail: `${argv.slice(0, 3).join(' ')}: ${(stderr || stdout).trim().slice(-1000)}`, exitCode });
    return stdout.trim();
  }

  /** Errors of a broken connection in our words. */
  broken(cause: unknown): AppError {
    if (cause instanceof AppError) return cause;
    return new AppError('host_unreachable', { detail: `${this.target.address}: ${(this.failure ?? (cause as Error)).message}` }, { cause });
  }

  async close(): Promise<void> {
    this.client.end();
    const timer = setTimeout(() => this.client.destroy(), 2_000);
    await this.closed;
    clearTimeout(timer);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** POSIX single quotes: everything in them is literal. */
const quote = (argument: string): string => (/^[A-Za-z0-9_/:=.,@%+-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`);

/** Keeps the first megabyte of a stream, and drains the rest. */
function collect(stream: Readable, touch: () => void): () => string {
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on('data', (chunk: Buffer) => {
    touch();
    if (bytes < maxOutputBytes) chunks.push(chunk.subarray(0, maxOutputBytes - bytes));
    bytes += chunk.length;
  });
  return () => Buffer.concat(chunks).toString('utf8');
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
