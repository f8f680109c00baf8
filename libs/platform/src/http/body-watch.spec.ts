import { type AddressInfo, connect, type Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { finished } from 'node:stream/promises';
import fastify from 'fastify';
import { describe, expect, it, onTestFinished } from 'vitest';
import { hasBodyToCome, watchBody } from './body-watch.js';

const timeoutMs = 400;

/** A server whose bodies are watched, and a connection to it. `seen` has what came of each upload. */
async function start() {
  const app = fastify({ forceCloseConnections: true });
  const seen: number[] = [];
  const hadBody: boolean[] = [];
  app.decorateRequest('problemCode', null);
  app.addContentTypeParser('application/octet-stream', (_request, _payload, done) => done(null));
  app.addHook('onRequest', async (request, reply) => {
    hadBody.push(hasBodyToCome(request));
    watchBody(request, reply, timeoutMs);
  });
  app.post('/whole', async (request) => request.body);
  app.post('/streamed', { config: { streamsBody: true } as never }, async ({ raw }) => {
    let bytes = 0;
    raw.on('data', (chunk: Buffer) => seen.push((bytes += chunk.byteLength)));
    await finished(raw);
    return { bytes };
  });
  app.get('/slow', async () => {
    await new Promise((resolve) => setTimeout(resolve, 2 * timeoutMs));
    return { slow: true };
  });
  await app.listen({ port: 0, host: '127.0.0.1' });
  onTestFinished(() => app.close());
  const { port } = app.server.address() as AddressInfo;
  const open = (head: string): Socket => {
    const socket = connect(port, '127.0.0.1');
    onTestFinished(() => void socket.destroy());
    socket.write(`${head} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n`);
    return socket;
  };
  return { open, seen, hadBody };
}

describe('a body that is waited for', () => {
  it('is given up with a problem when it does not come as a whole in time', async () => {
    const { open, hadBody } = await start();
    const socket = open('POST /whole');
    socket.write('content-type: application/json\r\ncontent-length: 20\r\n\r\n{"a":');
    const answer = await text(socket);
    expect(answer).toMatch(/^HTTP\/1\.1 408 [^]*application\/problem\+json[^]*"code":"request_timeout"/);
    expect(answer).toMatch(/"requestId":"req-/);
    expect(hadBody).toEqual([true]);
  });

  it('is not waited for once it is there, or where there is none', async () => {
    const { open, hadBody } = await start();
    const whole = open('POST /whole');
    whole.write('content-type: application/json\r\ncontent-length: 7\r\n\r\n{"a":1}');
    expect(await text(whole)).toMatch(/^HTTP\/1\.1 200 [^]*\{"a":1\}$/);
    const slow = open('GET /slow');
    slow.write('\r\n');
    expect(await text(slow)).toMatch(/^HTTP\/1\.1 200 [^]*\{"slow":true\}$/);
    expect(hadBody).toEqual([true, false]);
  });

  it('may take as long as it moves where it is streamed', async () => {
    const { open, seen } = await start();
    const size = 1024 * 1024;
    const since = performance.now();
    const moving = open('POST /streamed');
    moving.write(`content-type: application/octet-stream\r\ncontent-length: ${size}\r\n\r\n`);
    const answer = text(moving);
    const piece = Buffer.alloc(16 * 1024);
    let sent = 0;
    const sending = setInterval(() => {
      // Fast enough for each look, and slow enough to take longer than a whole body may.
      const next = performance.now() - since > 4 * timeoutMs ? Buffer.alloc(size - sent) : piece;
      moving.write(next);
      sent += next.byteLength;
      if (sent === size) clearInterval(sending);
    }, 50);
    onTestFinished(() => clearInterval(sending));
    expect(await answer).toContain(`{"bytes":${size}}`);
    expect(performance.now() - since).toBeGreaterThan(timeoutMs);
    expect(seen.at(-1)).toBe(size);
  });

  it('is given up where it is streamed when it hardly moves', async () => {
    const { open } = await start();
    const size = 1024 * 1024;
    const stuck = open('POST /streamed');
    stuck.write(`content-type: application/octet-stream\r\ncontent-length: ${size}\r\n\r\nabc`);
    const dripping = setInterval(() => stuck.write('x'), 50);
    onTestFinished(() => clearInterval(dripping));
    expect(await text(stuck)).toMatch(/^HTTP\/1\.1 408 [^]*"code":"request_timeout"/);
  });
});
