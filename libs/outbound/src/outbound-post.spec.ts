import { createServer, type Server } from 'node:http';
import { type AddressInfo, createServer as createNetServer, type Socket } from 'node:net';
import { waitFor } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { OutboundPost } from './outbound-post.js';

describe('OutboundPost', () => {
  let server: Server;
  let hits = 0;
  const url = (host: string) => `http://${host}:${(server.address() as AddressInfo).port}/`;
  const { signal } = new AbortController();
  const post = (outbound: OutboundPost, to: string) =>
    outbound.post(to, { headers: {}, body: '{}', timeoutMs: 5_000, maxAnswerBytes: 100, signal });
  /** Resolves to the addresses one after the other; the last one stays. */
  const resolving = (...addresses: string[]) => {
    let asked = 0;
    return async () => [{ address: addresses[Math.min(asked++, addresses.length - 1)] as string, family: 4 }];
  };

  beforeAll(async () => {
    server = createServer((request, response) => {
      hits++;
      request.resume().once('end', () => response.end('fine'));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  });
  afterAll(() => new Promise((resolve) => server.close(resolve)));

  it.each([
    [[], 'http://127.0.0.1/', false],
    [[], 'http://127.9.9.9/', false],
    [[], 'http://0x7f000001/', false],
    [[], 'http://localhost/', false],
    [[], 'http://[::1]/', false],
    [[], 'http://[::ffff:127.0.0.1]/', false],
    [[], 'http://[::127.0.0.1]/', false],
    [[], 'http://[::ffff:0:127.0.0.1]/', false],
    [[], 'http://[2002:7f00:1::]/', false],
    [[], 'http://[2002:a9fe:a9fe::]/', false],
    [[], 'http://[2001:0:a9fe:a9fe::1]/', false],
    [[], 'http://[2001:0:4136:e378:8000:63bf:5601:5601]/', false],
    [[], 'http://[64:ff9b::127.0.0.1]/', false],
    [[], 'http://[64:ff9b::a9fe:a9fe]/', false],
    [[], 'http://[64:ff9b:1::a00:5]/', false],
    [[], 'http://[fe80::5efe:a9fe:a9fe]/', false],
    [[], 'http://[2a00::5efe:127.0.0.1]/', false],
    [[], 'http://[fec0::1]/', false],
    [[], 'http://[ff02::1]/', false],
    [[], 'http://255.255.255.255/', false],
    [[], 'http://[2002:a00:5::]/', true],
    [[], 'http://[64:ff9b::10.0.0.5]/', true],
    [[], 'http://[2a00:1450::1]/', true],
    [['127.0.0.0/8'], 'http://127.0.0.1/', true],
    [['::1'], 'http://[::1]/', true],
    [['localhost'], 'http://localhost/', false],
    [[], 'https://10.0.0.5/hook', true],
    [[], 'http://169.254.169.254/latest/meta-data', false],
    [[], 'http://2852039166/', false],
    [[], 'http://[::ffff:169.254.169.254]/', false],
    [[], 'http://[fe80::1]/', false],
    [[], 'http://0.0.0.0/', false],
    [[], 'http://[::]/', false],
    [[], 'http://224.0.0.1/', false],
    [[], 'ftp://10.0.0.5/', false],
    [[], 'http://user:secret@10.0.0.5/', false],
    [[], 'nonsense', false],
    [['10.0.0.0/8'], 'http://10.1.2.3/', true],
    [['10.0.0.0/8'], 'http://[::ffff:10.1.2.3]/', true],
    [['10.0.0.0/8'], 'http://127.0.0.1/', false],
    [['fd00::/8'], 'http://[fd12::1]/', true],
    [['169.254.169.254'], 'http://169.254.169.254/', true],
  ])('with the list %j takes %s: %s', async (allowed, target, expected) => {
    const checked = new OutboundPost(allowed).check(target);
    if (expected) expect(await checked).toBe(new URL(target).href);
    else await expect(checked).rejects.toMatchObject({ code: 'webhook_target_forbidden' });
  });

  it.each([
    ['hooks.site', ['hooks.site'], '10.0.0.5', true],
    ['HOOKS.site.', ['hooks.site'], '10.0.0.5', true],
    ['a.hooks.site', ['*.site'], '10.0.0.5', true],
    ['evilsite', ['*.site'], '10.0.0.5', false],
    ['hooks.site', ['10.0.0.0/8'], '10.0.0.5', true],
    ['hooks.site', ['10.0.0.0/8'], '11.0.0.5', false],
    ['hooks.site', ['hooks.site'], '169.254.169.254', false],
    ['hooks.site', ['hooks.site', '169.254.0.0/16'], '169.254.169.254', true],
    ['hooks.site', [], '169.254.169.254', false],
  ])('takes %s with the list %j when it resolves to %s: %s', async (name, allowed, address, expected) => {
    const checked = new OutboundPost(allowed, resolving(address)).check(`http://${name}/`);
    if (expected) await expect(checked).resolves.toContain('http://');
    else await expect(checked).rejects.toMatchObject({ code: 'webhook_target_forbidden' });
  });

  it('takes a name that does not resolve now, unless its address is what would have to be allowed', async () => {
    const unknown = () => Promise.reject(new Error('ENOTFOUND'));
    await expect(new OutboundPost([], unknown).check('http://later.site/')).resolves.toBeDefined();
    await expect(new OutboundPost(['*.site'], unknown).check('http://later.site/')).resolves.toBeDefined();
    await expect(new OutboundPost(['10.0.0.0/8'], unknown).check('http://later.site/')).rejects.toMatchObject({
      code: 'webhook_target_forbidden',
    });
  });

  it('connects to the address that was checked, and to none that a name resolves to later', async () => {
    const outbound = new OutboundPost(['127.0.0.0/8'], resolving('127.0.0.1', '127.0.0.1', '10.255.255.1'));
    await outbound.check(url('rebound.site'));
    expect(await post(outbound, url('rebound.site'))).toEqual({ status: 200, body: 'fine', isCut: false });
    const before = hits;
    expect(await post(outbound, url('rebound.site'))).toEqual({
      error: expect.stringContaining('rebound.site (10.255.255.1) is not in airdock.webhooks.allowedHosts'),
    });
    expect(await post(new OutboundPost(['10.0.0.0/8']), url('127.0.0.1'))).toEqual({
      error: expect.stringContaining('127.0.0.1 is not in'),
    });
    expect(await post(new OutboundPost([], resolving('169.254.169.254')), url('meta.site'))).toEqual({
      error: expect.stringContaining('link-local'),
    });
    expect(hits).toBe(before);
  });

  /** Servers that write to the socket what they like, after the request has come. */
  it.each<[string, (socket: Socket) => void, object]>([
    [
      'that never ends its body',
      (socket) => socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nfine'),
      { status: 200, body: 'fine', isCut: true },
    ],
    [
      'that sends no byte of its body',
      (socket) => socket.write('HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n'),
      { status: 202, body: '', isCut: true },
    ],
    [
      'that sends its body by drops',
      (socket) => {
        socket.write('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n');
        const timer = setInterval(() => socket.write('1\r\nx\r\n'), 50);
        socket.once('close', () => clearInterval(timer));
      },
      { status: 200, body: expect.stringMatching(/^x+$/) as string, isCut: true },
    ],
    [
      'whose body is huge',
      (socket) => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n');
        const write = () => {
          while (!socket.destroyed && socket.write('x'.repeat(65_536)));
        };
        socket.on('drain', write);
        write();
      },
      { status: 200, body: 'x'.repeat(100), isCut: true },
    ],
    [
      'that resets the connection after the status',
      (socket) =>
        void socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n', () =>
          setTimeout(() => socket.resetAndDestroy(), 20),
        ),
      { status: 200, isCut: true },
    ],
    [
      'that closes the connection in its body',
      (socket) => void socket.end('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nfi'),
      { status: 200, body: 'fi', isCut: true },
    ],
    [
      'that sends a body with 204',
      (socket) => void socket.write('HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello'),
      { status: 204 },
    ],
    [
      'that has broken chunks',
      (socket) => void socket.write('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n'),
      { status: 200, isCut: true },
    ],
    [
      'that redirects and never ends',
      (socket) => void socket.write('HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 9\r\n\r\n'),
      { status: 302, isCut: true },
    ],
    [
      'that says what is coming first',
      (socket) => void socket.write('HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'),
      { status: 200, body: 'ok', isCut: false },
    ],
    [
      'that changes the protocol',
      (socket) => void socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n'),
      { status: 101 },
    ],
    [
      'that closes without an answer',
      (socket) => void socket.end(),
      { error: expect.stringContaining('no answer') as string },
    ],
    [
      'that never gets to a status',
      (socket) => void socket.write('HTTP/1.1 103 Early Hints\r\n\r\n'),
      { error: 'no answer within 5 s' },
    ],
  ])('takes the status of a receiver %s, and lets go of it', async (_, answer, expected) => {
    const sockets = new Set<Socket>();
    const receiver = createNetServer((socket) => {
      sockets.add(socket);
      socket.on('error', () => undefined).once('close', () => sockets.delete(socket));
      socket.once('data', () => answer(socket));
    });
    await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve));
    const started = performance.now();
    try {
      const to = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/`;
      expect(await post(new OutboundPost(['127.0.0.0/8']), to)).toMatchObject(expected);
      expect(performance.now() - started).toBeLessThan('error' in expected ? 6_000 : 4_000);
      await waitFor(() => sockets.size === 0, { what: 'the connection to be closed' });
    } finally {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => receiver.close(resolve));
    }
  });
});
