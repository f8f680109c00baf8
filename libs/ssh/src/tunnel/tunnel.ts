import { randomBytes } from 'node:crypto';
import type { EventEmitter } from 'node:events';
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { connect, type OnReadOpts, Socket } from 'node:net';
import { AppError } from '@airdock/core/errors';
import type { AcceptConnection, ClientChannel, RejectConnection } from 'ssh2';
import type { SshConnection } from '../connection/connection.js';
import { bindPort } from './port-binding.js';
import { settingsOf } from './sshd-look.js';

/** Where a tunnel begins on the host, and where it leads. */
export interface TunnelOptions {
  /** Listens on the host's 127.0.0.1 only. */
  hostPort: number;
  /**
   * Instead of the port, a Unix socket of the host: connections to the port are handed to it there. Its folder is the
   * login user's, and nobody else's.
   */
  hostSocket?: string | undefined;
  /**
   * Where it leads, seen from here: in the DU the Unix socket of the read-only registry, or of the package
   * repositories.
   */
  target: { path: string } | { host: string; port: number };
  /** Called before data for the host is looked at. */
  onServed?: (() => void) | undefined;
}

/**
 * One read of a socket. The larger, the fewer writes to the connection; freed when no more than so many are used at
 * once.
 */
const readBytes = 512 * 1024;
/**
 * A read of so many bytes is part of something large: the next one waits for more to come, since it costs little more
 * for it. Not after a read that took about all that a Unix socket holds (`net.core.wmem_default`, 208 KiB): no more
 * could come.
 */
const partBytes = { least: 16 * 1024, most: 128 * 1024 };
const gatherMs = 1;
/** What one connection of a host may have on its way there, while there is room for all of them. */
const maxUnsentBytes = 2 * 1024 * 1024;
const maxBuffers = 16;
const buffers: Uint8Array[] = [];
const keep = (buffer: Uint8Array): void => {
  if (buffers.length < maxBuffers) buffers.push(buffer);
};

/** An open tunnel; it ends with its connection. */
export interface OpenTunnel {
  /** Bytes that went to the host so far. */
  bytesSent(): number;
  /** Connections that were refused since the host had too many. */
  refused(): number;
  /**
   * Makes the host's socket lead here, whoever it led to before; of a port nothing is left to do. Throws what breaks
   * the connection, and `tunnel_failed`.
   */
  publish(signal?: AbortSignal): Promise<void>;
  /** Frees the host's port, and closes what goes through the tunnel, also when the connection is broken. */
  close(): Promise<void>;
}

/**
 * Makes the host's `127.0.0.1:hostPort` lead to `target` through the connection. Every connection that the host opens
 * becomes one SSH channel, and can reach nothing but the target. A connection can carry several tunnels, each with a
 * port of its own. Throws `host_port_taken` when something else listens on the host's port, `host_forwarding_refused`
 * when its sshd does not let us, `tunnel_exposed` when that binds more than loopback (GatewayPorts), `tunnel_failed`,
 * `host_unreachable`. Nothing is answered through it before the addresses that are bound have been looked at.
 *
 * A socket is bound under a name that nobody has had, and gets its own name in one step by `publish`: what a connection
 * left that died without a word is in nobody's way, and a client finds the old way or the new one, never none.
 *
 * @example
 * ```ts
 * const tunnel = await openTunnel(host, { hostPort: 5100, target: { path: registrySocket } });
 * await tunnel.close();
 * ```
 */
export async function openTunnel(connection: SshConnection, options: TunnelOptions): Promise<OpenTunnel> {
  const tunnel = new Tunnel(connection, options);
  await tunnel.bind();
  return tunnel;
}

/**
 * Whether the host's sshd lets us listen on a port, on its loopback only: tried, and given up again. Throws as
 * `openTunnel`.
 */
export async function tryPort(connection: SshConnection, hostPort: number): Promise<void> {
  const tunnel = await openTunnel(connection, { hostPort, target: { path: '/nowhere' } });
  await tunnel.close();
}

/** Whether the host's sshd binds Unix sockets for us: tried with one of a name that nobody has. */
export async function mayBindSockets(connection: SshConnection, signal?: AbortSignal): Promise<boolean> {
  const path = `/tmp/.airdock-${randomBytes(16).toString('hex')}`;
  try {
    await connection.forwardFrom(path, true);
  } catch (error) {
    if (error instanceof AppError) throw error;
    return false;
  }
  await connection.forwardFrom(path, false).catch(() => undefined);
  // sshd leaves its name behind.
  await connection.exec(['rm', '-f', path], { signal });
  return true;
}

/** Less than the time for which a worker may take a tunnel for its own. */
export const publishMs = 4_000;
// Others of this kind are of connections that were given up before they came to this.
const publishScript = `
mv -f "$1" "$2" || exit 1
for other in "$2".*; do [ ! -S "$other" ] || rm -f "$other"; done`;

