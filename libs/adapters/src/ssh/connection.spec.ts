import { type AddressInfo, connect, createServer } from 'node:net';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { freePort, startRegistry, waitFor } from '@airdock/testing/servers';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { connectSsh, parseHostKey, parsePrivateKey, type SshConnection, type SshTarget } from './connection.js';
import { openTunnel } from './tunnel.js';

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
  it.each(['ed25519', 'ecdsa'] as const)('accepts the pinned key when it is the %s one of several', async (type) => {
    const connection = await connectSsh(target({ hostKeyFingerprint: parseHostKey(sshd.hostKeys[type]) }));
    expect(await connection.run(['echo', 'hello'])).toBe('hello');
    await connection.close();
    expect(await connection.closed).toBeUndefined();
  });

  it('refuses another host key than the pinned one, and names both', async () => {
    const pinned = `SHA256:${'A'.repeat(43)}`;
    const error = await failure(connectSsh(target({ hostKeyFingerprint: pinned })));
    expect(error).toMatchObject({ code: 'host_key_mismatch', details: { pinned, seen: parseHostKey(sshd.hostKeys.ed25519) } });
  });

  it('tells apart what can go wrong', async () => {
    expect(await failure(connectSsh(target({ port: await freePort() })))).toMatchObject({
      code: 'host_unreachable',
      message: expect.stringContaining('ECONNREFUSED'),
    });
    expect(await failure(connectSsh(target({ privateKey: sshd.otherPrivateKey })))).toMatchObject({ code: 'host_auth_failed' });
    expect(await failure(connectSsh(target(), AbortSignal.abort(new AppError('job_cancelled'))))).toMatchObject({ code: 'job_cancelled' });
  });

  it('never shows a secret in its errors', async () => {
    const error = await failure(connectSsh(target({ privateKey: sshd.otherPrivateKey })));
    expect(JSON.stringify([error?.message, error?.details, String(error?.cause)])).not.toContain('PRIVATE KEY');
  });
});

