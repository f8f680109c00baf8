import { createHash, randomBytes } from 'node:crypto';
import { symlink } from 'node:fs/promises';
import { type AddressInfo, connect, createServer } from 'node:net';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { AppError } from '@airdock/core/errors';
import { freePort, startJsonServer, startRegistry, tempDir, waitFor } from '@airdock/testing/servers';
import { type SshServerOptions, startSshServer } from '@airdock/testing/ssh-server';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openTunnel, sessionOf } from '../tunnel/tunnel.js';
import { connectSsh } from './connect.js';
import type { SshConnection, SshTarget } from './connection.js';
import { parseHostKey } from './keys.js';

let sshd: Sshd;
const target = (change: Partial<SshTarget> = {}): SshTarget => ({
  address: '127.0.0.1',
  port: sshd.port,
  username: sshd.user,
  privateKey: sshd.privateKey,
  hostKeyFingerprint: parseHostKey(sshd.hostKeys.ed25519),
  ...change,
});
const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error as AppError,
  );

beforeAll(async () => {
  sshd = await startSshd();
});
afterAll(() => sshd?.stop());

async function withConnection(use: (connection: SshConnection) => Promise<void>): Promise<void> {
  const connection = await connectSsh(target());
  try {
    await use(connection);
  } finally {
    await connection.close();
  }
}

describe('connectSsh', () => {
  it.each(['ed25519', 'ecdsa', 'rsa'] as const)(
    'accepts the pinned key when it is the %s one of several',
    async (type) => {
      const connection = await connectSsh(target({ hostKeyFingerprint: parseHostKey(sshd.hostKeys[type]) }));
      expect(await connection.run(['echo', 'hello'])).toBe('hello');
      await connection.close();
      expect(await connection.closed).toBeUndefined();
    },
  );

  it('refuses another host key than the pinned one, and names both', async () => {
    const pinned = `SHA256:${'A'.repeat(43)}`;
    const error = await failure(connectSsh(target({ hostKeyFingerprint: pinned })));
    expect(error).toMatchObject({
      code: 'host_key_mismatch',
      details: { pinned, seen: parseHostKey(sshd.hostKeys.ed25519) },
    });
  });

  it('tells apart what can go wrong', async () => {
    expect(await failure(connectSsh(target({ port: await freePort() })))).toMatchObject({
      code: 'host_unreachable',
      message: expect.stringContaining('ECONNREFUSED'),
    });
    expect(await failure(connectSsh(target({ privateKey: sshd.otherPrivateKey })))).toMatchObject({
      code: 'host_auth_failed',
    });
    expect(
      await failure(connectSsh(target(), { signal: AbortSignal.abort(new AppError('job_cancelled')) })),
    ).toMatchObject({ code: 'job_cancelled' });
  });

  it('never shows a secret in its errors', async () => {
    const error = await failure(connectSsh(target({ privateKey: sshd.otherPrivateKey })));
    expect(JSON.stringify([error?.message, error?.details, String(error?.cause)])).not.toContain('PRIVATE KEY');
  });
});

describe('connectSsh on first use', () => {
  it('asks who pins before it logs in, and holds to the answer', async () => {
    const seen: string[] = [];
    const connection = await connectSsh(
      target({
        hostKeyFingerprint: async (shown) => {
          seen.push(shown);
          return shown;
        },
      }),
    );
    expect(await connection.run(['echo', 'hello'])).toBe('hello');
    await connection.close();
    expect(seen).toEqual([parseHostKey(sshd.hostKeys.ed25519)]);
    // Another connection was first, and saw another key.
    await using server = await startSshServer({ password: 'sesame' });
    const pinned = `SHA256:${'A'.repeat(43)}`;
    const error = await failure(
      connectSsh({
        address: '127.0.0.1',
        port: server.port,
        username: 'admin',
        password: 'sesame',
        hostKeyFingerprint: async () => pinned,
      }),
    );
    expect(error).toMatchObject({ code: 'host_key_mismatch', details: { pinned, seen: parseHostKey(server.hostKey) } });
    expect(
      await failure(connectSsh(target({ hostKeyFingerprint: () => Promise.reject(new AppError('resource_changed')) }))),
    ).toMatchObject({
      code: 'resource_changed',
    });
  });
});

