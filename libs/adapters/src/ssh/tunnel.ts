import { connect, type Socket } from 'node:net';
import { AppError } from '@airdock/core/errors';
import type { AcceptConnection, ClientChannel, RejectConnection } from 'ssh2';
import type { SshConnection } from './connection.js';

export interface TunnelOptions {
  /** Listens on the host's 127.0.0.1 only. */
  hostPort: number;
  /** Where it leads, seen from here: the DU's read-only registry. */
  target: { host: string; port: number };
}

/** An open tunnel; it lives as long as its connection. */
export interface Tunnel {
  /** Bytes that went to the host so far. */
  bytesSent(): number;
  close(): Promise<void>;
}

/**
 * Makes the host's `127.0.0.1:hostPort` lead to `target` through the connection. Every connection that the host opens becomes one SSH channel, and
 * can reach nothing but the target. Throws `host_port_taken` when something else listens on the host's port, `host_unreachable`.
 */
export async function openTunnel(connection: SshConnection, { hostPort, target }: TunnelOptions): Promise<Tunnel> {
  const { client } = connection;
  const sockets = new Set<Socket>();
  let bytesSent = 0;
  const lead = ({ destPort }: { destPort: number }, accept: AcceptConnection<ClientChannel>, reject: RejectConnection) => {
    if (destPort !== hostPort) return;
    const socket = connect({ ...target, noDelay: true });
    sockets.add(socket);
    // The channel is accepted when the target answers: a registry that is down looks to the host as one that is down.
    let channel: ClientChannel | undefined;
    socket.once('connect', () => {
      const opened = accept();
      channel = opened;
      opened.on('error', () => socket.destroy());
      opened.once('close', () => socket.end());
      socket.on('data', (chunk: Buffer) => {
        bytesSent += chunk.length;
      });
      opened.pipe(socket).pipe(opened);
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
