import { chmod, lstat, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, waitFor } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Du, repository } from '../support/du.js';
import { asNobody, canBeNobody } from '../support/nobody.js';
import { bySocket, exchange } from '../support/raw-http.js';

/** A group that exists on every Debian. */
const group = { name: 'daemon', id: 1 };

describe('the API of a DU', () => {
  let folder: string;
  let du: Du;
  let port: number;
  let output = '';
  const call = async (method: string, path: string, headers: Record<string, string> = {}, body?: unknown) => {
    const answer = await fetch(`${du.url}${path}`, {
      method,
      headers: { ...headers, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return {
      status: answer.status,
      headers: answer.headers,
      json: (await answer.json().catch(() => ({}))) as { code?: string },
    };
  };
  const bearer = (token: string) => ({ authorization: `Bearer ${token}` });

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'airdock-access-'));
    du = await Du.start({
      folder,
      privateRegistryType: 'none',
      stopsRegistry: true,
      http: { socketGroup: group.name },
      onOutput: (text) => (output += text),
    });
    port = Number(new URL(du.url).port);
  });
  afterAll(async () => {
    await du?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  it('H1: takes calls without a token on a Unix socket that only its owner and its group can open', async () => {
    const { mode, uid, gid } = await lstat(du.socket);
    expect({ mode: mode & 0o777, uid, gid }).toEqual({ mode: 0o660, uid: process.getuid?.(), gid: group.id });
    expect(await bySocket(du.socket, 'GET', '/v1/jobs')).toMatchObject({ status: 200 });
    // Whoever shows a token there wants to know whether it is right.
    expect(await bySocket(du.socket, 'GET', '/v1/jobs', { headers: bearer('wrong') })).toMatchObject({ status: 401 });
  });

  it.runIf(canBeNobody)('H1: keeps the local user nobody away from the socket and the token files', async () => {
    // The folder of the data is closed; the socket is too, also where it lies in the open.
    await chmod(folder, 0o755);
    await chmod(du.dataDir, 0o711);
    try {
      const curl = ['-sS', '--max-time', '10', '--unix-socket', du.socket, 'http://localhost/v1/jobs'];
      expect(await asNobody('curl', curl)).toMatchObject({ code: 7, stdout: '' });
      expect((await asNobody('curl', curl, [group.id])).stdout).toContain('"items"');
      for (const file of ['admin.token', 'internal.token', 'secrets.key'])
        expect(await asNobody('cat', [join(du.dataDir, file)])).toMatchObject({ code: 1, stdout: '' });
    } finally {
      await chmod(du.dataDir, 0o700);
    }
  });

  it('H1: never takes a request by TCP for a local one', async () => {
    for (const headers of [
      { 'x-forwarded-for': '127.0.0.1' },
      { 'x-forwarded-proto': 'unix' },
      { forwarded: 'for=unix:' },
      { 'x-real-ip': '' },
      { via: 'socket' },
      { host: du.socket },
    ])
      expect((await call('GET', '/v1/jobs', headers as never)).json.code).toBe('token_missing');
    expect(await exchange(port, 'GET /v1/jobs HTTP/1.0\r\n\r\n', 3_000)).toMatchObject({
      status: 401,
      json: { code: 'token_missing' },
    });
  });

  it('H1: serves nothing but health without the token, unknown routes neither', async () => {
    for (const path of [
      '/v1/jobs',
      '/nothing',
      '/',
      '/docs',
      '/docs/',
      '/docs/swagger-ui.css',
      '/openapi.json',
      '/metrics',
      '/v1/%2e%2e/livez/x',
    ])
      expect([path, [401, 429].includes((await call('GET', path)).status)]).toEqual([path, true]);
    expect((await call('GET', '/livez')).status).toBe(200);
  });

  it('H1: is documented without a token in any argument of a program', async () => {
    for (const file of [
      'README.md',
      'docs/operations.md',
      'docs/hosts.md',
      'docs/backups.md',
      'docs/bundles.md',
      'docs/clusters.md',
      'docs/webhooks.md',
      'docs/packages.md',
      'docs/nodes.md',
    ])
      expect([
        file,
        /-H\s+["'](authorization|x-auth-token): [^"']*\$/i.test(await readFile(join(repository, file), 'utf8')),
      ]).toEqual([file, false]);
  });

  it('closes the routes of services to operators, on the socket too, and opens them to services', async () => {
    const [token, internal] = [await du.token(), await du.internalToken()];
    const routes = [
      ['GET', '/v1/states/host'],
      ['PUT', '/v1/states/host/tables/tunnel'],
      ['POST', '/v1/webhook-events'],
      ['POST', '/v1/bundles/forget-layers'],
      ['GET', '/v1/bundles/0198c0de-0000-7000-8000-000000000000/docker-archive'],
    ] as const;
    for (const [method, path] of routes) {
      const body = method === 'GET' ? undefined : {};
      expect((await call(method, path, bearer(token), body)).json.code).toBe('route_internal');
      expect((await bySocket(du.socket, method, path, body ? { body } : {})).json.code).toBe('route_internal');
      expect((await call(method, path, bearer(internal), body)).json.code).not.toBe('route_internal');
    }
    expect((await call('GET', '/v1/states/host', bearer(internal))).status).toBe(200);
    expect((await lstat(join(du.dataDir, 'internal.token'))).mode & 0o777).toBe(0o600);
  });

  it('M9: counts, logs and slows wrong tokens, and lets the right one in meanwhile', async () => {
    const token = await du.token();
    let isOver = false;
    const codes = new Map<number, number>();
    const flood = async () => {
      while (!isOver) {
        const { status } = await call('GET', '/v1/jobs', bearer('a-wrong-token')).catch(() => ({ status: 0 }));
        codes.set(status, (codes.get(status) ?? 0) + 1);
      }
    };
    const floods = Array.from({ length: 20 }, flood);
    await waitFor(async () => (codes.get(429) ?? 0) > 20, { what: 'wrong tokens to be slowed', timeoutMs: 30_000 });
    const right = await Promise.all(Array.from({ length: 20 }, () => call('GET', '/v1/jobs', bearer(token))));
    isOver = true;
    await Promise.all(floods);
    expect(right.map(({ status }) => status)).toEqual(Array(20).fill(200));
    const metrics = await (await fetch(`${du.url}/metrics`, { headers: bearer(token) })).text();
    expect(Number(/airdock_failed_logins_total\{code="token_invalid"\} (\d+)/.exec(metrics)?.[1])).toBeGreaterThan(20);
    const lines = output.split('\n').filter((line) => /a login from 127\.0\.0\.1 failed/.test(line));
    expect(lines.length).toBeGreaterThan(0);
    expect(lines.length).toBeLessThan(20);
    expect(output).not.toContain('a-wrong-token');
  });

  it('writes a line for every call that changes something, and for refusals, on one line and without secrets', async () => {
    const token = await du.token();
    const secret = 'S3cret-of-the-journal';
    const { headers } = await call('POST', '/v1/ssh-credentials', bearer(token), {
      name: 'journal',
      username: 'root',
      password: secret,
    });
    const made = headers.get('x-request-id') ?? 'none';
    const refused =
      (await bySocket(du.socket, 'DELETE', '/v1/hosts/%1b%5b2Jx%0d%0aforged', {})).headers['x-request-id'] ?? 'none';
    const forbidden = (await bySocket(du.socket, 'GET', '/v1/states/host')).headers['x-request-id'] ?? 'none';
    const job = await bySocket(du.socket, 'POST', '/v1/host-checks', { body: { hostIds: [] } });
    const rebuilt = await bySocket(du.socket, 'POST', '/v1/images/rebuild', { body: {} });
    const lineOf = (id: string) =>
      output
        .split('\n')
        .filter((line) => line.includes('"name":"journal"'))
        .map((line) => JSON.parse(line) as Record<string, unknown>)
        .find(({ requestId }) => requestId === id);
    await waitFor(async () => [made, refused, forbidden].every((id) => lineOf(id) !== undefined), {
      what: 'the journal',
      timeoutMs: 10_000,
    });
    expect(lineOf(made)).toMatchObject({
      level: 30,
      who: 'admin',
      from: '127.0.0.1',
      method: 'POST',
      operation: 'createSshCredential',
      object: '/v1/ssh-credentials',
      status: 201,
    });
    expect(lineOf(refused)).toMatchObject({
      who: 'local',
      from: 'socket',
      method: 'DELETE',
      operation: 'deleteHost',
      status: 404,
      code: 'resource_not_found',
    });
    expect(lineOf(forbidden)).toMatchObject({
      who: 'local',
      operation: 'getState',
      status: 403,
      code: 'route_internal',
    });
    expect(job.status).toBeGreaterThanOrEqual(400);
    expect(rebuilt.status).toBe(202);
    await waitFor(async () => lineOf(rebuilt.headers['x-request-id'] ?? '')?.jobId === rebuilt.json.id, {
      what: 'the job in the journal',
      timeoutMs: 10_000,
    });
    expect(output).not.toContain(secret);
    expect(output).not.toContain('\u001b');
    expect(output).not.toContain(token);
  });
});

describe('a start', () => {
  const attempt = async (prepare: (folder: string) => Promise<Partial<Parameters<typeof Du.start>[0]>>) => {
    const folder = await mkdtemp(join(tmpdir(), 'airdock-start-'));
    try {
      await using du = await Du.start({
        folder,
        privateRegistryType: 'none',
        stopsRegistry: true,
        ...(await prepare(folder)),
      });
      return { dataMode: ((await stat(du.dataDir)).mode & 0o777).toString(8), output: du.output };
    } catch (error) {
      return { refusal: (error as Error).message };
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  };
  const withFile =
    (name: string, text: string, mode: number) =>
    async (folder: string): Promise<object> => {
      await mkdir(join(folder, 'data'), { mode: 0o700 });
      await writeFile(join(folder, 'data', name), text);
      await chmod(join(folder, 'data', name), mode);
      return {};
    };

  it.each([
    ['admin.token', 'x'.repeat(43), 0o644],
    ['admin.token', 'x'.repeat(43), 0o640],
    ['admin.token', 'x'.repeat(43), 0o602],
    ['internal.token', 'x'.repeat(43), 0o644],
    ['secrets.key', 'a'.repeat(64), 0o604],
  ])('L3: is refused while others can read or change %s', async (name, text, mode) => {
    const { refusal } = await attempt(withFile(name, text, mode));
    expect(refusal).toContain(`chmod 600`);
    expect(refusal).toContain(name);
    expect(refusal).not.toContain(text);
  });

  it('L3: closes a data folder that others may go into, and says so', async () => {
    const { dataMode, output } = await attempt(async (folder) => {
      await mkdir(join(folder, 'data'));
      await chmod(join(folder, 'data'), 0o755);
      return {};
    });
    expect(dataMode).toBe('700');
    expect(output).toContain('had mode 0755');
  });

  it.runIf(canBeNobody)('L3: is refused where another user could change the folders above the data', async () => {
    const { refusal } = await attempt(async (folder) => {
      await chmod(folder, 0o777);
      return {};
    });
    expect(refusal).toContain('chmod go-w');
  });

  it('M9: is refused with a token that can be guessed', async () => {
    expect((await attempt(withFile('admin.token', 'letmein', 0o600))).refusal).toContain('at least 32 characters');
  });

  it('H1: is refused beyond loopback without TLS, unless it is asked for by name', async () => {
    expect((await attempt(async () => ({ http: { host: '0.0.0.0' } }))).refusal).toContain(
      'airdock.http.allowPlainHttp',
    );
    expect((await attempt(async () => ({ http: { host: '::' } }))).refusal).toContain('airdock.http.allowPlainHttp');
  });

  it('H1: replaces a socket that a dead process has left, and no other file', async () => {
    const left = await attempt(async (folder) => {
      await mkdir(join(folder, 'data'), { mode: 0o700 });
      const path = join(folder, 'data', 'api.sock');
      // A server that is closed without removing its socket.
      const child = createServer().listen(join(folder, 'data', 's'));
      await new Promise((resolve) => child.once('listening', resolve));
      const { rename } = await import('node:fs/promises');
      await rename(join(folder, 'data', 's'), path);
      child.close();
      return {};
    });
    expect(left.refusal).toBeUndefined();
    const file = await attempt(withFile('api.sock', 'precious', 0o600));
    expect(file.refusal).toContain('is no socket');
    const long = await attempt(async (folder) => ({ http: { socket: join(folder, 'x'.repeat(120)) } }));
    expect(long.refusal).toContain('107');
    const answering = createServer((socket) => socket.end());
    const path = join(tmpdir(), `airdock-squatter-${await freePort()}.sock`);
    await new Promise<void>((resolve) => answering.listen(path, resolve));
    try {
      expect((await attempt(async () => ({ http: { socket: path } }))).refusal).toContain('another process listens');
    } finally {
      answering.close();
    }
  });
});