describe('connectSsh with a password', () => {
  const login = async (options: Partial<SshServerOptions>, password: string) => {
    await using server = await startSshServer({ password: 'open sesame', ...options });
    const connection = await connectSsh({
      address: '127.0.0.1',
      port: server.port,
      username: 'admin',
      password,
      hostKeyFingerprint: parseHostKey(server.hostKey),
    });
    const said = await connection.run(['echo', 'hello']);
    await connection.close();
    return said;
  };
  it.each(['password', 'keyboard-interactive'] as const)('logs in where the server asks by %s', async (asks) => {
    expect(await login({ asks }, 'open sesame')).toBe('hello');
    const error = await failure(login({ asks }, 'sesame'));
    expect(error).toMatchObject({ code: 'host_auth_failed' });
    expect(JSON.stringify([error?.message, error?.details, String(error?.cause)])).not.toContain('sesame');
  });
  it('says so when the server asks for more', async () => {
    expect(await failure(login({ asks: 'code' }, 'open sesame'))).toMatchObject({
      code: 'host_auth_failed',
      message: expect.stringContaining('more than the password'),
    });
  });
});

describe('connectSsh through a jump host', () => {
  it('checks the key of each, and closes both', async () => {
    await using inner = await startSshd();
    const beyond = {
      port: inner.port,
      privateKey: inner.privateKey,
      hostKeyFingerprint: parseHostKey(inner.hostKeys.ecdsa),
    };
    const via = await connectSsh(target());
    const connection = await connectSsh(target(beyond), { via });
    expect(connection.where).toBe(`127.0.0.1:${inner.port} through 127.0.0.1:${sshd.port}`);
    expect(await connection.run(['wc', '-c'], { stdin: Readable.from([Buffer.alloc(3_000_000)]) })).toBe('3000000');
    await using registry = await startRegistry();
    const hostPort = await freePort();
    await openTunnel(connection, { hostPort, target: { host: '127.0.0.1', port: registry.port } });
    expect((await fetch(`http://127.0.0.1:${hostPort}/v2/`)).status).toBe(200);
    await connection.close();
    await expect(fetch(`http://127.0.0.1:${hostPort}/v2/`)).rejects.toThrow('fetch failed');
    expect(await via.closed).toBeUndefined();
    // The key of the jump host is none of the host behind it.
    const wrong = await connectSsh(target());
    const error = await failure(
      connectSsh(target({ ...beyond, hostKeyFingerprint: parseHostKey(sshd.hostKeys.ed25519) }), { via: wrong }),
    );
    expect(error).toMatchObject({
      code: 'host_key_mismatch',
      details: { host: connection.where, seen: parseHostKey(inner.hostKeys.ed25519) },
    });
    await wrong.closed;
  });

  it('says which of them fails, and ends when the jump host does', async () => {
    const port = await freePort();
    const via = await connectSsh(target());
    expect(await failure(connectSsh(target({ port }), { via }))).toMatchObject({
      code: 'host_unreachable',
      message: expect.stringMatching(`:${port} through 127.0.0.1:${sshd.port}: .*refused`),
    });
    await via.closed;
    await using inner = await startSshd();
    const beyond = {
      port: inner.port,
      privateKey: inner.privateKey,
      hostKeyFingerprint: parseHostKey(inner.hostKeys.ed25519),
    };
    await using outer = await startSshd();
    const first = await connectSsh(
      target({
        port: outer.port,
        privateKey: outer.privateKey,
        hostKeyFingerprint: parseHostKey(outer.hostKeys.ed25519),
      }),
    );
    const second = await connectSsh(target(beyond), { via: first });
    await outer.kill();
    await second.closed;
    expect(await failure(second.run(['true']))).toMatchObject({ code: 'host_unreachable' });
  });
});

