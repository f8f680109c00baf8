import { rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { copyImages } from '@airdock/registry/copy/copy-image';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { freePort, startJsonServer, startRedis, startRegistry, tempDir, waitFor } from '@airdock/testing/servers';
import { Webhook } from 'standardwebhooks';
import request from 'supertest';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BackupModule } from './backup.module.js';

interface Seen {
  headers: Record<string, string>;
  body: string;
}

describe('backup-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let registry: Awaited<ReturnType<typeof startRegistry>>;
  let registryService: Awaited<ReturnType<typeof startJsonServer>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let receiver: Server;
  let status = 204;
  const seen: Seen[] = [];
  const answers: Record<string, unknown> = {};
  const api = (method: 'get' | 'post' | 'delete', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const post = async (path: string, body: object): Promise<Job> => {
    const { body: job } = await api('post', path).send(body).expect(202);
    return (await api('get', `/v1/jobs/${job.id}?waitSeconds=30`)).body as Job;
  };
  const idOf = (job: Job) => job.resource.split('/').at(-1) ?? '';
  const digestOf = async (name: string) =>
    (
      await fetch(`${registry.url}/v2/${name}`, {
        method: 'HEAD',
        headers: { accept: 'application/vnd.oci.image.manifest.v1+json' },
      })
    ).headers.get('docker-content-digest');
  const receiverUrl = () => `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/hook`;

  beforeAll(async () => {
    folder = await tempDir('backup-svc');
    [redis, registry] = await Promise.all([startRedis(), startRegistry()]);
    answers['/v1/registry'] = { mode: 'local', url: registry.url };
    for (const service of ['image', 'host', 'cluster'])
      answers[`/v1/states/${service}`] = { service, formatVersion: 1, keyFingerprint: 'x', tables: [] };
    answers['/v1/images'] = { items: [] };
    registryService = await startJsonServer(answers);
    service = await startComponent('backup', BackupModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      overrides: {
        ...Object.fromEntries(
          ['registry', 'image', 'host', 'cluster'].map((name) => [`services.${name}`, registryService.url]),
        ),
        'http.port': await freePort(),
        'webhooks.allowedHosts': ['127.0.0.0/8'],
      },
    });
    const file = join(folder.path, 'bundle.tar');
    const images = ['quay.io/a:1', 'quay.io/b:2'].map((name) =>
      makeImage({ name, layers: [{ randomBytes: 300_000, seed: 'base' }, { files: { name } }] }),
    );
    await buildOciArchive(file, await Promise.all(images));
    const source = await openBundle(file, { workDir: join(folder.path, 'work') });
    const client = new RegistryClient(registry.url);
    await copyImages({
      source,
      registry: client,
      images: source.images.map((image, index) => ({ image, names: [{ repository: `r${index}`, tag: 'v1' }] })),
    });
    await client.close();
    await source[Symbol.asyncDispose]();
    receiver = createServer((incoming, response) => {
      let body = '';
      incoming.on('data', (chunk: Buffer) => {
        body += chunk.toString();
      });
      incoming.on('end', () => {
        seen.push({ headers: incoming.headers as Record<string, string>, body });
        response.writeHead(status, { location: 'http://127.0.0.1:9/' }).end();
      });
    });
    await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve));
  });
  afterAll(async () => {
    await service?.app.close();
    receiver?.closeAllConnections();
    await new Promise((resolve) => receiver.close(resolve));
    await Promise.all([redis, registry, registryService].map((server) => server?.stop()));
    await folder?.remove();
  });

  it('backs the registry up, restores it after its storage was wiped, and skips what is there', async () => {
    const before = [await digestOf('r0/manifests/v1'), await digestOf('r1/manifests/v1')];
    const backup = await post('/v1/backups', { description: 'before the wipe' });
    expect(backup).toMatchObject({ state: 'succeeded', result: { images: 2 } });
    expect((await api('get', `/v1/backups/${idOf(backup)}`)).body).toMatchObject({
      state: 'complete',
      images: 2,
      description: 'before the wipe',
      completedAt: expect.any(String),
    });
    await rm(join(registry.storageDir, 'docker'), { recursive: true });
    expect(await digestOf('r0/manifests/v1')).toBeNull();
    const restore = await post('/v1/restores', { backupId: idOf(backup) });
    expect(restore).toMatchObject({ state: 'succeeded', result: { images: 2 } });
    expect([await digestOf('r0/manifests/v1'), await digestOf('r1/manifests/v1')]).toEqual(before);
    expect(await post('/v1/restores', { backupId: idOf(backup) })).toMatchObject({ state: 'succeeded' });
    expect((await api('get', '/v1/restores')).body.items).toHaveLength(2);
  });

  it('refuses to restore what is no complete backup, and to work without a registry', async () => {
    expect(
      (await api('post', '/v1/restores').send({ backupId: '01900000-0000-7000-8000-000000000001' })).body.code,
    ).toBe('resource_not_found');
    const on = answers['/v1/registry'];
    answers['/v1/registry'] = { mode: 'none', url: null };
    expect((await api('post', '/v1/backups').send({}).expect(409)).body.code).toBe('registry_off');
    answers['/v1/registry'] = on;
  });

  it('takes no registry whose disk went away meanwhile for an empty one', async () => {
    const on = answers['/v1/registry'];
    await using empty = await startRegistry();
    let asked = 0;
    answers['/v1/registry'] = () => {
      asked += 1;
      if (asked > 3) return on;
      const storageError = {
        type: 'x',
        title: 'x',
        status: 503,
        code: 'registry_storage_changed',
        nextStep: 'x',
        detail: 'away',
      };
      return { mode: 'local', url: empty.url, storageError: asked === 3 ? storageError : null };
    };
    expect(await post('/v1/backups', {})).toMatchObject({ state: 'succeeded', result: { images: 2 } });
    expect(asked).toBeGreaterThan(3);
    answers['/v1/registry'] = on;
  });

  it('restores nothing from a damaged backup', async () => {
    const backup = await post('/v1/backups', {});
    await writeFile(join(folder.path, 'backups', 'backups', `${idOf(backup)}.json`), '{}');
    expect((await api('post', '/v1/restores').send({ backupId: idOf(backup) })).body).toMatchObject({
      status: 422,
      code: 'backup_corrupt',
    });
  });

  it('signs events as Standard Webhooks says, and tries again until they are accepted', async () => {
    const { body: endpoint } = await api('post', '/v1/webhook-endpoints')
      .send({ url: receiverUrl(), events: ['backup.create.succeeded'] })
      .expect(201);
    expect(endpoint.secret).toMatch(/^whsec_/);
    expect((await api('get', '/v1/webhook-endpoints')).text).not.toContain('whsec_');
    status = 500;
    const backup = await post('/v1/backups', {});
    await waitFor(() => seen.length === 1, { what: 'the first try' });
    status = 204;
    await waitFor(() => seen.length === 2, { what: 'the second try', timeoutMs: 20_000 });
    const [first, second] = seen as [Seen, Seen];
    expect(second.headers['webhook-id']).toBe(first.headers['webhook-id']);
    const event = new Webhook(endpoint.secret).verify(second.body, second.headers) as {
      type: string;
      data: { resource: string };
    };
    expect(event).toMatchObject({
      type: 'backup.create.succeeded',
      data: { resource: backup.resource, state: 'succeeded' },
    });
    const delivered = () =>
      api('get', '/v1/webhook-deliveries').then(({ body }) =>
        body.items.find(({ state }: { state: string }) => state === 'delivered'),
      );
    expect(await waitFor(delivered, { what: 'the delivery to be noted' })).toMatchObject({
      attempts: 2,
      responseStatus: 204,
      error: null,
    });
    await api('delete', `/v1/webhook-endpoints/${endpoint.id}`).expect(204);
  });

  it('does not follow redirects, and refuses targets that are no plain web address', async () => {
    for (const url of ['ftp://x/', 'file:///etc/passwd', 'http://user:pass@x/', 'nonsense'])
      expect((await api('post', '/v1/webhook-endpoints').send({ url })).body, url).toMatchObject({
        status: 422,
        code: 'webhook_target_forbidden',
      });
    expect(
      (await api('post', '/v1/webhook-endpoints').send({ url: receiverUrl(), events: ['unknown'] })).body.code,
    ).toBe('request_invalid');
    const { body: endpoint } = await api('post', '/v1/webhook-endpoints').send({ url: receiverUrl() });
    status = 302;
    await post('/v1/backups', {});
    const answered = () =>
      api('get', '/v1/webhook-deliveries').then(({ body }) =>
        body.items.find(({ responseStatus }: { responseStatus: number }) => responseStatus === 302),
      );
    expect(await waitFor(answered, { what: 'the redirect to be noted' })).toMatchObject({
      state: 'pending',
      error: 'answered 302: redirects are not followed',
    });
    await api('delete', `/v1/webhook-endpoints/${endpoint.id}`);
  });

  it('shows the secret of an endpoint again only to a repeated request with the same key', async () => {
    const create = () =>
      api('post', '/v1/webhook-endpoints').set('idempotency-key', 'hook-1').send({ url: receiverUrl() }).expect(201);
    const first = (await create()).body;
    expect((await create()).body).toEqual(first);
    const stored = await service.app.get('backupDataSource').query('SELECT body FROM idempotency_key');
    expect(JSON.stringify(stored)).not.toContain(first.secret.slice(6, 30));
  });
});
