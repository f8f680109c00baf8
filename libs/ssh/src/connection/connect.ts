import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { AppError, type ErrorCode } from '@airdock/core/errors';
import type { ConnectConfig, ServerHostKeyAlgorithm } from 'ssh2';
import { HostBuffers } from '../command/host-buffers.js';
import { algorithmsToOffer } from './algorithms.js';
import { SshConnection, type SshTarget } from './connection.js';
import { fingerprintOf, readablePrivateKey } from './keys.js';
import { brokenRule, cleanError } from './ssh-error.js';
import { ssh2 } from './ssh2.js';

/** How a connection is made. */
export interface ConnectOptions {
  signal?: AbortSignal | undefined;
  /**
   * A connection to a jump host, through which this one goes. It belongs to the new one from here on: it is closed with
   * it, and when connecting fails.
   */
  via?: SshConnection | undefined;
  /** Called before anything that the host has sent is looked at. */
  onServed?: (() => void) | undefined;
  /** What is kept in memory for the host, shared by its connections. */
  buffers?: HostBuffers | undefined;
}

/** Channels of one connection at a time, those counted that the host opens through its tunnels. */
export const maxChannels = 64;
const connectTimeoutMs = 10_000;

// A server shows one of its keys, the first that the client asks for. The pinned one may be any of them.
const hostKeyTypes: ServerHostKeyAlgorithm[][] = [
  ['ssh-ed25519'],
  ['ecdsa-sha2-nistp256', 'ecdsa-sha2-nistp384', 'ecdsa-sha2-nistp521'],
  ['rsa-sha2-512', 'rsa-sha2-256'],
];

/**
 * Connects and logs in, after the host has shown the pinned key. Throws `host_unreachable`, `host_timeout`,
 * `host_key_mismatch` (with both fingerprints), `host_auth_failed`; `detail` names the host and the way to it.
 *
 * @example
 * ```ts
 * await using host = await connectSsh({ address, port: 22, username: 'root', privateKey, hostKeyFingerprint });
 * const kernel = await host.run(['uname', '-r']);
 * ```
 */
