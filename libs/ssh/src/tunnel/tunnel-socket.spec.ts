/** Tunnels that bind a Unix socket of the host instead of a port, by a real sshd. */
import { readdir, rename, symlink } from 'node:fs/promises';
import { connect, createServer, type Server, Socket } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { connectSsh } from '../connection/connect.js';
import type { SshConnection } from '../connection/connection.js';
import { parseHostKey } from '../connection/keys.js';
import { openTunnel, sessionOf } from './tunnel.js';

describe('a tunnel that binds a socket of the host', () => {
  let sshd: Sshd;
  let folder: TempDir;
  const targets: Server[] = [];

  beforeAll(async () => {
    sshd = await startSshd();
    folder = await tempDir('tunnel-socket');
  });
  afterAll(async () => {
    for (const target of targets) target.close();
    await sshd?.stop();
    await folder?.remove();
  });

  const login = (): Promise<SshConnection> =>
    connectSsh({
      address: '127.0.0.1',
      port: sshd.port,
      username: sshd.user,
      privateKey: sshd.privateKey,
      hostKeyFingerprint: parseHostKey(sshd.hostKeys.ed25519),
    });
  /** Says its name to whoever connects. */
  async function targetOf(name: string): Promise<{ path: string }> {
    const path = join(folder.path, `${name}.target`);
    const server = createServer((socket) => socket.end(name));
    targets.push(server);
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return { path };
  }
  const answerAt = (path: string): Promise<string> =>
    new Promise((resolve, reject) => {
      const socket = connect(path);
      socket.once('error', reject);
      text(socket).then(resolve, reject);
    });

  it('leads there only when it is published, and takes the place of another one in one step', async () => {
    const hostSocket = join(folder.path, 'registry.sock');
    await using first = await login();
    await using second = await login();
    const one = await openTunnel(first, { hostPort: 0, hostSocket, target: await targetOf('one') });
    await expect(answerAt(hostSocket)).rejects.toThrow('ENOENT');
    await one.publish();
    expect(await answerAt(hostSocket)).toBe('one');
    const two = await openTunnel(second, { hostPort: 0, hostSocket, target: await targetOf('two') });
    expect(await answerAt(hostSocket)).toBe('one');
    await two.publish();
    expect(await answerAt(hostSocket)).toBe('two');
    // The one that lost its place is in nobody's way, and its end neither.
    await one.close();
    expect(await answerAt(hostSocket)).toBe('two');
    await two.close();
    await expect(answerAt(hostSocket)).rejects.toThrow('ECONNREFUSED');
  });

  it('sends what is large in few writes, also what had to wait for its window', async () => {
    const path = join(folder.path, 'large.target');
    const size = 48 * 1024 * 1024;
    const server = createServer((socket) => socket.end(Buffer.alloc(size)));
    targets.push(server);
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const hostSocket = join(folder.path, 'large.sock');
    await using connection = await login();
    const tunnel = await openTunnel(connection, { hostPort: 0, hostSocket, target: { path } });
    await tunnel.publish();
    // A packet has 32 KiB; one is written by `_write`, several by `_writev`.
    const single = vi.spyOn(Socket.prototype, '_write');
    const several = vi.spyOn(Socket.prototype, '_writev' as '_write');
    try {
      let received = 0;
      for await (const chunk of connect(hostSocket)) received += (chunk as Buffer).byteLength;
      expect(received).toBe(size);
      const toSshd = ({ contexts }: { contexts: readonly unknown[] }) =>
        contexts.filter((socket) => (socket as Socket).remotePort === sshd.port).length;
      expect(toSshd(several.mock)).toBeGreaterThan(0);
      expect(toSshd(single.mock) + toSshd(several.mock)).toBeLessThan(size / (32 * 1024) / 2);
    } finally {
      single.mockRestore();
      several.mockRestore();
    }
    await tunnel.close();
  });

  it('is not kept from it by what a dead connection has left', async () => {
    const hostSocket = join(folder.path, 'left.sock');
    const dead = await login();
    const left = await openTunnel(dead, { hostPort: 0, hostSocket, target: await targetOf('dead') });
    await left.publish();
    await openTunnel(dead, { hostPort: 0, hostSocket, target: await targetOf('unpublished') });
    const [pid] = ((await sessionOf(dead)) ?? '').split(' ').map(Number);
    process.kill(pid as number, 'SIGKILL');
    await dead.closed;
    await waitFor(() => answerAt(hostSocket).then(...([() => false, () => true] as const)), {
      what: 'the old socket to be dead',
    });
    await using connection = await login();
    const tunnel = await openTunnel(connection, { hostPort: 0, hostSocket, target: await targetOf('new') });
    await tunnel.publish();
    expect(await answerAt(hostSocket)).toBe('new');
    expect((await readdir(folder.path)).filter((name) => name.startsWith('left.sock'))).toEqual(['left.sock']);
  });

  it('leads to a socket that lies there, and nowhere that a link leads', async () => {
    const { path } = await targetOf('key');
    const link = join(folder.path, 'linked.target');
    await symlink(path, link);
    await using connection = await login();
    const hostSocket = join(folder.path, 'linked.sock');
    const tunnel = await openTunnel(connection, { hostPort: 0, hostSocket, target: { path: link } });
    await tunnel.publish();
    expect(await answerAt(hostSocket).catch(() => 'refused')).not.toBe('key');
    await rename(path, link);
    expect(await answerAt(hostSocket)).toBe('key');
    await tunnel.close();
  });

  it('says so where sshd does not bind it', async () => {
    await using connection = await login();
    const opened = openTunnel(connection, {
      hostPort: 0,
      hostSocket: '/no-such-folder/registry.sock',
      target: { path: '/nowhere' },
    });
    await expect(opened).rejects.toMatchObject({
      code: 'tunnel_failed',
      details: { detail: expect.stringContaining('is the folder the login user') as string },
    });
  });
});
