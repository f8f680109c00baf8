import { type AddressInfo, connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { tempDir } from '@airdock/testing/servers';
import type { FastifyServerFactoryHandler } from 'fastify';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Servers } from './servers.js';

const limits = { maxConnections: 4, maxConnectionsPerAddress: 3, headerTimeoutSeconds: 30 };
const request = (path: string, more = '') => `GET ${path} HTTP/1.1\r\nhost: a\r\n${more}\r\n`;

/** Servers that answer with the path, and whether it came by the Unix socket; and connections to them. */
async function start(change: Partial<typeof limits> = {}) {
  const folder = await tempDir('servers');
  const servers = new Servers({ ...limits, ...change });
  const server = servers.create(((incoming, response) => {
    servers.invite(incoming, response);
    incoming.resume().once('end', () => {
      response.setHeader('connection', incoming.url === '/stay' ? 'keep-alive' : 'close');
      response.end(`${incoming.url} ${servers.isLocal(incoming) ? 'local' : 'remote'}`);
    });
  }) as FastifyServerFactoryHandler);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const path = join(folder.path, 'api.sock');
  await servers.listenLocally({ path });
  onTestFinished(async () => {
    servers.closeLocally();
    server.closeAllConnections();
    server.close();
    await folder.remove();
  });
  const { port } = server.address() as AddressInfo;
  const open = async (to: 'tcp' | 'socket' = 'tcp'): Promise<Socket> => {
    const socket = to === 'tcp' ? connect(port, '127.0.0.1') : connect(path);
    await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    onTestFinished(() => void socket.destroy());
    return socket;
  };
  const send = async (content: string, to?: 'tcp' | 'socket') => {
    const socket = await open(to);
    socket.write(content);
    return text(socket);
  };
  /** A connection that has been answered, and stays open. */
  const stay = async (to?: 'tcp' | 'socket') => {
    const socket = await open(to);
    socket.write(request('/stay'));
    await new Promise((resolve) => socket.once('data', resolve));
    return socket;
  };
  return { servers, send, stay, open };
}

describe('the servers of a process', () => {
  it('tell who came by the Unix socket, whatever others say', async () => {
    const { send } = await start();
    expect(await send(request('/a'), 'socket')).toMatch(/\/a local$/);
    expect(await send(request('/a', 'x-forwarded-for: unix\r\n'))).toMatch(/\/a remote$/);
  });

  it('refuse one connection too many of an address with a problem, and take one again when another has ended', async () => {
    const { send, stay } = await start();
    const [first] = [await stay(), await stay(), await stay()];
    // Without a request: what is refused is not read, and what was sent would be answered by a reset.
    const refused = await send('');
    expect(refused).toMatch(/^HTTP\/1\.1 503 [^]*application\/problem\+json[^]*connections_exceeded/);
    const closed = new Promise((resolve) => first.once('close', resolve));
    first.end();
    await closed;
    await expect.poll(() => send(request('/b')).catch(() => ''), { timeout: 5_000 }).toMatch(/\/b remote$/);
  });

  it('keep whoever may open the socket out of reach of the network, and the socket within its own bound', async () => {
    const { send, stay } = await start({ maxConnections: 2, maxConnectionsPerAddress: 9 });
    const [first] = [await stay(), await stay()];
    expect(await send('')).toContain('connections_exceeded');
    for (let count = 0; count < 2; count++) await stay('socket');
    expect(await send('', 'socket')).toContain('connections_exceeded');
    first.end();
    await expect.poll(() => send(request('/c')).catch(() => ''), { timeout: 5_000 }).toMatch(/\/c remote$/);
  });

  it.each([
    ['what is no HTTP', 'nonsense\r\n\r\n', 400, 'request_malformed'],
    ['a header that is too large', request('/', `x: ${'y'.repeat(70_000)}\r\n`), 431, 'header_too_large'],
    ['CONNECT', 'CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n', 405, 'method_not_allowed'],
  ])('answer %s with a problem, and close', async (_what, content, status, code) => {
    const { send } = await start();
    const [head = '', body = ''] = (await send(content)).split('\r\n\r\n');
    expect(head).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(JSON.parse(body)).toMatchObject({ code, status });
  });

  it('let a client that asks first send its body once it was admitted', async () => {
    const { open } = await start();
    const socket = await open();
    socket.write('POST /d HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n');
    const invited = await new Promise<Buffer>((resolve) => socket.once('data', resolve));
    expect(invited.toString()).toBe('HTTP/1.1 100 Continue\r\n\r\n');
    socket.write('ok');
    expect(await text(socket)).toMatch(/\/d remote$/);
  });

  it('take nothing more on the socket once it is closed, and still on TCP', async () => {
    const { servers, send, stay, open } = await start();
    const socket = await stay('socket');
    const closed = new Promise((resolve) => socket.once('close', resolve));
    servers.closeLocally();
    await closed;
    await expect(open('socket')).rejects.toMatchObject({ code: expect.stringMatching(/ENOENT|ECONNREFUSED/) });
    expect(await send(request('/e'))).toMatch(/\/e remote$/);
  });

  it('listen on a socket only after TCP', async () => {
    const folder = await tempDir('servers');
    onTestFinished(() => folder.remove());
    await expect(new Servers(limits).listenLocally({ path: join(folder.path, 's') })).rejects.toThrow(
      'TCP comes first',
    );
  });
});
