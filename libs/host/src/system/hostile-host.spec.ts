/**
 * A host that has a shell as root and uses it against us: what it can do to the process that serves it, and to other
 * hosts.
 */
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { Readable } from 'node:stream';
import type { AppError } from '@airdock/core/errors';
import { HostBuffers, maxBufferedBytes } from '@airdock/ssh/command/host-buffers';
import { connectSsh } from '@airdock/ssh/connection/connect';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { parseHostKey } from '@airdock/ssh/connection/keys';
import { openTunnel } from '@airdock/ssh/tunnel/tunnel';
import {
  type HostileConnection,
  type HostileSshOptions,
  messageOf,
  sshMessage,
  startHostileSshServer,
} from '@airdock/testing/hostile-ssh-server';
import { waitFor } from '@airdock/testing/servers';
import { begun, printed } from '@airdock/testing/ssh-command';
import type { ServerChannel } from 'ssh2';
import { describe, expect, it } from 'vitest';
import { askDocker } from '../runtime/docker-api.js';

const mib = 1024 * 1024;
const failure = (promise: Promise<unknown>): Promise<AppError | undefined> =>
  promise.then(
    () => undefined,
    (error: unknown) => error as AppError,
  );
const port = 5100;

async function withHost(
  options: HostileSshOptions,
  use: (connection: SshConnection, buffers: HostBuffers) => Promise<void>,
): Promise<void> {
  // It says what we want to hear.
  await using host = await startHostileSshServer({ answer: () => 'address=127.0.0.1\n', ...options });
  const buffers = new HostBuffers();
  const target = {
    address: '127.0.0.1',
    port: host.port,
    username: 'root',
    password: 'hostile',
    hostKeyFingerprint: parseHostKey(host.hostKey),
  };
  await using connection = await connectSsh(target, { buffers });
  await use(connection, buffers);
}

/** What a tunnel leads to. */
async function startTarget(
  onConnection: (socket: Socket) => void,
): Promise<{ server: Server; sockets: Set<Socket>; port: number } & AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined).once('close', () => sockets.delete(socket));
    onConnection(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const stop = async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise<void>((resolve) => server.close(() => resolve()));
  };
  return { server, sockets, port: (server.address() as AddressInfo).port, [Symbol.asyncDispose]: stop };
}
const endless = (socket: Socket) => {
  const more = () => {
    while (!socket.destroyed && socket.write(Buffer.alloc(64 * 1024)));
  };
  socket.on('drain', more);
  more();
};

const floods: [string, (host: HostileConnection) => Buffer[]][] = [
  ['ignored messages', () => [messageOf(sshMessage.ignore, 'x')]],
  ['debug messages', () => [messageOf(sshMessage.debug, { byte: 1 }, 'x', '')]],
  ['messages of no known type', () => [messageOf(199)]],
  ['extensions', () => [messageOf(sshMessage.extInfo, 1, 'a', 'b')]],
  ['banners after the login', () => [messageOf(53, 'x', '')]],
  ['requests that want an answer', () => [messageOf(sshMessage.globalRequest, 'x@y', { byte: 1 })]],
  [
    'announced host keys',
    () => [messageOf(sshMessage.globalRequest, 'hostkeys-00@openssh.com', { byte: 0 }, 'x'.repeat(1000))],
  ],
  ['channels that nobody asked for', () => [messageOf(sshMessage.channelOpen, 'x11', 7, 100_000, 32_768, 'a', 1)]],
  ['channels of an agent', () => [messageOf(sshMessage.channelOpen, 'auth-agent@openssh.com', 7, 100_000, 32_768)]],
  ['data for channels that are not there', () => [messageOf(sshMessage.channelData, 4711, 'x')]],
  ['windows of channels that are not there', () => [messageOf(sshMessage.channelWindowAdjust, 4711, 1)]],
];