describe('sudo', () => {
  const asRoot = async (
    options: Partial<SshServerOptions>,
    sudoPassword: string | undefined,
    use: (connection: SshConnection) => Promise<void>,
  ) => {
    const server = await startSshServer({ password: 'p', ...options });
    const connection = await connectSsh({
      address: '127.0.0.1',
      port: server.port,
      username: 'admin',
      password: 'p',
      sudoPassword,
      hostKeyFingerprint: parseHostKey(server.hostKey),
    });
    try {
      await use(connection);
    } finally {
      await connection.close();
      await server.stop();
    }
    return server.commands;
  };

  it('gets its password as the first line, and the command all that follows', async () => {
    const commands = await asRoot({ sudo: { password: "it's $HOME" } }, "it's $HOME", async (connection) => {
      expect(await connection.elevation()).toBe('sudo with password');
      expect(await connection.run(['cat'], { stdin: 'input', sudo: true })).toBe('input');
      expect(await connection.run(['cat'], { sudo: true })).toBe('');
      expect(await connection.run(['printf', '%s|', 'a b', "c'd"], { sudo: true })).toBe("a b|c'd|");
      expect(await connection.run(['wc', '-c'], { stdin: Readable.from([Buffer.alloc(3_000_000)]), sudo: true })).toBe(
        '3000000',
      );
      expect(await connection.exec(['sh', '-c', 'exit 3'], { sudo: true })).toMatchObject({ exitCode: 3 });
    });
    expect(commands.filter((command) => command.includes('HOME'))).toEqual([]);
    expect(commands.length).toBe(2 + 5);
  });

  it('gets no password where it asks for none', async () => {
    await asRoot({ sudo: 'free' }, 'secret', async (connection) => {
      expect(await connection.elevation()).toBe('sudo without password');
      expect(await connection.run(['cat'], { stdin: 'input', sudo: true })).toBe('input');
    });
  });

  it('says what is wrong, tries a wrong password once, and repeats no password', async () => {
    const commands = await asRoot({ sudo: { password: 'right' } }, 'wrong one', async (connection) => {
      for (let round = 0; round < 2; round++) {
        const error = await failure(connection.run(['true'], { sudo: true }));
        expect(error).toMatchObject({
          code: 'host_sudo_failed',
          message: expect.stringContaining('with the sudoPassword of the credential'),
        });
        expect(error?.message).toContain('Was it …?');
        expect(error?.message).not.toContain('wrong one');
      }
    });
    expect(commands.length).toBe(2);
    await asRoot({ sudo: 'no' }, undefined, async (connection) =>
      expect(await failure(connection.run(['true'], { sudo: true }))).toMatchObject({
        code: 'host_sudo_failed',
        message: expect.stringContaining('the credential has no sudoPassword'),
      }),
    );
    await using folder = await tempDir('no-sudo');
    await symlink('/bin/sh', join(folder.path, 'sh'));
    await asRoot({ shell: ['sh', '-c', `PATH=${folder.path}; eval "$1"`, 'sh'] }, 'secret', async (connection) =>
      expect(await failure(connection.elevation())).toMatchObject({
        code: 'host_sudo_failed',
        message: expect.stringContaining('has no sudo'),
      }),
    );
  });
});

