import { mkdir } from 'node:fs/promises';
import { createServer as createHttpServer, type Server as HttpServer } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { dirname, join } from 'node:path';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { freePort, isPortFree, startRedis, startRegistry, tempDir, waitFor } from '@airdock/testing/servers';
import request from 'supertest';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RegistryModule } from './registry.module.js';

type Service = Awaited<ReturnType<typeof startComponent>>;

describe('registry-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let port: number;
  let service: Service;
  const api = (method: 'get' | 'put', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const registry = async () => (await api('get', '/v1/registry').expect(200)).body;
  const put = async (body: object): Promise<Job> => {
    const { body: job } = await api('put', '/v1/registry').send(body).expect(202);
    return (await api('get', `/v1/jobs/${job.id}?waitSeconds=30`)).body as Job;
  };
  const start = (overrides: Record<string, unknown> = {}) =>
    startComponent('registry', RegistryModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      overrides: { 'registry.port': port, 'registry.allowedHosts': ['127.0.0.0/8', '::1'], ...overrides },
    });

  beforeEach(async () => {
    folder = await tempDir('registry-svc');
    redis = await startRedis();
    port = await freePort();
    service = await start();
  });
  afterEach(async () => {
    await put({ mode: 'none' });
    await service.app.close();
    await redis.stop();
    await folder.remove();
  });

  it('runs no registry in mode none', async () => {
    expect(await registry()).toMatchObject({
      mode: 'none',
      host: null,
      url: null,
      engine: null,
      health: null,
      storage: null,
    });
    expect(await isPortFree(port)).toBe(true);
  });

  it('switches the registry on, off and to an external one, as jobs', async () => {
    const job = await put({ mode: 'local' });
    expect(job).toMatchObject({
      type: 'registry.apply',
      state: 'succeeded',
      resource: '/v1/registry',
      result: { mode: 'local' },
    });
    const on = await registry();
    expect(on).toMatchObject({
      mode: 'local',
      host: `localhost:${port}`,
      engine: { kind: 'process', version: expect.stringMatching(/^\d/) },
      health: { ok: true, readOnlyOk: true },
    });
    expect(on.storage).toMatchObject({ usedBytes: expect.any(Number), freeBytes: expect.any(Number) });
    expect(await put({ mode: 'local' })).toMatchObject({ state: 'succeeded' });

    const other = await startRegistry();
    expect(await put({ mode: 'external', externalUrl: other.url })).toMatchObject({ state: 'succeeded' });
    expect(await registry()).toMatchObject({
      mode: 'external',
      url: other.url,
      engine: { kind: 'external' },
      health: { ok: true },
    });
    expect(await isPortFree(port)).toBe(true);
    await other.stop();
    expect((await registry()).health).toMatchObject({ ok: false, error: 'ECONNREFUSED' });
    expect((await api('put', '/v1/registry').send({ mode: 'external' })).body).toMatchObject({
      status: 422,
      code: 'request_invalid',
      detail: expect.stringContaining('externalUrl'),
    });
  });

  it('stops the local registry for no other that does not answer as one', { timeout: 60_000 }, async () => {
    await put({ mode: 'local' });
    const serve = async (answer: Parameters<typeof createHttpServer>[1]) => {
      const server = createHttpServer(answer);
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      servers.push(server);
      return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    };
    const servers: HttpServer[] = [];
    const urls = [
      `http://127.0.0.1:${await freePort()}`,
      await serve((_, response) => response.end('<html>It works</html>')),
      await serve((_, response) => response.writeHead(404).end('{"errors": []}')),
      await serve((_, response) => response.writeHead(401, { 'www-authenticate': 'Basic' }).end('{}')),
      await serve((_, response) => response.end(Buffer.alloc(1_000_000))),
      await serve((request) => request.socket.destroy()),
    ];
    for (const externalUrl of urls) {
      const { body } = await api('put', '/v1/registry').send({ mode: 'external', externalUrl }).expect(409);
      expect(body, externalUrl).toMatchObject({
        code: 'registry_external_silent',
        detail: expect.stringContaining(externalUrl),
      });
    }
    expect(await registry()).toMatchObject({
      mode: 'local',
      error: null,
      health: { ok: true, readOnlyOk: true, localhostOk: true },
    });

    // The same in the configuration file: what is there goes on until the other answers.
    const other = await startRegistry();
    await other.kill();
    await service.app.close();
    const file = { 'registry.externalUrl': other.url };
    const startExternal = () =>
      startComponent('registry', RegistryModule, {
        dataDir: folder.path,
        redisUrl: redis.url,
        privateRegistryType: 'external',
        overrides: { 'registry.port': port, ...file },
      });
    service = await startExternal();
    await waitFor(async () => (await registry()).error?.code === 'registry_external_silent', {
      what: 'the silence to be said',
      timeoutMs: 30_000,
    });
    expect((await fetch(`http://localhost:${port}/v2/`)).status).toBe(200);
    await other.restart();
    await waitFor(async () => (await registry()).error === null && (await isPortFree(port)), {
      what: 'the other to be taken',
      timeoutMs: 40_000,
    });
    expect((await registry()).health).toMatchObject({ ok: true });
    await other.stop();
    for (const server of servers) server.closeAllConnections();
    await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  });

  it('says what the configuration file may mean otherwise', async () => {
    expect((await registry()).warnings).toEqual([]);
    await service.app.close();
    service = await startComponent('registry', RegistryModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      privateRegistryType: 'docker' as never,
      overrides: { 'registry.port': port },
    });
    expect(await registry()).toMatchObject({ mode: 'local', warnings: [expect.stringContaining('"docker"')] });
  });

  it('lets only one of two people overwrite the other', async () => {
    const { headers } = await api('get', '/v1/registry');
    await api('put', '/v1/registry')
      .set('if-match', headers.etag as string)
      .send({ mode: 'none' })
      .expect(202);
    expect(
      (
        await api('put', '/v1/registry')
          .set('if-match', headers.etag as string)
          .send({ mode: 'local' })
          .expect(412)
      ).body.code,
    ).toBe('resource_changed');
  });

  it('gives each of many that write at once a job, or a refusal', async () => {
    const answers = await Promise.all(
      Array.from({ length: 6 }, () => api('put', '/v1/registry').send({ mode: 'none' })),
    );
    for (const { status, body } of answers) {
      if (status === 202) await api('get', `/v1/jobs/${body.id}`).expect(200);
      else expect(body.code).toBe('resource_changed');
    }
  });

  it('works without localhost while another program has the port, names it, and takes the port when it is free', async () => {
    const other = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve) => other.listen(port, '127.0.0.1', resolve));
    expect(await put({ mode: 'local' })).toMatchObject({ state: 'succeeded' });
    expect(await registry()).toMatchObject({
      ...{
        mode: 'local',
        error: null,
        localhostError: { code: 'registry_port_taken', port, nextStep: expect.any(String) },
      },
      health: { ok: true, readOnlyOk: true, localhostOk: false },
    });
    await waitFor(async () => (await registry()).foreignProcesses.length > 0, {
      what: 'the other program to be named',
    });
    expect((await registry()).foreignProcesses).toMatchObject([
      { kind: 'listener', port, pid: process.pid, uid: process.geteuid?.() },
    ]);
    await new Promise((resolve) => other.close(resolve));
    await waitFor(async () => (await registry()).localhostError === null, {
      what: 'the supervisor to start the front',
      timeoutMs: 30_000,
    });
    expect((await fetch(`http://localhost:${port}/v2/`)).status).toBe(200);
  });

  it('says why the registry did not start, and starts it when the reason has gone', async () => {
    const socket = join(folder.path, 'run/registry/read-write.sock');
    await mkdir(dirname(socket), { recursive: true, mode: 0o700 });
    const other = createHttpServer((_, response) => response.end('{}'));
    await new Promise<void>((resolve) => other.listen(socket, resolve));
    expect(await put({ mode: 'local' })).toMatchObject({ state: 'failed', error: { code: 'registry_socket_taken' } });
    expect(await registry()).toMatchObject({
      mode: 'local',
      error: { code: 'registry_socket_taken', nextStep: expect.any(String) },
    });
    await new Promise((resolve) => other.close(resolve));
    await waitFor(async () => (await registry()).error === null && (await registry()).health.ok, {
      what: 'the supervisor to start the registry',
      timeoutMs: 15_000,
    });
  });

  it('keeps what the API said over a restart, until the configuration file says something new', async () => {
    await put({ mode: 'local' });
    await service.app.close();
    expect(await isPortFree(port)).toBe(false);
    service = await start();
    expect((await registry()).mode).toBe('local');
    await service.app.close();
    service = await startComponent('registry', RegistryModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      privateRegistryType: 'local',
      overrides: { 'registry.port': port },
    });
    await put({ mode: 'none' });
    expect((await registry()).mode).toBe('none');
    await service.app.close();
    service = await start();
    expect((await registry()).mode).toBe('none');
  });
});