describe('a hostile host', () => {
  it.each([0, 1, 100, 4095])(
    'that takes packets of %i bytes is disconnected before anything is sent to it',
    (packetSize) =>
      withHost({ packetSize }, async (connection) => {
        expect(await failure(connection.exec(['cat'], { stdin: 'x'.repeat(mib / 2) }))).toMatchObject({
          code: 'host_protocol_error',
        });
        expect(await connection.closed).toMatchObject({ code: 'host_protocol_error' });
      }),
  );

  it.each([0, 1])(
    'that opens a channel through a tunnel with packets of %i bytes is disconnected',
    async (packetSize) => {
      await using target = await startTarget(endless);
      await withHost({ onForward: (host, asked) => host.open(asked, 0, { packetSize }) }, async (connection) => {
        // As soon as it is asked for.
        await failure(openTunnel(connection, { hostPort: port, target: { host: '127.0.0.1', port: target.port } }));
        expect(await connection.closed).toMatchObject({ code: 'host_protocol_error' });
      });
    },
  );

  it('that sends beyond its window, its packet size, or after its end is disconnected', async () => {
    const attacks: ((channel: number, host: HostileConnection) => void)[] = [
      (channel, host) => {
        // Nobody reads: when the kernel has taken what it takes, the window does not open again.
        for (let sent = 0; sent < 24 * mib; sent += 32_768)
          host.send(messageOf(sshMessage.channelData, channel, Buffer.alloc(32_768)));
      },
      (channel, host) => host.send(messageOf(sshMessage.channelData, channel, Buffer.alloc(33_000))),
      (channel, host) =>
        host.sendTogether([messageOf(sshMessage.channelEof, channel), messageOf(sshMessage.channelData, channel, 'x')]),
      (channel, host) =>
        host.sendTogether([
          messageOf(sshMessage.channelEof, channel),
          messageOf(sshMessage.channelExtendedData, channel, 1, 'x'),
        ]),
      (channel, host) => host.send(messageOf(sshMessage.channelWindowAdjust, channel, 0xffffffff)),
    ];
    for (const attack of attacks) {
      await using target = await startTarget((socket) => void socket.pause());
      let opened: HostileConnection | undefined;
      const onLogin = (host: HostileConnection) =>
        host.on('CHANNEL_OPEN_CONFIRMATION', (info: { sender: number }) => attack(info.sender, host));
      await withHost(
        {
          onLogin,
          onForward: (host, asked) => {
            opened = host;
            host.open(asked, 0);
          },
        },
        async (connection) => {
          await failure(openTunnel(connection, { hostPort: port, target: { host: '127.0.0.1', port: target.port } }));
          expect(await connection.closed).toMatchObject({ code: 'host_protocol_error' });
          expect(opened).toBeDefined();
        },
      );
    }
  });

  it('that disconnects twice, or more, is gone, and nobody else', async () => {
    const twice = Array.from({ length: 5 }, () => messageOf(sshMessage.disconnect, 2, 'bye \u001b[31m', ''));
    await using early = await startHostileSshServer({ onAuthentication: (host) => host.sendTogether(twice) });
    const target = {
      address: '127.0.0.1',
      port: early.port,
      username: 'root',
      password: 'hostile',
      hostKeyFingerprint: parseHostKey(early.hostKey),
    };
    expect(await failure(connectSsh(target))).toMatchObject({ code: 'host_unreachable' });
    await withHost({ onLogin: (host) => host.sendTogether(twice) }, async (connection) => {
      const error = await connection.closed;
      expect(error?.code).toBe('host_unreachable');
      expect(error?.message).not.toContain('\u001b');
    }).catch((error: AppError) => expect(error.code).toBe('host_unreachable'));
  });

  it.each(floods)('that floods with %s is disconnected', (_what, messages) =>
    withHost(
      {
        onLogin: (host) => {
          const send = () => {
            for (let round = 0; round < 100 && !host.socket.destroyed; round++) host.sendTogether(messages(host));
            if (!host.socket.destroyed) setImmediate(send);
          };
          send();
        },
      },
      async (connection) => {
        const error = await connection.closed;
        expect(['host_flood', 'host_protocol_error']).toContain(error?.code);
      },
    ),
  );

  it('that exchanges keys again and again is disconnected', () =>
    withHost(
      {
        onLogin: (host) => {
          const again = () => {
            if (host.socket.destroyed) return;
            host.rekey();
            setImmediate(again);
          };
          again();
        },
      },
      async (connection) => expect(await connection.closed).toMatchObject({ code: 'host_flood' }),
    ));

  it('that opens more channels than the bound has those above it refused, and the others stay', async () => {
    await using target = await startTarget(() => undefined);
    let confirmed = 0;
    let refused = 0;
    let opening: (() => void) | undefined;
    const onLogin = (host: HostileConnection) => {
      host.on('CHANNEL_OPEN_CONFIRMATION', () => void confirmed++);
      host.on('CHANNEL_OPEN_FAILURE', () => void refused++);
      opening = () => {
        for (let sender = 0; sender < 200; sender++) host.open(port, sender, { window: 0 });
      };
    };
    await withHost({ onLogin }, async (connection) => {
      const tunnel = await openTunnel(connection, { hostPort: port, target: { host: '127.0.0.1', port: target.port } });
      opening?.();
      await waitFor(() => confirmed + refused === 200, { what: 'an answer to each', timeoutMs: 20_000 });
      expect([confirmed, refused, tunnel.refused()]).toEqual([64, 136, 136]);
      await waitFor(() => target.sockets.size === 64, { what: 'the others', timeoutMs: 10_000 });
      await tunnel.close();
    });
    await waitFor(() => target.sockets.size === 0, {
      what: 'the sockets to be gone with the connection',
      timeoutMs: 10_000,
    });
  });

  it.each([
    ['grants windows and reads nothing', 0xffffffff, true],
    ['grants no window', 0, false],
  ])(
    'that asks for endless data on many channels and %s gets no more than its bound',
    async (_what, window, stopsReading) => {
      await using target = await startTarget(endless);
      let opening: (() => void) | undefined;
      const onLogin = (host: HostileConnection) => {
        opening = () => {
          for (let sender = 0; sender < 64; sender++) host.open(port, sender, { window });
          if (stopsReading) setTimeout(() => host.socket.pause(), 50);
        };
      };
      await withHost({ onLogin }, async (connection, buffers) => {
        const before = process.memoryUsage().rss;
        const tunnel = await openTunnel(connection, {
          hostPort: port,
          target: { host: '127.0.0.1', port: target.port },
        });
        opening?.();
        await waitFor(() => target.sockets.size === 64, { what: 'the channels', timeoutMs: 20_000 });
        let most = 0;
        for (let round = 0; round < 100; round++) {
          await new Promise((resolve) => setTimeout(resolve, 20));
          most = Math.max(most, buffers.bytes);
        }
        expect(most).toBeLessThanOrEqual(maxBufferedBytes + 2 * mib);
        // With what both ends of the test keep themselves.
        expect(process.memoryUsage().rss - before).toBeLessThan(200 * mib);
        await tunnel.close();
        expect(buffers.bytes).toBe(0);
      });
      await waitFor(() => target.sockets.size === 0, {
        what: 'the sockets to be gone with the connection',
        timeoutMs: 10_000,
      });
    },
  );

  it('whose connection breaks leaves no socket behind, also one that waits', async () => {
    await using target = await startTarget(endless);
    const onForward = (host: HostileConnection, asked: number) => {
      for (let sender = 0; sender < 40; sender++) host.open(asked, sender, { window: 100 });
    };
    let host: HostileConnection | undefined;
    await withHost(
      {
        onLogin: (one) => {
          host = one;
        },
        onForward,
      },
      async (connection) => {
        await openTunnel(connection, { hostPort: port, target: { host: '127.0.0.1', port: target.port } });
        await waitFor(() => target.sockets.size === 40, { what: 'the channels', timeoutMs: 20_000 });
        host?.socket.destroy();
        await connection.closed;
        await waitFor(() => target.sockets.size === 0, { what: 'the sockets to be gone', timeoutMs: 10_000 });
      },
    );
  });

  it('that opens channels and hangs up at once ends nothing but its connection', async () => {
    await using target = await startTarget(() => undefined);
    const onForward = (host: HostileConnection, asked: number) => {
      for (let sender = 0; sender < 64; sender++) host.open(asked, sender);
      host.socket.end();
    };
    await withHost({ onForward }, async (connection) => {
      await openTunnel(connection, { hostPort: port, target: { host: '127.0.0.1', port: target.port } }).catch(
        () => undefined,
      );
      await connection.closed;
      await waitFor(() => target.sockets.size === 0, { what: 'the sockets to be gone', timeoutMs: 10_000 });
    });
  });

  it('whose command trickles is not waited for longer than commands of its kind may take', () =>
    withHost({ onExec: (channel) => trickle(channel) }, async (connection) => {
      expect(await failure(connection.exec(['look'], { deadlineMs: 500 }))).toMatchObject({
        code: 'host_command_timeout',
      });
      expect(await failure(connection.exec(['look'], { stdin: 'x', deadlineMs: 500 }))).toMatchObject({
        code: 'host_command_timeout',
      });
    }));

  it('that never answers a request is not waited for', () =>
    withHost(
      {
        onLogin: (host) => {
          for (const name of ['CHANNEL_OPEN', 'GLOBAL_REQUEST']) host.on(name, () => undefined);
        },
      },
      async (connection) => {
        const signal = AbortSignal.timeout(500);
        expect(await failure(connection.exec(['look'], { signal }))).toMatchObject({ name: 'TimeoutError' });
      },
    ));

  it('that prints without end, in large or in single bytes, is cut off with a code', async () => {
    for (const size of [32_768, 1]) {
      const onExec = (channel: ServerChannel) => {
        channel.on('error', () => undefined).resume();
        const chunk = Buffer.alloc(size, 'x');
        const more = () => {
          while (!channel.destroyed && channel.writable && channel.write(chunk));
        };
        channel.on('drain', () => setImmediate(more));
        more();
      };
      await withHost({ onExec }, async (connection, buffers) => {
        expect(await failure(connection.exec(['talk']))).toMatchObject({ code: 'host_output_exceeded' });
        expect(buffers.bytes).toBe(0);
      });
    }
  });

  it('cannot have more kept of all its commands together than its bound', () =>
    withHost(
      {
        onExec: (channel, _command, mark) => {
          channel.on('error', () => undefined).resume();
          channel.write(begun(mark));
          channel.write(Buffer.alloc(mib - 1));
        },
      },
      async (connection) => {
        const stop = new AbortController();
        const all = Array.from({ length: 12 }, () => failure(connection.exec(['talk'], { signal: stop.signal })));
        setTimeout(() => stop.abort(), 3_000);
        expect(
          (await Promise.all(all)).filter((error) => error?.code === 'host_buffer_exceeded').length,
        ).toBeGreaterThanOrEqual(4);
      },
    ));

  it('writes nothing into a terminal: neither by its errors nor by what a refusal says', () =>
    withHost(
      {
        onExec: (channel) => {
          channel.stderr.write('\u001b]0;owned\u0007\u001b[2J\u202efailed\u009b31m\n');
          channel.exit(1);
          channel.end();
        },
        onLogin: (host) =>
          host.on('CHANNEL_OPEN', ((info: { sender: number; type: string }) =>
            host.send(messageOf(sshMessage.channelOpenFailure, info.sender, 1, '\u001b[31mno\u0007', ''))) as never),
      },
      async (connection) => {
        const error = await failure(connection.forwardTo({ address: '127.0.0.1', port: 1 }));
        expect(error?.message).toContain('no');
        const cause = error?.cause as Error | undefined;
        expect(`${error?.message} ${cause?.message} ${cause?.stack}`).not.toMatch(/[^\P{Cc}\n\t]|\u202e/u);
      },
    ));

  it('whose Docker sends one line without end is cut off', () =>
    withHost(
      {
        onLogin: (host) =>
          host.on('CHANNEL_OPEN', ((info: { sender: number }) => {
            host.send(messageOf(sshMessage.channelOpenConfirmation, info.sender, 9, 100_000, 32_768));
            host.send(messageOf(sshMessage.channelData, info.sender, 'HTTP/1.1 200 OK\r\n\r\n'));
            const more = () => {
              if (host.socket.destroyed) return;
              if (host.socket.writableLength < mib)
                host.send(messageOf(sshMessage.channelData, info.sender, Buffer.alloc(1024, 'x')));
              setImmediate(more);
            };
            more();
          }) as never),
      },
      async (connection) => {
        const error = await failure(askDocker(connection, 'GET', '/x', { onLine: () => undefined }));
        expect(error).toMatchObject({ code: 'host_output_exceeded' });
      },
    ));
});