export async function connectSsh(target: SshTarget, options: ConnectOptions = {}): Promise<SshConnection> {
  // On first use all types are asked for at once: the first one that the host has is taken.
  const attempts = typeof target.hostKeyFingerprint === 'string' ? hostKeyTypes : [hostKeyTypes.flat()];
  let mismatch: AppError | undefined;
  try {
    for (const serverHostKey of attempts) {
      try {
        return await new Login(target, serverHostKey, options).run();
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

/** One try to connect and log in. */
class Login {
  private readonly client = new (ssh2().Client)();
  /** The host, and the way to it, for errors. */
  private readonly where: string;
  private pinned: string | undefined;
  private shown: string | undefined;
  /** Why the key that was shown on first use could not be pinned. */
  private pinError: unknown;
  private isPasswordGiven = false;
  private asksForMore = false;

  constructor(
    private readonly target: SshTarget,
    private readonly serverHostKey: ServerHostKeyAlgorithm[],
    private readonly options: ConnectOptions,
  ) {
    const { address, port, hostKeyFingerprint } = target;
    this.where = `${address}:${port}${options.via ? ` through ${options.via.where}` : ''}`;
    this.pinned = typeof hostKeyFingerprint === 'string' ? hostKeyFingerprint : undefined;
  }

  async run(): Promise<SshConnection> {
    const { signal, via, buffers = new HostBuffers() } = this.options;
    const { address: host, port } = this.target;
    signal?.throwIfAborted();
    let socket: Duplex | undefined;
    try {
      // Nagle's algorithm costs a factor of forty on small writes.
      socket = (await via?.forwardTo(this.target)) ?? connect({ host, port, noDelay: true });
      await this.ready(socket);
    } catch (error) {
      this.client.destroy();
      socket?.destroy();
      throw this.translate(error);
    }
    return new SshConnection(this.client, socket, this.target, this.where, via, buffers);
  }

  /** Resolves when the host has shown the pinned key and let us in; rejects with the signal's reason. */
  private async ready(socket: Duplex): Promise<void> {
    const { signal, onServed } = this.options;
    const ended = new AbortController();
    try {
      await new Promise<void>((resolve, reject) => {
        const abort = () => reject(signal?.reason);
        signal?.addEventListener('abort', abort, { once: true, signal: ended.signal });
        if (signal?.aborted) abort();
        this.client
          .once('ready', resolve)
          // Not once: a host can make more than one of them before anybody else listens, and one without a listener
          // ends the process.
          .on('error', reject)
          .once('close', () =>
            reject(Object.assign(new Error('the connection was closed'), { level: 'client-socket' })),
          )
          .on('keyboard-interactive', (_name, _instructions, _language, prompts, finish) =>
            finish(this.answers(prompts)),
          )
          .connect(this.settings(socket));
        // `connect` has paused the socket, so that nothing is lost before ssh2 listens too.
        socket.prependListener('data', () => {
          onServed?.();
          // What ssh2 answers to it goes out together: a window that opens lets a channel send as many packets as fit,
          // each of which would be a system call.
          socket.cork();
          process.nextTick(() => socket.uncork());
        });
      });
    } finally {
      ended.abort();
    }
  }

  private settings(socket: Duplex): ConnectConfig & { maxChannels: number } {
    const { username, password, privateKey, passphrase, algorithms } = this.target;
    return {
      // Of any kind: ssh2's own type names the one of node:net.
      sock: socket as ConnectConfig['sock'],
      username,
      ...(privateKey ? readablePrivateKey(privateKey, passphrase) : {}),
      ...(password ? { password, tryKeyboard: true } : {}),
      // Not 'none' first, which every sshd refuses, and OpenSSH only after some milliseconds.
      authHandler: [
        ...(password ? ['password' as const] : []),
        ...(privateKey ? ['publickey' as const] : []),
        ...(password ? ['keyboard-interactive' as const] : []),
      ],
      readyTimeout: connectTimeoutMs,
      keepaliveInterval: 5_000,
      keepaliveCountMax: 3,
      algorithms: { ...algorithmsToOffer(algorithms), serverHostKey: this.serverHostKey },
      hostVerifier: (key: Buffer, answer: (isPinned: boolean) => void) => this.verify(key, answer),
      maxChannels,
    };
  }

  private verify(key: Buffer, answer: (isPinned: boolean) => void): void {
    const { hostKeyFingerprint } = this.target;
    const shown = fingerprintOf(key);
    this.shown = shown;
    // Whoever pins is asked once: keys are exchanged again in the life of a connection.
    if (this.pinned !== undefined || typeof hostKeyFingerprint === 'string') return answer(shown === this.pinned);
    hostKeyFingerprint(shown).then(
      (pinned) => {
        this.pinned = pinned;
        answer(shown === pinned);
      },
      (error: unknown) => {
        this.pinError = error;
        answer(false);
      },
    );
  }

  /**
   * The first hidden question is that for the password. A second one is for a one-time code, or for a new password: it
   * gets no answer.
   */
  private answers(prompts: readonly { echo?: boolean }[]): string[] {
    const isForPassword = !this.isPasswordGiven && prompts.some(({ echo }) => !echo);
    this.asksForMore ||= !isForPassword;
    this.isPasswordGiven ||= isForPassword;
    return prompts.map(({ echo }) => (isForPassword && !echo ? (this.target.password ?? '') : ''));
  }

  private translate(thrown: unknown): unknown {
    if (thrown instanceof AppError) return thrown;
    const { signal } = this.options;
    if (signal?.aborted) return signal.reason;
    if (this.pinError) return this.pinError;
    const cause = cleanError(thrown);
    const { level, message, code } = cause;
    if (this.shown && this.pinned && this.shown !== this.pinned) return this.wrongKey();
    if (/no matching host key/i.test(message)) return this.noKey();
    const error = (of: ErrorCode, detail: string) => new AppError(of, { host: this.where, detail }, { cause });
    const { where } = this;
    if (level === 'client-authentication')
      return error(
        'host_auth_failed',
        `${this.target.username}@${where}${this.asksForMore ? ', which asks for more than the password' : ''}`,
      );
    const broken = brokenRule(cause);
    if (broken) return error(broken, `${where}: ${message}`);
    if (level === 'client-timeout')
      return error('host_timeout', `${where} did not answer within ${connectTimeoutMs / 1000} s`);
    return error('host_unreachable', `${where}: ${code ?? message}`);
  }

  private wrongKey(): AppError {
    const { where: host, pinned, shown } = this;
    const detail = `pinned ${pinned}, but ${host} shows ${shown}`;
    return new AppError('host_key_mismatch', { host, detail, pinned, seen: shown });
  }

  /** Of the kinds that were asked for. */
  private noKey(): AppError {
    const { where: host, pinned } = this;
    const detail = pinned ? `${host} has no key of the pinned kind` : `${host} has no Ed25519, ECDSA or RSA key`;
    return new AppError('host_key_mismatch', { host, detail, pinned });
  }
}
