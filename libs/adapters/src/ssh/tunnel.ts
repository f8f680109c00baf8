import { connect, type Socket } from 'node:net';
import { AppError } from '@airdock/core/errors';
import type { AcceptConnection, ClientChannel, RejectConnection } from 'ssh2';
import type { SshConnection } from './connection.js';

export interface TunnelOptions {
  /** Listens on the host's 127.0.0.1 only. */
  hostPort: number;
  /** Where it leads, seen from here: in the DU the Unix socket of the read-only registry, or of the package repositories. */
  target: { path: string } | { host: string; port: number };
}

/** One read of a socket. The larger, the fewer writes to the connection; freed when no more than so many are used at once. */
const readBytes = 512 * 1024;
/** A read of so many bytes is part of something large: the next one waits for more to come, since it costs little more for it. */
const partBytes = 16 * 1024;
const gatherMs = 1;
const maxBuffers = 16;
const buffers: Uint8Array[] = [];
const keep = (buffer: Uint8Array): void => {
  if (buffers.length < maxBuffers) buffers.push(buffer);
};

/** An open tunnel; it lives as long as its connection. */
export interface Tunnel {
  /** Bytes that went to the host so far. */
  bytesSent(): number;
  close(): Promise<void>;
}

/**
 * Makes the host's `127.0.0.1:hostPort` lead to `target` through the connection. Every connection that the host opens becomes one SSH channel, and
 * can reach nothing but the target. A connection can carry several tunnels, each with a port of its own. Throws `host_port_taken` when something else listens on the host's port, `host_unreachable`.
 */
export async function openTunnel(connection: SshConnection, { hostPort, target }: TunnelOptions): Promise<Tunnel> {
  const { client } = connection;
  const sockets = new Set<Socket>();
  let bytesSent = 0;
  const lead = ({ destPort }: { destPort: number }, accept: AcceptConnection<ClientChannel>, reject: RejectConnection) => {
    if (destPort !== hostPort) return;
    // The channel is accepted when the target answers: a registry that is down looks to the host as one that is down.
    let channel: ClientChannel | undefined;
    let isFull = false;
    const goOn = () => {
      if (!isFull) socket.resume();
    };
    const onread = {
      buffer: () => buffers.pop() ?? Buffer.allocUnsafeSlow(readBytes),
      callback: (bytes: number, buffer: Uint8Array) => {
        bytesSent += bytes;
        isFull = !connection.batched(() => (channel as ClientChannel).write(buffer.subarray(0, bytes), () => keep(buffer)));
        const isPart = bytes >= partBytes && bytes < readBytes / 2;
        if (isPart && !isFull) setTimeout(goOn, gatherMs);
        return !isFull && !isPart;
      },
    };
    const socket = connect({ ...target, noDelay: true, onread });
    sockets.add(socket);
    socket.once('connect', () => {
      const opened = accept();
      channel = opened;
      opened.on('error', () => socket.destroy());
      opened.once('close', () => socket.end());
      opened.on('drain', () => {
        isFull = false;
        socket.resume();
      });
      opened.pipe(socket);
    });
    socket.once('error', () => {
      if (!channel) reject();
    });
    socket.once('close', (hadError) => {
      sockets.delete(socket);
      // What the target sent last may still be on its way to the host.
      if (hadError) channel?.close();
      else channel?.end();
    });
  };
  client.on('tcp connection', lead);
  try {
    await new Promise<void>((resolve, reject) => {
      client.forwardIn('127.0.0.1', hostPort, (error) => (error ? reject(error) : resolve()));
    });
  } catch (error) {
    client.off('tcp connection', lead);
    // OpenSSH gives no reason; a refused forward on a living connection means that the port could not be bound.
    if (!/unable to bind|request/i.test((error as Error).message)) throw connection.broken(error);
    throw new AppError('host_port_taken', { detail: `127.0.0.1:${hostPort} on the host could not be bound`, port: hostPort }, { cause: error });
  }
  return {
    bytesSent: () => bytesSent,
    close: async () => {
      await new Promise<void>((resolve) => client.unforwardIn('127.0.0.1', hostPort, () => resolve()));
      client.off('tcp connection', lead);
      for (const socket of sockets) socket.destroy();
    },
  };
}

const findSession = `
pid=$PPID
for _ in 1 2 3 4 5; do
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
 * The process of the host's sshd that serves this connection, and so holds its tunnels' ports: pid and start time, as proc(5) says it. Undefined where the host
 * does not tell.
 */
export async function sessionOf(connection: SshConnection, signal?: AbortSignal): Promise<string | undefined> {
  const { stdout } = await connection.exec(['sh', '-c', findSession], { signal, stallTimeoutMs: 10_000 });
  return sessionPattern.exec(stdout.trim())?.[0];
}
const sessionPattern = /^\d{1,10} \d{1,20}$/;

/**
 * Ends what serves an earlier connection of ours, if it is still that process. A connection that died without a word is taken for alive by the host, for hours
 * perhaps, and its port stays taken. Throws what breaks the connection.
 */
export async function endSession(connection: SshConnection, session: string, signal?: AbortSignal): Promise<void> {
  await connection.exec(['sh', '-c', endSessionScript, 'sh', ...session.split(' ')], { signal, stallTimeoutMs: 10_000 });
}