function trickle(channel: ServerChannel): void {
  channel.on('error', () => undefined).resume();
  const timer = setInterval(() => channel.write('.'), 50);
  channel.once('close', () => clearInterval(timer));
}

describe('a program that ends in the moment in which it begins', () => {
  const endsAtOnce = (code: number): HostileSshOptions => ({
    onExec: (channel, _command, mark) => {
      channel.stderr.write(printed(mark, '', code));
      channel.write(printed(mark, '', code));
      channel.exit(code);
      channel.close();
    },
  });
  const inputs: [what: string, input: () => Readable][] = [
    ['no input', () => Readable.from([])],
    ['a small input', () => Readable.from([Buffer.alloc(60)])],
    ['more than fits into a window', () => Readable.from([Buffer.alloc(8 * mib)])],
    ['an input that does not come', () => new Readable({ read: () => undefined })],
  ];
  it.each(inputs)('is not waited for with %s', async (_what, input) =>
    withHost(endsAtOnce(69), async (connection) => {
      for (let round = 0; round < 20; round++)
        expect(await connection.exec(['true'], { stdin: input(), stallTimeoutMs: 3_000 })).toEqual({
          exitCode: 69,
          stdout: '',
          stderr: '',
        });
    }),
  );

  it('has not done its work when it has not read what it was given', async () =>
    withHost(endsAtOnce(0), async (connection) => {
      const stdin = new Readable({ read: () => undefined });
      expect(await failure(connection.exec(['cat'], { stdin, stallTimeoutMs: 3_000 }))).toMatchObject({
        code: 'host_command_failed',
      });
      expect(stdin.destroyed).toBe(true);
    }));
});