describe('SshConnection', () => {
  it('passes arguments as they are, whatever is in them', async () => {
    const nasty = ["it's", '$(id)', '`id`', 'a b', '', '*', 'x;y', 'a\nb', '"', '\\', '-n', '☃'];
    await withConnection(async (connection) =>
      expect(await connection.run(['printf', '%s|', ...nasty])).toBe(`${nasty.join('|')}|`),
    );
  });

  it('gives exit code, both outputs and takes standard input', async () => {
    await withConnection(async (connection) => {
      expect(await connection.exec(['sh', '-c', 'cat; echo oops >&2; exit 3'], { stdin: 'in' })).toEqual({
        exitCode: 3,
        stdout: 'in',
        stderr: 'oops\n',
      });
      const bytes = Buffer.alloc(5_000_000, 7);
      expect(
        await connection.run(['wc', '-c'], {
          stdin: Readable.from([bytes.subarray(0, 3_000_000), bytes.subarray(3_000_000)]),
        }),
      ).toBe('5000000');
      expect(await failure(connection.run(['sh', '-c', 'echo no >&2; exit 1']))).toMatchObject({
        code: 'host_command_failed',
        details: { exitCode: 1, detail: expect.stringContaining('no') },
      });
    });
  });

  it('tells a disk that is full or read-only from what else may fail', async () => {
    const words = {
      'write /var/lib/docker/tmp/x: no space left on device': 'host_disk_full',
      "E: You don't have enough free space in /var/cache/apt/archives/.": 'host_disk_full',
      'At least 12MB more space needed on the / filesystem.': 'host_disk_full',
      "rm: cannot remove '/etc/docker/daemon.json': Read-only file system": 'host_disk_read_only',
      'open /var/lib/docker/tmp/x: read-only file system': 'host_disk_read_only',
      'dpkg: error: unable to open lock file: Read-only filesystem': 'host_disk_read_only',
    };
    await withConnection(async (connection) => {
      for (const [word, code] of Object.entries(words))
        expect(await failure(connection.run(['sh', '-c', 'echo "$1" >&2; exit 1', 'sh', word]))).toMatchObject({
          code,
        });
    });
  });

  it('hears the end of programs that end at once', async () => {
    await withConnection(async (connection) => {
      for (let round = 0; round < 40; round++) expect((await connection.exec(['sh', '-c', 'exit 7'])).exitCode).toBe(7);
    });
  });

  it('reports a program that ends before it has read its input', async () => {
    await withConnection(async (connection) => {
      const endless = Readable.from(
        (async function* () {
          for (let index = 0; index < 2000; index++) yield Buffer.alloc(65_536);
        })(),
      );
      expect(await failure(connection.run(['sh', '-c', 'exit 4'], { stdin: endless }))).toMatchObject({
        code: 'host_command_failed',
        details: { exitCode: 4 },
      });
    });
  });

  it('ends a command that prints more than is read of it, and with the signal', async () => {
    await withConnection(async (connection) => {
      const talk = ['sh', '-c', 'head -c 5000000 /dev/zero | tr "\\0" x'];
      expect(await failure(connection.run(talk))).toMatchObject({
        code: 'host_output_exceeded',
        details: { detail: expect.stringContaining('1048576 bytes') },
      });
      expect(await connection.run(['sh', '-c', 'head -c 1048576 /dev/zero | tr "\\0" x'])).toBe(
        'x'.repeat(1024 * 1024),
      );
      const stop = new AbortController();
      const running = failure(
        connection.run(['cat'], { stdin: new Readable({ read: () => undefined }), signal: stop.signal }),
      );
      stop.abort(new AppError('job_cancelled'));
      expect(await running).toMatchObject({ code: 'job_cancelled' });
    });
  });

  it('ends a command that does nothing for too long', async () => {
    await withConnection(async (connection) =>
      expect(await failure(connection.run(['sleep', '30'], { stallTimeoutMs: 300 }))).toMatchObject({
        code: 'host_timeout',
      }),
    );
  });

  it('opens a channel to a socket on the host, and says where there is none', async () => {
    await using folder = await tempDir('socket');
    const path = join(folder.path, 'answers');
    const server = createServer((socket) => socket.pipe(socket));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    await withConnection(async (connection) => {
      const channel = await connection.forwardToSocket(path);
      channel?.end('there and back');
      expect(await text(channel as Readable)).toBe('there and back');
      expect(await connection.forwardToSocket(`${path}.not`)).toBeUndefined();
      await connection.close();
      expect(await failure(connection.forwardToSocket(path))).toMatchObject({ code: 'host_unreachable' });
    });
    await new Promise((resolve) => server.close(resolve));
  });
});

