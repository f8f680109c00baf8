import { mkdtemp, rm } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { startHostileSshServer } from '@airdock/testing/hostile-ssh-server';
import { waitFor } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Du } from '../support/du.js';
import { bySocket, exchange, parseAnswer, send } from '../support/raw-http.js';

/** Slow clients, crowds and malformed HTTP, against bounds that are short so that the tests are. */
describe('M4: the API', () => {
  let folder: string;
  let du: Du;
  let port: number;
  let token: string;
  const sockets: Socket[] = [];
  const open = (text: string, address?: string) => {
    const connection = send(port, text, address);
    sockets.push(connection.socket);
    return connection;
  };
  const authorized = () => `host: x\r\nauthorization: Bearer ${token}\r\n`;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'airdock-limits-'));
    const http = { headerTimeoutSeconds: 2, bodyTimeoutSeconds: 2, maxConnectionsPerAddress: 100, maxConnections: 150 };
    du = await Du.start({ folder, privateRegistryType: 'none', stopsRegistry: true, http });
    port = Number(new URL(du.url).port);
    token = await du.token();
  });
  afterAll(async () => {
    for (const socket of sockets) socket.destroy();
    await du?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  it('ends connections whose headers drip, or never come', async () => {
    const dripping = open('GET /livez HTTP/1.1\r\nhost: x\r\n');
    const silent = open('');
    const drip = setInterval(() => dripping.socket.write('x-a: b\r\n'), 300);
    await Promise.race([
      Promise.all([dripping.closed, silent.closed]),
      delay(30_000).then(() => Promise.reject(new Error('still open after 30 s'))),
    ]);
    clearInterval(drip);
    expect(parseAnswer(dripping.received())).toMatchObject({ status: 408, json: { code: 'request_timeout' } });
  });

  it('ends requests whose body drips or stops', async () => {
    const head = `POST /v1/hosts HTTP/1.1\r\n${authorized()}content-type: application/json\r\n`;
    const dripping = open(`${head}transfer-encoding: chunked\r\n\r\n`);
    const stopped = open(`${head}content-length: 100\r\n\r\n{"name":`);
    const drip = setInterval(() => dripping.socket.write('1\r\n \r\n'), 200);
    await Promise.race([
      Promise.all([dripping.closed, stopped.closed]),
      delay(30_000).then(() => Promise.reject(new Error('still open after 30 s'))),
    ]);
    clearInterval(drip);
    expect(parseAnswer(dripping.received())).toMatchObject({ status: 408, json: { code: 'request_timeout' } });
    expect(parseAnswer(stopped.received())).toMatchObject({ status: 408, json: { code: 'request_timeout' } });
  });

  const startUpload = async (bytes: number): Promise<string> => {
    const headers = { authorization: `Bearer ${token}`, 'tus-resumable': '1.0.0', 'upload-length': String(bytes) };
    const created = await fetch(`${du.url}/v1/uploads`, { method: 'POST', headers });
    expect(created.status).toBe(201);
    return new URL(created.headers.get('location') ?? '', du.url).pathname;
  };
  const patchHead = (path: string, bytes: number) =>
    `PATCH ${path} HTTP/1.1\r\n${authorized()}tus-resumable: 1.0.0\r\nupload-offset: 0\r\ncontent-type: application/offset+octet-stream\r\ncontent-length: ${bytes}\r\n\r\n`;

  it('ends an upload that stands still or trickles, and keeps one that moves, however long it takes', async () => {
    const [still, trickling, moving] = [
      await startUpload(100_000),
      await startUpload(100_000),
      await startUpload(120_000),
    ];
    const connections = [open(`${patchHead(still, 100_000)}x`), open(patchHead(trickling, 100_000))];
    const trickle = setInterval(() => connections[1]?.socket.write('x'), 200);
    const good = open(patchHead(moving, 120_000));
    const feed = setInterval(() => good.socket.write('y'.repeat(10_000)), 500);
    await waitFor(async () => parseAnswer(good.received()).status === 204, {
      what: 'the upload that moves',
      timeoutMs: 30_000,
    });
    clearInterval(feed);
    await Promise.race([
      Promise.all(connections.map(({ closed }) => closed)),
      delay(30_000).then(() => Promise.reject(new Error('still open after 30 s'))),
    ]);
    clearInterval(trickle);
  });

  it('looks for the token before it reads or asks for a body, and closes', async () => {
    const big = 'POST /v1/hosts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n';
    expect(await exchange(port, `${big}\r\n`, 5_000)).toMatchObject({
      isClosed: true,
      json: { code: expect.stringMatching(/token_missing|login_slowed/) },
    });
    expect(await exchange(port, `${big}expect: 100-continue\r\n\r\n`, 5_000)).toMatchObject({
      isClosed: true,
      status: expect.toSatisfy((status) => status !== 100),
    });
    const unknown = big.replace('/v1/hosts', '/nothing');
    expect(await exchange(port, `${unknown}\r\n`, 5_000)).toMatchObject({
      isClosed: true,
      json: { code: expect.stringMatching(/token_missing|login_slowed/) },
    });
    const invited = open(
      `POST /v1/hosts HTTP/1.1\r\n${authorized()}content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n`,
    );
    await waitFor(async () => invited.received().includes('100 Continue'), {
      what: 'the invitation',
      timeoutMs: 5_000,
    });
    invited.socket.write('{}');
    await waitFor(async () => invited.received().includes('request_invalid'), { what: 'the answer', timeoutMs: 5_000 });
  });

  it('takes so many connections of one address and in all, and the socket has its own', async () => {
    const crowd = Array.from({ length: 130 }, () => open(''));
    await waitFor(
      async () => crowd.filter(({ received }) => received().includes('connections_exceeded')).length >= 30,
      {
        what: 'connections to be refused',
        timeoutMs: 10_000,
      },
    );
    const other = await exchange(port, 'GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n', 5_000);
    expect(await bySocket(du.socket, 'GET', '/v1/jobs')).toMatchObject({ status: 200 });
    const fromElsewhere = open('GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n', '127.0.0.2');
    await fromElsewhere.closed;
    expect(parseAnswer(fromElsewhere.received()).status).toBe(200);
    for (const { socket } of crowd) socket.destroy();
    expect(other).toMatchObject({ status: 503, json: { code: 'connections_exceeded' }, isClosed: true });
    await waitFor(async () => (await fetch(`${du.url}/livez`).catch(() => ({ ok: false }))).ok, {
      what: 'room again',
      timeoutMs: 10_000,
    });
  });

  it.each([
    ['no HTTP', 'hello\r\n\r\n', 400, 'request_malformed'],
    ['an unknown method', 'FOO / HTTP/1.1\r\nhost: x\r\n\r\n', 400, 'request_malformed'],
    ['another version', 'GET /livez HTTP/9.9\r\nhost: x\r\n\r\n', 400, 'request_malformed'],
    [
      'a length that is none',
      'POST /v1/hosts HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n',
      400,
      'request_malformed',
    ],
    [
      'two lengths',
      'POST /v1/hosts HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n',
      400,
      'request_malformed',
    ],
    [
      'a length and chunks',
      'POST /v1/hosts HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n',
      400,
      'request_malformed',
    ],
    ['a header without a name', 'GET /livez HTTP/1.1\r\n: x\r\n\r\n', 400, 'request_malformed'],
    [
      'headers of 20 kB',
      `GET /livez HTTP/1.1\r\nhost: x\r\nx-a: ${'a'.repeat(20_000)}\r\n\r\n`,
      431,
      'header_too_large',
    ],
    ['a tunnel', 'CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n', 405, 'method_not_allowed'],
  ])('answers %s with a problem document', async (_what, bytes, status, code) => {
    const answer = await exchange(port, bytes, 5_000);
    expect(answer).toMatchObject({ status, isClosed: true, json: { code, status, nextStep: expect.any(String) } });
    expect(answer.headers['content-type']).toContain('application/problem+json');
  });

  it.each([
    ['no Host', 'GET', '/v1/jobs HTTP/1.1', '', 400, 'request_malformed'],
    ['a path that is none', 'GET', '/v1/%zz HTTP/1.1', 'host: x\r\n', 400, 'request_malformed'],
    ['an id of 1000 characters', 'GET', `/v1/hosts/${'a'.repeat(1000)} HTTP/1.1`, 'host: x\r\n', 414, 'uri_too_long'],
    ['a method that Fastify knows not', 'PROPFIND', '/v1/jobs HTTP/1.1', 'host: x\r\n', 404, 'route_not_found'],
    [
      'a method that the route has not',
      'PUT',
      '/v1/jobs HTTP/1.1',
      'host: x\r\ncontent-length: 0\r\n',
      404,
      'route_not_found',
    ],
    [
      'XML',
      'POST',
      '/v1/hosts HTTP/1.1',
      'host: x\r\ncontent-type: text/xml\r\ncontent-length: 4\r\n\r\n<x/>',
      415,
      'media_type_unsupported',
    ],
    [
      'a media type that is none',
      'POST',
      '/v1/hosts HTTP/1.1',
      'host: x\r\ncontent-type: ;;;\r\ncontent-length: 2\r\n\r\n{}',
      415,
      'media_type_unsupported',
    ],
    [
      'a body of 2 MB',
      'POST',
      '/v1/hosts HTTP/1.1',
      'host: x\r\ncontent-type: application/json\r\ncontent-length: 2000000\r\n',
      413,
      'payload_too_large',
    ],
    [
      'bad JSON',
      'POST',
      '/v1/hosts HTTP/1.1',
      'host: x\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n{',
      400,
      'request_malformed',
    ],
    ['no tus', 'POST', '/v1/uploads HTTP/1.1', 'host: x\r\ncontent-length: 0\r\n', 412, 'request_malformed'],
    [
      'a stream of no job',
      'GET',
      '/v1/jobs/0198c0de-0000-7000-8000-000000000000/events HTTP/1.1',
      'host: x\r\naccept: text/event-stream\r\n',
      404,
      'resource_not_found',
    ],
  ])('answers %s with a problem document', async (_what, method, target, rest, status, code) => {
    const [headers = '', body = ''] = rest.split('\r\n\r\n');
    const lines = headers.endsWith('\r\n') || headers === '' ? headers : `${headers}\r\n`;
    const bytes = `${method} ${target}\r\nauthorization: Bearer ${token}\r\nconnection: close\r\n${lines}\r\n${body}`;
    const answer = await exchange(port, bytes, 5_000);
    expect({ status: answer.status, code: answer.json.code, type: answer.headers['content-type'] }).toEqual({
      status,
      code,
      type: expect.stringContaining('application/problem+json'),
    });
  });

  it('L7: says that there is no such job in a line that is no error', async () => {
    const errors = du.output.split('\n').filter((line) => line.includes('"level":50'));
    expect(errors).toEqual([]);
  });

  it('keeps so many streams open for one client, and those that are open alive', async () => {
    // A host that answers no command: its check goes on for as long as this test needs.
    await using silent = await startHostileSshServer({ onExec: () => undefined });
    const post = async (path: string, body: unknown) => (await bySocket(du.socket, 'POST', path, { body })).json;
    const credential = await post('/v1/ssh-credentials', { name: 'silent', username: 'root', password: 'x' });
    const { port, hostKey } = silent;
    const host = await post('/v1/hosts', {
      name: 'silent',
      address: '127.0.0.1',
      port,
      credentialId: credential.id,
      hostKey,
    });
    const job = await post('/v1/host-checks', { hostIds: [host.id] });
    const stream = `GET /v1/jobs/${String(job.id)}/events HTTP/1.1\r\n${authorized()}\r\n`;
    const streams = Array.from({ length: 70 }, () => open(stream));
    const answers = () => streams.map(({ received }) => parseAnswer(received()).status);
    await waitFor(async () => !answers().includes(0), { what: 'all streams to be answered', timeoutMs: 10_000 });
    expect(answers().filter((status) => status === 200)).toHaveLength(64);
    expect(answers().filter((status) => status === 429)).toHaveLength(6);
    const heard = () =>
      streams.every(({ received }, index) => answers()[index] === 429 || received().includes('heartbeat'));
    await waitFor(async () => heard(), { what: 'heartbeats', timeoutMs: 30_000 });
    // What has ended makes room.
    for (const { socket } of streams) socket.destroy();
    await waitFor(
      async () => {
        const again = open(stream);
        await waitFor(async () => again.received() !== '', { what: 'an answer', timeoutMs: 5_000 });
        return parseAnswer(again.received()).status === 200;
      },
      { what: 'room again', timeoutMs: 10_000 },
    );
  });

  it('L6: tells browsers to keep the documents out of frames and caches', async () => {
    const answer = await fetch(`${du.url}/docs`, { headers: { authorization: `Bearer ${token}` } });
    expect(answer.status).toBe(200);
    expect(answer.headers.get('content-security-policy')).toContain("frame-ancestors 'none'");
    expect(answer.headers.get('content-security-policy')).toContain("default-src 'none'");
    expect(Object.fromEntries(answer.headers)).toMatchObject({
      'x-frame-options': 'DENY',
      'x-content-type-options': 'nosniff',
      'cache-control': expect.stringContaining('no-store'),
    });
    // What the policy forbids is not in the page: scripts and handlers in it.
    const page = await answer.text();
    expect(page).not.toMatch(/<script(?![^>]*\bsrc=)[^>]*>\s*\S/);
  });
});
