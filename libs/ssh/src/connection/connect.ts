import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { AppError } from '@airdock/core/errors';
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

async function connectOnce(
  target: SshTarget,
  serverHostKey: ServerHostKeyAlgorithm[],
  { signal, via, onServed = () => undefined, buffers = new HostBuffers() }: ConnectOptions,
): Promise<SshConnection> {
  signal?.throwIfAborted();
  const client = new (ssh2().Client)();
  const { hostKeyFingerprint, password } = target;
  let pinned = typeof hostKeyFingerprint === 'string' ? hostKeyFingerprint : undefined;
  let seen: string | undefined;
  let notPinned: unknown;
  let asksForMore = false;
  let abort = () => undefined as unknown;
  let socket: Duplex | undefined;
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
    const own = (await via?.forwardTo(target)) ?? connect({ host: target.address, port: target.port, noDelay: true });
    socket = own;
    await new Promise<void>((resolve, reject) => {
      abort = () => reject(signal?.reason);
      signal?.addEventListener('abort', abort, { once: true });
      if (signal?.aborted) abort();
      let isAnswered = false;
      client
        .once('ready', resolve)
        // Not once: a host can make more than one of them before anybody else listens, and one without a listener ends
        // the process.
        .on('error', reject)
        .once('close', () => reject(Object.assign(new Error('the connection was closed'), { level: 'client-socket' })))
        .on('keyboard-interactive', (_name, _instructions, _language, prompts, finish) => {
          // The first hidden question is that for the password. A second one is for a one-time code, or for a new
          // password.
          const isFirst = !isAnswered && prompts.some(({ echo }) => !echo);
          asksForMore ||= !isFirst;
          isAnswered ||= isFirst;
          finish(prompts.map(({ echo }) => (isFirst && !echo ? (password ?? '') : '')));
        })
        .connect({
          sock: own,
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
          maxChannels,
        } as ConnectConfig & { maxChannels: number });
      // `connect` has paused the socket, so that nothing is lost before ssh2 listens too.
      own.prependListener('data', () => {
        onServed();
        // What ssh2 answers to it goes out together: a window that opens lets a channel send as many packets as fit,
        // each of which would be a system call.
        own.cork();
        process.nextTick(() => own.uncork());
      });
    });
  } catch (thrown) {
    client.destroy();
    socket?.destroy();
    if (thrown instanceof AppError) throw thrown;
    const cause = cleanError(thrown);
    signal?.throwIfAborted();
    if (notPinned) throw notPinned;
    const { level, message, code } = cause;
    const details = { host: where };
    if (seen && pinned && seen !== pinned)
      throw new AppError('host_key_mismatch', {
        ...details,
        detail: `pinned ${pinned}, but ${where} shows ${seen}`,
        pinned,
        seen,
      });
    if (/no matching host key/i.test(message))
      throw new AppError('host_key_mismatch', {
        ...details,
        detail: pinned ? `${where} has no key of the pinned kind` : `${where} has no Ed25519, ECDSA or RSA key`,
        pinned,
      });
    if (level === 'client-authentication')
      throw new AppError(
        'host_auth_failed',
        {
          ...details,
          detail: `${target.username}@${where}${asksForMore ? ', which asks for more than the password' : ''}`,
        },
        { cause },
      );
    const broken = brokenRule(cause);
    if (broken) throw new AppError(broken, { ...details, detail: `${where}: ${message}` }, { cause });
    if (level === 'client-timeout')
      throw new AppError(
        'host_timeout',
        { ...details, detail: `${where} did not answer within ${connectTimeoutMs / 1000} s` },
        { cause },
      );
    throw new AppError('host_unreachable', { ...details, detail: `${where}: ${code ?? message}` }, { cause });
  } finally {
    signal?.removeEventListener('abort', abort);
  }
  return new SshConnection(client, socket, target, where, via, buffers);
}
