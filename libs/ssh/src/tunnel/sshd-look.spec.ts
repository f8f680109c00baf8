/** What a real sshd binds and refuses, by its settings and by the options of keys. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { networkInterfaces } from 'node:os';
import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { findProgram, freePort } from '@airdock/testing/servers';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { connectSsh } from '../connection/connect.js';
import type { SshConnection } from '../connection/connection.js';
import { parseHostKey } from '../connection/keys.js';
import { isLoopback, listenersOn, settingsOf } from './sshd-look.js';
import { mayBindSockets, openTunnel, tryPort } from './tunnel.js';

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error as AppError,
  );
let asked: string[];
const target = createServer((request, response) => {
  asked.push(request.url ?? '');
  response.end('the registry');
});
beforeAll(() => new Promise<void>((resolve) => target.listen(0, '127.0.0.1', resolve)));
afterAll(() => new Promise((resolve) => target.close(resolve)));

const connectTo = ({ port, user, privateKey, hostKeys }: Sshd) =>
  connectSsh({
    address: '127.0.0.1',
    port,
    username: user,
    privateKey,
    hostKeyFingerprint: parseHostKey(hostKeys.ed25519),
  });

async function withSshd(
  settings: string[],
  use: (connection: SshConnection, hostPort: number) => Promise<void>,
  keyOptions = '',
  port?: number,
): Promise<void> {
  asked = [];
  await using sshd = await startSshd(settings);
  if (keyOptions) await sshd.restrictKey(keyOptions);
  await using connection = await connectTo(sshd);
  await use(connection, port ?? (await freePort()));
}
const open = (connection: SshConnection, hostPort: number) =>
  openTunnel(connection, { hostPort, target: { host: '127.0.0.1', port: (target.address() as AddressInfo).port } });
const answerOf = (host: string, port: number) =>
  fetch(`http://${host}:${port}/`, { signal: AbortSignal.timeout(5_000) }).then(
    (response) => response.text(),
    () => undefined,
  );
const ownAddress = Object.values(networkInterfaces())
  .flatMap((all) => all ?? [])
  .find(({ family, internal }) => family === 'IPv4' && !internal)?.address;

describe('a tunnel to an sshd with', () => {
  it('GatewayPorts yes is closed before anything is answered through it, however soon somebody asks', () =>
    withSshd(['GatewayPorts yes'], async (connection, hostPort) => {
      const asking = new AbortController();
      const answers: (string | undefined)[] = [];
      const ask = (async () => {
        while (!asking.signal.aborted) answers.push(await answerOf('127.0.0.1', hostPort));
      })();
      const error = await failure(open(connection, hostPort));
      asking.abort();
      await ask;
      expect(error).toMatchObject({
        code: 'tunnel_exposed',
        message: expect.stringMatching(/bound port \d+ on .*: .*GatewayPorts/),
      });
      expect(answers.filter((answer) => answer !== undefined)).toEqual([]);
      expect(asked).toEqual([]);
      expect(await listenersOn(connection, hostPort)).toEqual([]);
    }));

  it.each([['GatewayPorts clientspecified'], ['GatewayPorts no'], ['AllowTcpForwarding remote']])(
    '%s listens on loopback, and answers',
    (setting) =>
      withSshd([setting], async (connection, hostPort) => {
        await open(connection, hostPort);
        expect(await answerOf('127.0.0.1', hostPort)).toBe('the registry');
        if (ownAddress) expect(await answerOf(ownAddress, hostPort)).toBeUndefined();
        expect((await listenersOn(connection, hostPort)).every(isLoopback)).toBe(true);
      }),
  );

  it('a program of another on the same port of another address is no reason against it', () =>
    withSshd([], async (connection, hostPort) => {
      if (!ownAddress) return;
      const other = createServer((_, response) => response.end('another'));
      await new Promise<void>((resolve) => other.listen(hostPort, ownAddress, resolve));
      await open(connection, hostPort);
      expect(await answerOf('127.0.0.1', hostPort)).toBe('the registry');
      expect(await answerOf(ownAddress, hostPort)).toBe('another');
      await new Promise((resolve) => other.close(resolve));
    }));

  const refusals: [string, string[], string][] = [
    ['AllowTcpForwarding no', ['AllowTcpForwarding no'], ''],
    ['AllowTcpForwarding local', ['AllowTcpForwarding local'], ''],
    ['PermitListen none', ['PermitListen none'], ''],
    ['PermitListen for another port', ['PermitListen 127.0.0.1:1'], ''],
    ['DisableForwarding yes', ['DisableForwarding yes'], ''],
    ['a key that is restricted', [], 'restrict'],
    ['a key without port forwarding', [], 'no-port-forwarding'],
    ['a key that permits another port', [], 'permitlisten="1"'],
  ];
  it.each(refusals)('%s says that it refuses, not that the port is taken', (_what, settings, keyOptions) =>
    withSshd(
      settings,
      async (connection, hostPort) => {
        for (const trial of [open, tryPort])
          expect(await failure(trial(connection, hostPort))).toMatchObject({
            code: 'host_forwarding_refused',
            message: expect.stringContaining('could not be bound'),
          });
        expect(asked).toEqual([]);
      },
      keyOptions,
    ),
  );

  it.each([
    ['localhost:PORT', ''],
    ['127.0.0.1:PORT', ''],
    ['*:PORT', ''],
    ['PORT', ''],
    ['localhost:1 localhost:PORT', ''],
    ['any', 'permitlisten="localhost:PORT"'],
    ['any', 'permitlisten="PORT"'],
  ])('PermitListen %s and a key with %j lets us listen, and frees the port again', async (setting, keyOptions) => {
    const port = await freePort();
    const withPort = (text: string) => text.replaceAll('PORT', String(port));
    await withSshd(
      [`PermitListen ${withPort(setting)}`],
      async (connection, hostPort) => {
        for (let round = 0; round < 2; round++) {
          const tunnel = await open(connection, hostPort);
          expect(await answerOf('127.0.0.1', hostPort)).toBe('the registry');
          expect((await listenersOn(connection, hostPort)).every(isLoopback)).toBe(true);
          await tunnel.close();
          expect(await listenersOn(connection, hostPort)).toEqual([]);
        }
        await tryPort(connection, hostPort);
      },
      withPort(keyOptions),
      port,
    );
  });

  it.each(['[::1]:PORT', '0.0.0.0:PORT', 'host.site:PORT'])(
    'PermitListen %s says which line is enough',
    async (setting) => {
      const port = await freePort();
      const expected = {
        code: 'host_forwarding_refused',
        message: expect.stringContaining(`PermitListen 127.0.0.1:${port} is enough`),
      };
      await withSshd(
        [`PermitListen ${setting.replace('PORT', String(port))}`],
        async (connection, hostPort) => expect(await failure(open(connection, hostPort))).toMatchObject(expected),
        '',
        port,
      );
    },
  );

  it('GatewayPorts yes and PermitListen localhost:PORT is closed as ever', async () => {
    const port = await freePort();
    await withSshd(
      ['GatewayPorts yes', `PermitListen localhost:${port}`],
      async (connection, hostPort) => {
        expect(await failure(open(connection, hostPort))).toMatchObject({ code: 'tunnel_exposed' });
        expect(await listenersOn(connection, hostPort)).toEqual([]);
      },
      '',
      port,
    );
  });

  // sshd says yes to localhost when it gets ::1 only.
  it.skipIf(process.getuid?.() !== 0 || !findProgram('perl'))(
    'PermitListen localhost:PORT is not content with the other half of localhost when another user was faster',
    async () => {
      const port = await freePort();
      await withSshd(
        [`PermitListen localhost:${port}`],
        async (connection, hostPort) => {
          // Node.js may be where no other user gets to.
          const program = `my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:${port}", Listen => 1) or die; $| = 1; print "listens"; sleep 60`;
          const forwardFrom = connection.forwardFrom.bind(connection);
          let other: ChildProcess | undefined;
          vi.spyOn(connection, 'forwardFrom').mockImplementation(async (place, isWanted, address) => {
            if (isWanted && address === 'localhost') {
              other = spawn('perl', ['-MIO::Socket::INET', '-e', program], {
                cwd: '/',
                uid: 65_534,
                gid: 65_534,
                stdio: ['ignore', 'pipe', 'inherit'],
              });
              await once(other.stdout as Readable, 'data');
            }
            await forwardFrom(place, isWanted, address);
          });
          expect(await failure(open(connection, hostPort))).toMatchObject({
            code: 'host_port_taken',
            message: expect.stringContaining('another user'),
          });
          expect(asked).toEqual([]);
          const ended = once(other as ChildProcess, 'exit');
          other?.kill();
          await ended;
          expect(await listenersOn(connection, hostPort)).toEqual([]);
        },
        '',
        port,
      );
    },
  );

  it.each([
    ['AllowStreamLocalForwarding no', 'AllowStreamLocalForwarding no', '', false],
    ['AllowStreamLocalForwarding local', 'AllowStreamLocalForwarding local', '', false],
    ['DisableForwarding yes', 'DisableForwarding yes', '', false],
    ['a key that is restricted', 'PrintMotd no', 'restrict', false],
    // session.c does not tell the two apart.
    ['AllowTcpForwarding no', 'AllowTcpForwarding no', '', false],
    ['PermitListen for a port', 'PermitListen 5100', '', true],
  ] as const)('%s is asked for sockets', (_what, setting, keyOptions, expected) =>
    withSshd([setting], async (connection) => expect(await mayBindSockets(connection)).toBe(expected), keyOptions),
  );

  it('a port that is taken, also while sshd refuses all of them', () =>
    withSshd(['AllowTcpForwarding no'], async (connection) => {
      const { port } = target.address() as AddressInfo;
      expect(await failure(open(connection, port))).toMatchObject({
        code: 'host_port_taken',
        message: expect.stringContaining('listens on 127.0.0.1'),
      });
    }));
});

describe('sessions of an sshd with', () => {
  it.each([1, 2, 3])('MaxSessions %i: as many commands run at a time, the others wait', (most) =>
    withSshd([`MaxSessions ${most}`], async (connection) => {
      const said = await Promise.all(
        Array.from({ length: 12 }, (_, index) =>
          connection.run(['sh', '-c', 'echo "$1"; cat', 'sh', String(index)], { stdin: 'x' }),
        ),
      );
      expect(said).toEqual(Array.from({ length: 12 }, (_, index) => `${index}\nx`));
      expect(connection.sessions.limit).toBeLessThanOrEqual(most);
      // One after the other they need no waiting, also where sshd is slow to count the last one out.
      for (let round = 0; round < 20; round++) expect(await connection.run(['echo', 'again'])).toBe('again');
    }),
  );

  it('MaxSessions 1: who waits goes on when the first is given up, and ends with its own signal', () =>
    withSshd(['MaxSessions 1'], async (connection) => {
      await Promise.all([connection.run(['true']), connection.run(['true'])]);
      const [first, second] = [new AbortController(), new AbortController()];
      const running = failure(connection.run(['sleep', '5'], { signal: first.signal }));
      const waiting = failure(connection.run(['true'], { signal: second.signal }));
      const next = connection.run(['echo', 'next']);
      second.abort(new AppError('job_cancelled'));
      expect(await waiting).toMatchObject({ code: 'job_cancelled' });
      first.abort(new AppError('job_cancelled'));
      expect(await running).toMatchObject({ code: 'job_cancelled' });
      expect(await next).toBe('next');
    }));

  it('MaxSessions 1: who waits hears that the connection has ended', () =>
    withSshd(['MaxSessions 1'], async (connection) => {
      await Promise.all([connection.run(['true']), connection.run(['true'])]);
      const all = [0, 1, 2].map(() => failure(connection.run(['sleep', '60'])));
      await connection.close();
      for (const error of await Promise.all(all)) expect(error).toMatchObject({ code: 'host_unreachable' });
    }));

  it('MaxSessions 0: none is let in', () =>
    withSshd(['MaxSessions 0'], async (connection) =>
      expect(await failure(connection.run(['true']))).toMatchObject({ code: 'host_session_refused' }),
    ));

  it('ForceCommand: the login runs nothing of ours', () =>
    withSshd(['ForceCommand echo this is for backups'], async (connection) =>
      expect(await failure(connection.run(['true']))).toMatchObject({
        code: 'host_shell_unusable',
        message: expect.stringContaining('this is for backups'),
      }),
    ));

  it('ForceCommand internal-sftp', () =>
    withSshd(['Subsystem sftp internal-sftp', 'ForceCommand internal-sftp'], async (connection) =>
      expect(await failure(connection.run(['true'], { stallTimeoutMs: 3_000 }))).toMatchObject({
        code: 'host_shell_unusable',
      }),
    ));
});

describe('settingsOf', () => {
  it.each(['127.0.0.1:1', '[::1]:5100', 'none', 'a.example:1 [fd00::1]:2'])(
    'names the file and the line of PermitListen %s',
    async (value) => {
      const lines = [
        `value=permitlisten ${value}`,
        'line=/etc/ssh/sshd_config:3:PermitListen 10.0.0.1:9',
        `line=/etc/ssh/sshd_config.d/a.conf:7:  PermitListen ${value}`,
      ];
      const host = { username: 'root', run: async () => lines.join('\n') };
      expect(await settingsOf(host as unknown as SshConnection, 'tcp')).toBe(
        `PermitListen ${value} (/etc/ssh/sshd_config.d/a.conf:7)`,
      );
    },
  );
});

describe('listenersOn', () => {
  it.each([
    ['127.0.0.1', true],
    ['127.0.0.53%lo', true],
    ['[::1]', true],
    ['[::ffff:127.0.0.1]', true],
    ['0.0.0.0', false],
    ['*', false],
    ['[::]', false],
    ['10.0.0.127', false],
    ['[fe80::1%eth0]', false],
    ['[::ffff:10.0.0.1]', false],
    ['127.0.0.1.example.com', false],
  ])('%s is of the loopback: %s', (address, expected) => expect(isLoopback(address)).toBe(expected));

  it.each(['127.0.0.1', '0.0.0.0', '::1', '::', '::ffff:127.0.0.1'])('sees %s without ss too', async (address) => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen({ port: 0, host: address, ipv6Only: false }, resolve));
    const { port } = server.address() as AddressInfo;
    const withoutSs = {
      run: ([, , script = '', ...rest]: string[]) =>
        new Promise<string>((resolve) => {
          const child = spawn('sh', ['-c', `command() { return 1; }\n${script}`, ...rest], {
            stdio: ['ignore', 'pipe', 'inherit'],
          });
          let said = '';
          child.stdout.on('data', (chunk: Buffer) => {
            said += chunk.toString();
          });
          child.once('close', () => resolve(said));
        }),
    };
    const [seen] = await listenersOn(withoutSs as unknown as SshConnection, port);
    expect(isLoopback(seen ?? '')).toBe(address.includes('1'));
    await withSshd([], async (connection) =>
      expect((await listenersOn(connection, port)).map(isLoopback)).toEqual([address.includes('1')]),
    );
    await new Promise((resolve) => server.close(resolve));
  });
});