describe('SshConnection', () => {
  it('passes arguments as they are, whatever is in them', async () => {
    const nasty = ["it's", '$(id)', '`id`', 'a b', '', '*', 'x;y', 'a\nb', '"', '\\', '-n', '☃'];
    await withConnection(async (connection) => expect(await connection.run(['printf', '%s|', ...nasty])).toBe(`${nasty.join('|')}|`));
  });

  it('gives exit code, both outputs and takes standard input', async () => {
    await withConnection(async (connection) => {
      expect(await connection.exec(['sh', '-c', 'cat; echo oops >&2; exit 3'], { stdin: 'in' })).toEqual({ exitCode: 3, stdout: 'in', stderr: 'oops\n' });
      const bytes = Buffer.alloc(5_000_000, 7);
      expect(await connection.run(['wc', '-c'], { stdin: Readable.from([bytes.subarray(0, 3_000_000), bytes.subarray(3_000_000)]) })).toBe('5000000');
      expect(await failure(connection.run(['sh', '-c', 'echo no >&2; exit 1']))).toMatchObject({
        code: 'host_command_failed',
        details: { exitCode: 1, detail: expect.stringContaining('no') },
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

  it('keeps a bounded part of an endless output, and ends with the signal', async () => {
    await withConnection(async (connection) => {
      expect((await connection.run(['sh', '-c', 'head -c 5000000 /dev/zero | tr "\\0" x'])).length).toBe(1024 * 1024);
      const stop = new AbortController();
      const running = failure(connection.run(['cat'], { stdin: new Readable({ read: () => undefined }), signal: stop.signal }));
      stop.abort(new AppError('job_cancelled'));
      expect(await running).toMatchObject({ code: 'job_cancelled' });
    });
  });

  it('ends a command that does nothing for too long', async () => {
    await withConnection(async (connection) =>
      expect(await failure(connection.run(['sleep', '30'], { stallTimeoutMs: 300 }))).toMatchObject({ code: 'host_timeout' }),
    );
  });
});

describe('openTunnel', () => {
  it("leads the host's port to the target, many connections at a time, and frees the port when it is closed", async () => {
    await using registry = await startRegistry();
    const hostPort = await freePort();
    await withConnection(async (connection) => {
      const tunnel = await openTunnel(connection, { hostPort, target: { host: '127.0.0.1', port: registry.port } });
      const answers = await Promise.all(Array.from({ length: 20 }, () => fetch(`http://127.0.0.1:${hostPort}/v2/`).then(({ status }) => status)));
      expect(new Set(answers)).toEqual(new Set([200]));
      expect(tunnel.bytesSent()).toBeGreaterThan(0);
      await tunnel.close();
      await expect(fetch(`http://127.0.0.1:${hostPort}/v2/`)).rejects.toThrow('fetch failed');
    });
  });

  it('loses no byte when the target closes the connection behind its last one', async () => {
    const body = Buffer.alloc(3_000_000, 'x');
    const target = createServer((socket) => void socket.once('data', () => socket.end(body)));
    await new Promise<void>((resolve) => target.listen(0, '127.0.0.1', resolve));
    const hostPort = await freePort();
    await withConnection(async (connection) => {
      await openTunnel(connection, { hostPort, target: { host: '127.0.0.1', port: (target.address() as AddressInfo).port } });
      const read = () =>
        new Promise<number>((resolve, reject) => {
          let bytes = 0;
          const socket = connect(hostPort, '127.0.0.1', () => socket.write('go'));
          socket.on('data', (chunk) => {
            bytes += chunk.length;
            // A slow reader, so that the last bytes wait in the tunnel.
            if (bytes % 7 === 0) {
              socket.pause();
              setImmediate(() => socket.resume());
            }
          });
          socket.once('end', () => resolve(bytes)).once('error', reject);
        });
      for (let round = 0; round < 5; round++) expect(await Promise.all(Array.from({ length: 8 }, read))).toEqual(Array(8).fill(body.length));
    });
    await new Promise((resolve) => target.close(resolve));
  });

  it('says that the port is taken, and what it is told when the target is down', async () => {
    await using registry = await startRegistry();
    await withConnection(async (connection) => {
      expect(await failure(openTunnel(connection, { hostPort: registry.port, target: { host: '127.0.0.1', port: 1 } }))).toMatchObject({
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
    const connection = await connectSsh({ ...target(), port: own.port, privateKey: own.privateKey, hostKeyFingerprint: parseHostKey(own.hostKeys.ed25519) });
    let isClosed = false;
    void connection.closed.then(() => {
      isClosed = true;
    });
    const pid = await connection.run(['sh', '-c', 'echo $PPID']);
    process.kill(Number(pid), 'SIGKILL');
    await waitFor(() => isClosed, { what: 'the connection to be noticed as closed', timeoutMs: 20_000 });
    expect(await failure(connection.run(['true']))).toMatchObject({ code: 'host_unreachable' });
    await own.stop();
  });
});

describe('parsePrivateKey', () => {
  it('reads a key, and refuses text that is none without repeating it', () => {
    expect(parsePrivateKey(sshd.privateKey)).toMatchObject({ type: 'ssh-ed25519', fingerprint: expect.stringMatching(/^SHA256:/) });
    for (const text of ['', 'sesame', sshd.hostKeys.ed25519]) {
      try {
        parsePrivateKey(text);
        expect.unreachable();
      } catch (error) {
        expect(error).toMatchObject({ code: 'credential_invalid' });
        if (text) expect((error as AppError).message).not.toContain(text);
      }
    }
  });
});

describe('parseHostKey', () => {
  it('reads fingerprints and the lines of ssh-keyscan and .pub files', () => {
    const fingerprint = parseHostKey(sshd.hostKeys.ed25519);
    expect(parseHostKey(fingerprint)).toBe(fingerprint);
    expect(parseHostKey(`[127.0.0.1]:22 ${sshd.hostKeys.ed25519}`)).toBe(fingerprint);
    for (const text of ['', 'SHA256:short', 'ssh-ed25519', 'MD5:aa:bb']) expect(() => parseHostKey(text)).toThrowError(AppError);
  });
});
