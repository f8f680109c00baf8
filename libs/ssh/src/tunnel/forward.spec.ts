/** What one connection through a tunnel does when either of its ends does something else than the other, by a real sshd. */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { connectSsh } from '../connection/connect.js';
import type { SshConnection } from '../connection/connection.js';
import { parseHostKey } from '../connection/keys.js';
import { type OpenTunnel, openTunnel } from './tunnel.js';

describe('a connection through a tunnel', () => {
  let sshd: Sshd;
  let folder: TempDir;
  let connection: SshConnection;
  let tunnel: OpenTunnel;
  let target: Server;
  let hostSocket: string;
  /** The ends of the connections here, at the target. */
  let ends: Socket[];
  let onServed: () => void;
  let count = 0;

  beforeAll(async () => {
    sshd = await startSshd();
    folder = await tempDir('forward');
  });
  afterAll(async () => {
    await sshd?.stop();
    await folder?.remove();
  });
  beforeEach(async () => {
    ends = [];
    onServed = () => undefined;
    count += 1;
    const path = join(folder.path, `${count}.target`);
    hostSocket = join(folder.path, `${count}.sock`);
    target = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => undefined);
      ends.push(socket);
    });
    await new Promise<void>((resolve) => target.listen(path, resolve));
    connection = await connectSsh({
      address: '127.0.0.1',
      port: sshd.port,
      username: sshd.user,
      privateKey: sshd.privateKey,
      hostKeyFingerprint: parseHostKey(sshd.hostKeys.ed25519),
    });
    tunnel = await openTunnel(connection, { hostPort: 0, hostSocket, target: { path }, onServed: () => onServed() });
    await tunnel.publish();
  });
  afterEach(async () => {
    for (const end of ends) end.destroy();
    target.close();
    await tunnel.close();
    await connection[Symbol.asyncDispose]();
  });

  /** A client on the host, and its end at the target. */
  async function pair(): Promise<[client: Socket, end: Socket]> {
    const before = ends.length;
    const client = connect({ path: hostSocket, allowHalfOpen: true });
    client.on('error', () => undefined);
    await waitFor(() => ends.length > before, { what: 'the target to be reached' });
    return [client, ends[before] as Socket];
  }
  const closed = (socket: Socket) =>
    waitFor(() => socket.destroyed || socket.readableEnded, { what: 'the other end to be closed' });

  it('that the client has ended still brings the answer', async () => {
    const [client, end] = await pair();
    const asked = text(end);
    client.end('question');
    expect(await asked).toBe('question');
    end.end('answer');
    expect(await text(client)).toBe('answer');
    expect(tunnel.bytesSent()).toBe('answer'.length);
  });

  it('brings all that the target said before it ended, and then its end', async () => {
    const [client, end] = await pair();
    const answer = 'x'.repeat(3_000_000);
    end.end(answer);
    expect((await text(client)).length).toBe(answer.length);
    expect(tunnel.bytesSent()).toBe(answer.length);
  });

  it('ends for the client when the target dies in the middle', async () => {
    const [client, end] = await pair();
    end.write('half');
    const received = text(client).catch(() => 'broken');
    await waitFor(() => tunnel.bytesSent() === 4, { what: 'the half to be on its way' });
    end.destroy();
    expect(['half', 'broken']).toContain(await received);
    client.destroy();
  });

  it('ends for the target when the client goes away', async () => {
    const [client, end] = await pair();
    end.resume();
    end.write('begin');
    await waitFor(() => client.bytesRead === 5 || client.readableLength === 5, { what: 'the begin to come' });
    client.destroy();
    end.end();
    await closed(end);
  });

  it('holds the target back while the client takes nothing, and goes on when it does', async () => {
    const [client, end] = await pair();
    client.pause();
    const size = 32 * 1024 * 1024;
    end.end(Buffer.alloc(size, 'y'));
    // It stands still when nothing more has come in so many looks.
    let [last, looks] = [-1, 0];
    await waitFor(
      () => {
        looks = tunnel.bytesSent() === last ? looks + 1 : 0;
        last = tunnel.bytesSent();
        return last > 0 && looks >= 10;
      },
      { what: 'the tunnel to stand still' },
    );
    expect(last).toBeLessThan(size / 2);
    expect(connection.buffers.bytes).toBeGreaterThan(0);
    expect(connection.buffers.bytes).toBeLessThan(4 * 1024 * 1024);
    let received = 0;
    for await (const chunk of client) received += (chunk as Buffer).byteLength;
    expect(received).toBe(size);
    await waitFor(() => connection.buffers.bytes === 0, { what: 'what is kept for the host to be given back' });
  });

  it('gives back what is kept for the host when a client that took nothing goes away', async () => {
    const [client, end] = await pair();
    client.pause();
    end.write(Buffer.alloc(32 * 1024 * 1024));
    await waitFor(() => connection.buffers.bytes > 1024 * 1024, { what: 'the tunnel to be full' });
    client.destroy();
    await waitFor(() => connection.buffers.bytes === 0, { what: 'what is kept for the host to be given back' });
    await closed(end);
  });

  it('is refused while the target is down, and taken when it is there again', async () => {
    const path = target.address() as string;
    await new Promise<void>((resolve) => target.close(() => resolve()));
    expect(await text(connect(hostSocket)).catch(() => 'refused')).toMatch(/^(refused)?$/);
    expect(tunnel.bytesSent()).toBe(0);
    target = createServer((socket) => socket.end('back'));
    await new Promise<void>((resolve) => target.listen(path, resolve));
    expect(await text(connect(hostSocket))).toBe('back');
  });

  it('ends with the tunnel, at both of its ends', async () => {
    const [client, end] = await pair();
    end.resume();
    client.resume();
    await tunnel.close();
    await closed(end);
    await waitFor(() => client.readableEnded || client.destroyed, { what: 'the client to see the end' });
    client.destroy();
  });

  it('is told of before its data is looked at', async () => {
    const seen: number[] = [];
    onServed = () => seen.push(tunnel.bytesSent());
    const [client, end] = await pair();
    end.end('data');
    await text(client);
    expect(seen[0]).toBe(0);
  });
});