/** See `openTunnel`. */
class Tunnel implements OpenTunnel {
  /** What sshd was asked to bind: a port, or a path that nobody has had. */
  private readonly bound: number | string;
  /** Of a port: the address by which sshd was asked. */
  private address: string | undefined;
  private readonly forwards = new Set<Forward>();
  /** Until it is known who can connect, connections wait here. */
  private waiting: Set<(isLocal: boolean) => void> | undefined = new Set();
  private sent = 0;
  private refusals = 0;

  constructor(
    private readonly connection: SshConnection,
    private readonly options: TunnelOptions,
  ) {
    const { hostPort, hostSocket } = options;
    this.bound = hostSocket === undefined ? hostPort : `${hostSocket}.${randomBytes(8).toString('hex')}`;
  }

  async bind(): Promise<void> {
    const { hostPort, hostSocket } = this.options;
    this.client.on('tcp connection', this.take).on('unix connection', this.take).on('channel refused', this.count);
    try {
      if (hostSocket === undefined) this.address = await bindPort(this.connection, hostPort);
      else await bindSocket(this.connection, String(this.bound), hostSocket);
    } catch (error) {
      this.end();
      throw error;
    }
    this.release(true);
    void this.connection.closed.then(() => this.end());
  }

  bytesSent(): number {
    return this.sent;
  }

  refused(): number {
    return this.refusals;
  }

  async publish(signal?: AbortSignal): Promise<void> {
    const { hostSocket } = this.options;
    if (hostSocket === undefined) return;
    const rename = ['sh', '-c', publishScript, 'sh', String(this.bound), hostSocket];
    const { exitCode, stderr } = await this.connection.exec(rename, { signal, deadlineMs: publishMs });
    if (exitCode !== 0)
      throw new AppError('tunnel_failed', { detail: `${hostSocket} on the host: ${stderr.trim().slice(-300)}` });
  }

  async close(): Promise<void> {
    // What is broken, or refused, frees the port as well.
    await this.connection.forwardFrom(this.bound, false, this.address).catch(() => undefined);
    this.end();
  }

  /** ssh2 is patched to say when it refuses a channel. */
  private get client(): EventEmitter {
    return this.connection.client;
  }

  private readonly count = (): void => {
    this.refusals += 1;
  };

  private readonly take = (
    from: { destPort?: number; socketPath?: string },
    accept: AcceptConnection<ClientChannel>,
    reject: RejectConnection,
  ): void => {
    if ((from.socketPath ?? from.destPort) !== this.bound) return;
    if (this.waiting) {
      this.waiting.add((isLocal) => (isLocal ? this.take(from, accept, reject) : attempt(reject)));
      return;
    }
    const { target, onServed = () => undefined } = this.options;
    const forward: Forward = new Forward(
      this.connection,
      target,
      { accept, reject },
      {
        onServed,
        onSent: (bytes) => {
          this.sent += bytes;
        },
        // A read that takes the last room stops the others too, so that there is at most one read more than the bound.
        onRoom: () => {
          for (const other of this.forwards) other.regulate();
        },
        onEnd: () => this.forwards.delete(forward),
      },
    );
    this.forwards.add(forward);
  };

  private release(isLocal: boolean): void {
    const { waiting } = this;
    this.waiting = undefined;
    for (const decide of waiting ?? []) decide(isLocal);
  }

  private end(): void {
    this.release(false);
    this.client.off('tcp connection', this.take).off('unix connection', this.take).off('channel refused', this.count);
    for (const forward of this.forwards) forward.destroy();
  }
}

/** See `openTunnel`. */
async function bindSocket(connection: SshConnection, bound: string, hostSocket: string): Promise<void> {
  try {
    await connection.forwardFrom(bound, true);
  } catch (cause) {
    if (cause instanceof AppError) throw cause;
    const settings = await settingsOf(connection, 'streamLocal');
    const detail = `${connection.where}: its sshd does not bind ${hostSocket} for us`;
    if (settings) throw new AppError('host_forwarding_refused', { detail: `${detail}: ${settings}` }, { cause });
    throw new AppError('tunnel_failed', { detail: `${detail}: is the folder the login user's?` }, { cause });
  }
}

interface ForwardEvents {
  onServed: () => void;
  onSent: (bytes: number) => void;
  /** There is less room for the host, or more again. */
  onRoom: () => void;
  onEnd: () => void;
}

/** One connection of the host to the target. */
class Forward {
  private readonly socket: Socket;
  // The channel is accepted when the target answers: a registry that is down looks to the host as one that is down.
  private channel: ClientChannel | undefined;
  private unsent = 0;
  private isHeld = false;
  private hasEnded = false;