describe('openTunnel', () => {
  it("leads the host's port to the target, many connections at a time, and frees the port when it is closed", async () => {
    await using registry = await startRegistry();
    const hostPort = await freePort();
    await withConnection(async (connection) => {
      const tunnel = await openTunnel(connection, { hostPort, target: { host: '127.0.0.1', port: registry.port } });
      const answers = await Promise.all(
        Array.from({ length: 20 }, () => fetch(`http://127.0.0.1:${hostPort}/v2/`).then(({ status }) => status)),
      );
      expect(new Set(answers)).toEqual(new Set([200]));
      expect(tunnel.bytesSent()).toBeGreaterThan(0);
      await tunnel.close();
      await expect(fetch(`http://127.0.0.1:${hostPort}/v2/`)).rejects.toThrow('fetch failed');
    });
  });

  it('loses and mixes up no byte, also when the target closes the connection behind its last one', async () => {
    const bodies = Array.from({ length: 8 }, () => randomBytes(3_000_000));
    const target = createServer(
      (socket) => void socket.once('data', (which) => socket.end(bodies[Number(which)] as Buffer)),
    );
    await new Promise<void>((resolve) => target.listen(0, '127.0.0.1', resolve));
    const hostPort = await freePort();
    await withConnection(async (connection) => {
      await openTunnel(connection, {
        hostPort,
        target: { host: '127.0.0.1', port: (target.address() as AddressInfo).port },
      });
      const read = (_: unknown, which: number) =>
        new Promise<string>((resolve, reject) => {
          let bytes = 0;
          const hash = createHash('sha256');
          const socket = connect(hostPort, '127.0.0.1', () => socket.write(String(which)));
          socket.on('data', (chunk) => {
            hash.update(chunk);
            bytes += chunk.length;
            // A slow reader, so that the last bytes wait in the tunnel.
            if (bytes % 7 === 0) {
              socket.pause();
              setImmediate(() => socket.resume());
            }
          });
          socket.once('end', () => resolve(hash.digest('hex'))).once('error', reject);
        });
      const expected = bodies.map((body) => createHash('sha256').update(body).digest('hex'));
      for (let round = 0; round < 5; round++) expect(await Promise.all(bodies.map(read))).toEqual(expected);
    });
    await new Promise((resolve) => target.close(resolve));
  });

  it('keeps several on one connection apart', async () => {
    await using first = await startJsonServer({ '/': 'first' });
    await using second = await startJsonServer({ '/': 'second' });
    await withConnection(async (connection) => {
      const ports = await Promise.all([freePort(), freePort()]);
      const tunnels = await Promise.all(
        [first, second].map(({ url }, index) =>
          openTunnel(connection, {
            hostPort: ports[index] ?? 0,
            target: { host: '127.0.0.1', port: Number(new URL(url).port) },
          }),
        ),
      );
      const answer = (port: number) => fetch(`http://127.0.0.1:${port}/`).then((response) => response.json());
      expect(await Promise.all(ports.map(answer))).toEqual(['first', 'second']);
      await tunnels[0]?.close();
      await expect(answer(ports[0])).rejects.toThrow('fetch failed');
      expect(await answer(ports[1])).toBe('second');
    });
  });

  it('says that the port is taken, and what it is told when the target is down', async () => {
    await using registry = await startRegistry();
    await withConnection(async (connection) => {
      expect(
        await failure(openTunnel(connection, { hostPort: registry.port, target: { host: '127.0.0.1', port: 1 } })),
      ).toMatchObject({
        code: 'host_port_taken',
      });
      const hostPort = await freePort();
      await openTunnel(connection, { hostPort, target: { host: '127.0.0.1', port: await freePort() } });
      await expect(fetch(`http://127.0.0.1:${hostPort}/v2/`)).rejects.toThrow('fetch failed');
      expect(await connection.run(['echo', 'still here'])).toBe('still here');
    });
  });

  it('notices when the host goes away', async () => {
    const own = await startSshd();
    const connection = await connectSsh({
      ...target(),
      port: own.port,
      privateKey: own.privateKey,
      hostKeyFingerprint: parseHostKey(own.hostKeys.ed25519),
    });
    let isClosed = false;
    void connection.closed.then(() => {
      isClosed = true;
    });
    const [pid] = (await sessionOf(connection))?.split(' ') ?? [];
    process.kill(Number(pid), 'SIGKILL');
    await waitFor(() => isClosed, { what: 'the connection to be noticed as closed', timeoutMs: 20_000 });
    expect(await failure(connection.run(['true']))).toMatchObject({ code: 'host_unreachable' });
    await own.stop();
  });
});