  constructor(
    private readonly connection: SshConnection,
    target: TunnelOptions['target'],
    { accept, reject }: { accept: AcceptConnection<ClientChannel>; reject: RejectConnection },
    private readonly on: ForwardEvents,
  ) {
    const onread = {
      buffer: () => buffers.pop() ?? Buffer.allocUnsafeSlow(readBytes),
      callback: (bytes: number, buffer: Uint8Array) => {
        on.onServed();
        on.onSent(bytes);
        this.send(bytes, buffer);
        const isPart = bytes >= partBytes.least && bytes < partBytes.most;
        if (isPart && !this.isHeld) setTimeout(() => this.isHeld || this.socket.resume(), gatherMs);
        return !this.isHeld && !isPart;
      },
    };
    this.socket =
      'path' in target ? connectToSocket(target.path, onread) : connect({ ...target, noDelay: true, onread });
    this.socket
      .once('connect', () => this.open(accept))
      .once('error', () => {
        if (!this.channel) attempt(reject);
      })
      .once('close', (hadError) => {
        // What the target sent last may still be on its way to the host.
        if (!this.channel) this.destroy();
        else if (hadError) this.channel.close();
        else this.channel.end();
      });
  }

  /** Ends both sides at once. */
  destroy(): void {
    if (this.hasEnded) return;
    this.hasEnded = true;
    this.socket.destroy();
    this.channel?.close();
    this.connection.buffers.give(this.unsent);
    this.on.onEnd();
    this.on.onRoom();
  }

  /**
   * Reads on or not, as there is room: each of many may have as much as is free, so that some that are stuck leave room
   * for the others.
   */
  regulate(): void {
    const isHeld = this.unsent >= Math.min(maxUnsentBytes, this.connection.buffers.free);
    if (isHeld === this.isHeld || this.socket.destroyed) return;
    this.isHeld = isHeld;
    if (isHeld) this.socket.pause();
    else this.socket.resume();
  }

  private send(bytes: number, buffer: Uint8Array): void {
    const { connection, channel } = this;
    if (!channel || this.hasEnded) return;
    this.unsent += bytes;
    connection.buffers.add(bytes);
    const onTaken = () => {
      keep(buffer);
      if (this.hasEnded) return;
      this.unsent -= bytes;
      connection.buffers.give(bytes);
      this.on.onRoom();
    };
    connection.batched(() => channel.write(buffer.subarray(0, bytes), onTaken));
    this.on.onRoom();
  }

  /** The host may be gone meanwhile. */
  private open(accept: AcceptConnection<ClientChannel>): void {
    const channel = attempt(accept);
    if (!channel) return void this.socket.destroy();
    this.channel = channel;
    channel.on('error', () => this.destroy());
    // Not the socket's `end`: one that is held would stay half open for ever, here and at the target.
    channel.once('close', () => this.destroy());
    channel.pipe(this.socket);
  }
}

/** Opens what a path names, whatever that is, for its place alone; see open(2). */
const oPath = 0o10000000;

/**
 * Connects to the socket that lies at a path, and not to where a link leads: a registry that was taken over could put
 * one there, and hosts would come to any socket of this machine, such as the API's own. Fails as a connection does.
 */
function connectToSocket(path: string, onread: OnReadOpts): Socket {
  let fd: number | undefined;
  try {
    fd = openSync(path, oPath | constants.O_NOFOLLOW);
    if (fstatSync(fd).isSocket()) return connect({ path: `/proc/self/fd/${fd}`, onread });
  } catch {
    // Nothing is there.
  } finally {
    // The connection is begun at once, or refused.
    if (fd !== undefined) closeSync(fd);
  }
  const socket = new Socket();
  socket.destroy(new Error(`${path} is no socket`));
  return socket;
}

/** What ssh2 throws on a connection that has ended. */
function attempt<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch {
    return undefined;
  }
}

const findSession = `
pid=$PPID
# Between it and us are the user's shell, which may be one that starts another.
for _ in 1 2 3 4 5 6 7 8; do
  read -r stat 2>/dev/null <"/proc/$pid/stat" || exit 0
  case "$stat" in "$pid (sshd"*) set -- \${stat##*) }; echo "$pid \${20}"; exit 0 ;; esac
  set -- \${stat##*) }
  pid=$2
done`;

const endSessionScript = `
pid=$1 start=$2
read -r stat 2>/dev/null <"/proc/$pid/stat" || exit 0
case "$stat" in "$pid (sshd"*) ;; *) exit 0 ;; esac
set -- \${stat##*) }
[ "\${20}" != "$start" ] || kill "$pid"`;

/**
 * The process of the host's sshd that serves this connection, and so holds its tunnels' ports: pid and start time, as
 * proc(5) says it. Undefined where the host does not tell.
 */
export async function sessionOf(connection: SshConnection, signal?: AbortSignal): Promise<string | undefined> {
  const { stdout } = await connection.exec(['sh', '-c', findSession], { signal, stallTimeoutMs: 10_000 });
  return sessionPattern.exec(stdout.trim())?.[0];
}
const sessionPattern = /^\d{1,10} \d{1,20}$/;

/**
 * Ends what serves an earlier connection of ours, if it is still that process. A connection that died without a word is
 * taken for alive by the host, for hours perhaps, and its port stays taken. Throws what breaks the connection.
 */
export async function endSession(connection: SshConnection, session: string, signal?: AbortSignal): Promise<void> {
  await connection.exec(['sh', '-c', endSessionScript, 'sh', ...session.split(' ')], {
    signal,
    stallTimeoutMs: 10_000,
  });
}
