import { execFile } from 'node:child_process';
import { cp, mkdir, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { type FetchedManifest, RegistryClient } from '@airdock/oci/registry-client/registry-client';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { copyImages } from '@airdock/registry/copy/copy-image';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { startS3Server } from '@airdock/testing/s3-server';
import { freePort, startJsonServer, startRedis, startRegistry, tempDir, waitFor } from '@airdock/testing/servers';
import request from 'supertest';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Backup } from './backup/backup.schema.js';
import { BackupModule } from './backup.module.js';
import type { BackupOperation } from './backup-operation/backup-operation.schema.js';
import type { BackupSchedule } from './backup-schedule/backup-schedule.schema.js';
import type { Restore } from './restore/restore.schema.js';

const run = promisify(execFile);
type Folder = Awaited<ReturnType<typeof tempDir>>;
type Server = Awaited<ReturnType<typeof startRegistry>>;

describe('backups', () => {
  let folder: Folder;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let registry: Server;
  let others: Awaited<ReturnType<typeof startJsonServer>>;
  const answers: Record<string, unknown> = {};
  const ends: (() => Promise<unknown>)[] = [];

  /** A DU's backup-svc; other services are told of by `answers`. */
  async function startDu(name: string, overrides: Record<string, unknown> = {}) {
    const service = await startComponent('backup', BackupModule, {
      dataDir: join(folder.path, name),
      redisUrl: redis.url,
      overrides: {
        ...Object.fromEntries(['registry', 'image', 'host', 'cluster'].map((each) => [`services.${each}`, others.url])),
        'http.port': await freePort(),
        backupDir: join(folder.path, 'store'),
        'backup.exchangeDir': join(folder.path, 'exchange'),
        'registry.minFreeBytes': 0,
        'registry.allowedHosts': ['127.0.0.0/8', '::1'],
        'webhooks.allowedHosts': ['127.0.0.0/8'],
        ...overrides,
      },
    });
    let open = true;
    const close = async () => {
      if (open) await service.app.close();
      open = false;
    };
    ends.push(close);
    const api = (method: 'get' | 'post' | 'patch' | 'delete', path: string) =>
      request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
    const end = async (job: Job): Promise<Job> => {
      const { body } = await api('get', `/v1/jobs/${job.id}?waitSeconds=60`);
      return body as Job;
    };
    const post = async (path: string, body: object): Promise<Job> => {
      const { body: job, status } = await api('post', path).send(body);
      expect({ status, job }).toMatchObject({ status: 202 });
      return end(job as Job);
    };
    const read = async <T>({ resource }: Job) => (await api('get', resource).expect(200)).body as T;
    return {
      ...{ api, end, post, read, close, service },
      backup: async (body: object = {}) => read<Backup>(await post('/v1/backups', body)),
      restore: async (body: object) => {
        const job = await post('/v1/restores', body);
        return { job, restore: await read<Restore>(job) };
      },
      operate: async (operation: object) => {
        const job = await post('/v1/backup-operations', { operation });
        return { job, result: (await read<BackupOperation>(job)).result };
      },
      sql: (text: string) => service.app.get('backupDataSource').query(text) as Promise<Record<string, unknown>[]>,
    };
  }

  async function push(names: string[], to: Server = registry, more: object = {}): Promise<void> {
    const file = join(folder.path, `${names.join('-').replaceAll('/', '_')}.tar`);
    const images = await Promise.all(
      names.map((name) =>
        makeImage({
          name: `quay.io/${name}`,
          layers: [{ randomBytes: 200_000, seed: 'base' }, { files: { name, ...more } }],
        }),
      ),
    );
    await buildOciArchive(file, images);
    await using source = await openBundle(file, { workDir: join(folder.path, 'work') });
    await using client = new RegistryClient(to.url);
    const copied = await copyImages({
      source,
      registry: client,
      images: source.images.map((image, index) => ({ image, names: [nameOf(names[index] ?? '')] })),
    });
    for (const { error } of copied) if (error) throw error;
  }
  const nameOf = (name: string) => ({ repository: name.replace(/:.*/, ''), tag: name.replace(/.*:/, '') });
  async function contentOf(server: Server): Promise<Record<string, string | undefined>> {
    await using client = new RegistryClient(server.url);
    const found: Record<string, string | undefined> = {};
    for (const repository of await client.listRepositories())
      for (const tag of await client.listTags(repository))
        found[`${repository}:${tag}`] = (await client.headManifest(repository, tag))?.digest;
    return found;
  }
  const wipe = (server: Server) => rm(join(server.storageDir, 'docker'), { recursive: true });
  const blobFiles = async () =>
    (await readdir(join(folder.path, 'store/blobs'), { recursive: true, withFileTypes: true }))
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name));
  /** The blob of the layer with random content. */
  async function largestBlob(): Promise<string> {
    const { stdout } = await run('sh', ['-c', 'ls -S $(find . -type f) | head -1'], {
      cwd: join(folder.path, 'store/blobs'),
    });
    return join(folder.path, 'store/blobs', stdout.trim());
  }
  async function flip(path: string): Promise<void> {
    const bytes = await readFile(path);
    bytes[bytes.byteLength >> 1] = (bytes[bytes.byteLength >> 1] ?? 0) ^ 1;
    await writeFile(path, bytes);
  }

  beforeEach(async () => {
    folder = await tempDir('backups');
    await mkdir(join(folder.path, 'exchange'));
    [redis, registry] = await Promise.all([startRedis(), startRegistry()]);
    for (const key of Object.keys(answers)) delete answers[key];
    answers['/v1/registry'] = { mode: 'local', url: registry.url };
    for (const service of ['image', 'host', 'cluster'])
      answers[`/v1/states/${service}`] = { service, formatVersion: 1, keyFingerprint: 'x', tables: [] };
    answers['/v1/images'] = { items: [] };
    others = await startJsonServer(answers);
  });
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
    await Promise.all([redis, registry, others].map((server) => server?.stop()));
    await folder?.remove();
  });

  it('add nothing when nothing has changed, take repositories by pattern and the images of a set, and name what they skip', async () => {
    await push(['a:1', 'k8s.gcr.io/b:2', 'k8s.gcr.io/c:3']);
    const du = await startDu('du');
    const first = await du.backup();
    expect(first).toMatchObject({ state: 'complete', images: 3, skipped: [], hasSettings: true, target: 'default' });
    expect(first.addedBytes).toBeGreaterThan(200_000);
    expect(first.sizeBytes).toBeGreaterThanOrEqual(first.addedBytes ?? 0);
    const files = await blobFiles();
    expect((await du.backup()).addedBytes).toBe(0);
    expect(await blobFiles()).toEqual(files);
    expect(await du.backup({ repositories: ['k8s.gcr.io/*'] })).toMatchObject({
      images: 2,
      repositories: ['k8s.gcr.io/*'],
      hasSettings: false,
      addedBytes: 0,
    });
    const setId = '01900000-0000-7000-8000-000000000001';
    answers[`/v1/image-sets/${setId}`] = { id: setId, images: ['quay.io/a:1'] };
    answers['/v1/images'] = {
      items: [
        { upstream: 'quay.io/a:1', localReferences: ['localhost:5100/a:1'] },
        { upstream: 'quay.io/b:2', localReferences: ['localhost:5100/k8s.gcr.io/b:2'] },
      ],
    };
    expect(await du.backup({ imageSetId: setId })).toMatchObject({ images: 1, imageSetId: setId });
    expect(
      (await du.api('post', '/v1/backups').send({ imageSetId: '01900000-0000-7000-8000-00000000000f' })).body.code,
    ).toBe('resource_not_found');
    for (const body of [
      { repositories: ['UPPER'] },
      { repositories: [] },
      { repositories: ['a'], imageSetId: setId },
      { target: '../x' },
    ])
      expect((await du.api('post', '/v1/backups').send(body)).body.code, JSON.stringify(body)).toBe('request_invalid');
    expect((await du.api('post', '/v1/backups').send({ target: 'nowhere' })).body.code).toBe('resource_not_found');

    await using client = new RegistryClient(registry.url);
    const manifest = JSON.parse((await client.getManifest('a', '1'))?.bytes.toString() ?? '') as {
      layers: { digest: string }[];
    };
    const hex = manifest.layers[1]?.digest.slice(7) ?? '';
    await rm(join(registry.storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex), { recursive: true });
    await rm(join(folder.path, 'store'), { recursive: true });
    await du.api('post', '/v1/backup-targets/default/adoptions').expect(200);
    const partial = await du.backup();
    expect(partial).toMatchObject({ state: 'complete', images: 2, skipped: [{ name: 'a:1' }] });
    expect(partial.skipped?.[0]?.reason).toContain(hex);
  });

  it('are found damaged by a verification, and healed from the registry while it has the blob', async () => {
    await push(['a:1', 'b:2']);
    const du = await startDu('du');
    const { id } = await du.backup();
    expect(await du.operate({ action: 'verify' })).toMatchObject({
      job: { state: 'succeeded' },
      result: { damaged: [], healed: [], lost: [] },
    });
    expect((await du.read<Backup>({ resource: `/v1/backups/${id}` } as Job)).verifiedAt).not.toBeNull();
    const largest = await largestBlob();
    const digest = `sha256:${largest.split('/').at(-1)}`;
    await flip(largest);
    expect(await du.operate({ action: 'verify', backupId: id })).toMatchObject({
      job: { state: 'succeeded' },
      result: { damaged: [digest], healed: [digest], lost: [] },
    });
    expect(await readdir(join(folder.path, 'store/damaged'))).toHaveLength(1);
    expect(await du.operate({ action: 'verify' })).toMatchObject({ result: { damaged: [] } });

    await flip(largest);
    const hex = digest.slice(7);
    await rm(join(registry.storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex), { recursive: true });
    const lost = await du.operate({ action: 'verify' });
    expect(lost).toMatchObject({
      job: { state: 'failed', error: { code: 'backup_corrupt' } },
      result: { damaged: [digest], healed: [], lost: [{ digest, backups: [id], images: ['a:1', 'b:2'] }] },
    });
    expect((await du.api('get', `/v1/backups/${id}`)).body).toMatchObject({ state: 'damaged', damaged: [digest] });
    // A push brings the layer, and the next verification the backup.
    await wipe(registry);
    await push(['a:1', 'b:2']);
    expect(await du.operate({ action: 'verify' })).toMatchObject({
      job: { state: 'succeeded' },
      result: { healed: [digest] },
    });
    expect((await du.api('get', `/v1/backups/${id}`)).body).toMatchObject({ state: 'complete', damaged: [] });
    await rm(join(folder.path, `store/backups/${id}.json.sig`));
    expect(await du.operate({ action: 'verify' })).toMatchObject({
      job: { state: 'failed', error: { code: 'backup_unsigned' } },
      result: { unreadable: [{ backupId: id }] },
    });
    await truncate(join(folder.path, `store/backups/${id}.json`), 10);
    expect(await du.operate({ action: 'verify' })).toMatchObject({
      job: { state: 'failed', error: { code: 'backup_corrupt' } },
      result: { unreadable: [{ backupId: id }] },
    });
  });

  it('restore what is whole of a damaged one, and name the rest', async () => {
    await push(['a:1']);
    await push(['b:2'], registry, { more: 'x' });
    const du = await startDu('du');
    const { id } = await du.backup();
    await using client = new RegistryClient(registry.url);
    const manifest = JSON.parse((await client.getManifest('b', '2'))?.bytes.toString() ?? '') as {
      layers: { digest: string }[];
    };
    const hex = manifest.layers[1]?.digest.slice(7) ?? '';
    await rm(join(folder.path, 'store/blobs/sha256', hex.slice(0, 2), hex));
    const before = await contentOf(registry);
    await wipe(registry);
    const { job, restore } = await du.restore({ backupId: id });
    expect(job).toMatchObject({ state: 'failed', error: { code: 'backup_incomplete' } });
    expect(restore.report).toMatchObject({ broken: [{ name: 'b:2' }], verified: 1 });
    expect(await contentOf(registry)).toEqual({ 'a:1': before['a:1'] });
  });

  it('are pruned by rules, after a dry run, and never what a kept one needs', async () => {
    const du = await startDu('du');
    const ids: string[] = [];
    for (const name of ['a:1', 'b:2', 'c:3']) {
      await wipe(registry).catch(() => undefined);
      await push([name]);
      ids.push((await du.backup()).id);
    }
    const planned = await du.operate({ action: 'prune', keep: { last: 1 }, dryRun: true });
    expect(planned.result).toMatchObject({
      removed: [ids[1], ids[0]],
      kept: [{ backupId: ids[2], reasons: ['last'] }],
    });
    expect(planned.result?.blobs).toBeGreaterThan(3);
    expect((await du.api('get', '/v1/backups')).body.items).toHaveLength(3);
    const pruned = await du.operate({ action: 'prune', keep: { last: 1 } });
    expect(pruned.result).toEqual(planned.result);
    expect((await du.api('get', '/v1/backups')).body.items.map(({ id }: Backup) => id)).toEqual([ids[2]]);
    expect(await du.operate({ action: 'verify' })).toMatchObject({ job: { state: 'succeeded' } });
    for (const keep of [{}, { last: 0 }, { last: -1 }])
      expect(
        (await du.api('post', '/v1/backup-operations').send({ operation: { action: 'prune', keep } })).body.code,
      ).toBe('request_invalid');
    await du.api('delete', `/v1/backups/${ids[2]}`).expect(204);
    expect((await du.operate({ action: 'prune' })).result?.blobs).toBeGreaterThan(3);
    expect(await blobFiles()).toEqual([]);
  });

  it('wait for a prune, and a prune for them', async () => {
    await push(['a:1']);
    const du = await startDu('du');
    await du.backup();
    const lock = join(folder.path, 'store/locks');
    await mkdir(lock, { recursive: true });
    await writeFile(join(lock, 'shared-another.json'), '{}');
    expect((await du.operate({ action: 'prune', waitMinutes: 0 })).job).toMatchObject({
      state: 'failed',
      error: { code: 'backup_store_busy', detail: 'in the way: shared-another' },
    });
    const { body: waiting } = await du.api('post', '/v1/backup-operations').send({ operation: { action: 'prune' } });
    const phase = async () => ((await du.api('get', `/v1/jobs/${waiting.id}`)).body as Job).progress.phase;
    await waitFor(async () => (await phase()) === 'waiting for shared-another', { what: 'the prune to wait' });
    await rename(join(lock, 'shared-another.json'), join(lock, 'exclusive-another.json'));
    const { body: backup } = await du.api('post', '/v1/backups').send({});
    await waitFor(
      async () =>
        ((await du.api('get', `/v1/jobs/${backup.id}`)).body as Job).progress.phase === 'waiting for exclusive-another',
      {
        what: 'the backup to wait',
      },
    );
    await rm(join(lock, 'exclusive-another.json'));
    expect((await du.end(waiting)).state).toBe('succeeded');
    expect((await du.end(backup)).state).toBe('succeeded');
    expect(await readdir(lock)).toEqual([]);
  });

  it('go to another site as one file that tar opens, with its checksum, and are restored there', async () => {
    await push(['a:1', 'b:2']);
    const du = await startDu('du');
    const { id } = await du.backup();
    const exported = await du.operate({ action: 'export', backupId: id, file: 'site.tar' });
    expect(exported.job.state).toBe('succeeded');
    const exchange = join(folder.path, 'exchange');
    await run('sha256sum', ['-c', 'site.tar.sha256'], { cwd: exchange });
    await run('sh', ['-ec', 'mkdir out && tar -xf site.tar -C out && cd out/backups && sha256sum -c *.sha256'], {
      cwd: exchange,
    });
    expect((await readdir(exchange)).sort()).toEqual(['out', 'site.tar', 'site.tar.sha256']);
    const body = (file: string) => ({ operation: { action: 'import', file } });
    expect(
      (
        await du
          .api('post', '/v1/backup-operations')
          .send({ operation: { action: 'export', backupId: id, file: 'site.tar' } })
      ).body.code,
    ).toBe('resource_exists');
    expect((await du.api('post', '/v1/backup-operations').send(body('none.tar'))).body.code).toBe(
      'backup_file_not_found',
    );
    expect((await du.api('post', '/v1/backup-operations').send(body('../site.tar'))).body.code).toBe('request_invalid');

    const ownKey = (await du.api('get', '/v1/backup-signing-keys/own').expect(200)).body;
    await du.close();
    const site = await startRegistry();
    ends.push(() => site.stop());
    const there = await startDu('there', { backupDir: join(folder.path, 'there-store') });
    expect((await there.operate({ action: 'import', file: 'site.tar' })).job).toMatchObject({
      state: 'failed',
      error: { code: 'backup_signer_unknown' },
    });
    await there
      .api('post', '/v1/backup-signing-keys')
      .send({ name: 'here', publicKey: ownKey.publicKey, keyId: ownKey.keyId })
      .expect(201);
    expect((await there.operate({ action: 'import', file: 'site.tar' })).job).toMatchObject({
      state: 'succeeded',
      result: { backupId: id, images: 2 },
    });
    answers['/v1/registry'] = { mode: 'local', url: site.url };
    expect((await there.restore({ backupId: id, settings: false })).job.state).toBe('succeeded');
    expect(await contentOf(site)).toEqual(await contentOf(registry));

    await run('split', ['-b', '100k', 'site.tar', 'parts.tar.'], { cwd: exchange });
    await there.api('delete', `/v1/backups/${id}`).expect(204);
    expect((await there.operate({ action: 'import', file: 'parts.tar' })).job).toMatchObject({
      state: 'succeeded',
      result: { backupId: id },
    });
    expect((await there.api('post', '/v1/backup-operations').send(body('site.tar.tar'))).body.code).toBe(
      'backup_file_not_found',
    );

    const cut = await readFile(join(exchange, 'site.tar'));
    await writeFile(join(exchange, 'cut.tar'), cut.subarray(0, 150_000));
    await there.api('delete', `/v1/backups/${id}`).expect(204);
    expect((await there.operate({ action: 'import', file: 'cut.tar' })).job).toMatchObject({
      state: 'failed',
      error: { code: 'bundle_truncated' },
    });
    cut[cut.byteLength >> 1] = (cut[cut.byteLength >> 1] ?? 0) ^ 1;
    await writeFile(join(exchange, 'flipped.tar'), cut);
    await there.operate({ action: 'prune' });
    expect((await there.operate({ action: 'import', file: 'flipped.tar' })).job).toMatchObject({
      state: 'failed',
      error: { code: 'backup_corrupt' },
    });
    expect((await there.api('get', '/v1/backups')).body.items).toEqual([]);
  });

  it('bring images back that have no tag', async () => {
    await push(['a:1']);
    await using client = new RegistryClient(registry.url);
    const digest = (await client.headManifest('a', '1'))?.digest ?? '';
    await client.deleteTag('a', '1');
    answers['/v1/images'] = {
      items: [{ upstream: 'quay.io/a', localReferences: [`localhost:5100/a@${digest}`], digest }],
    };
    const manifest = async () => (await client.headManifest('a', digest))?.digest;
    if (!(await manifest())) await push(['a:1']);
    const du = await startDu('du');
    const { id: backupId } = await du.backup();
    await wipe(registry);
    expect(await manifest()).toBeUndefined();
    const { job, restore } = await du.restore({ backupId });
    expect(job.state).toBe('succeeded');
    expect(restore.report?.missing).toContain(`a@${digest}`);
    expect(await manifest()).toBe(digest);
    expect((await du.restore({ backupId, mode: 'exact' })).restore.report).toMatchObject({ missing: [], extra: [] });
  });

  it('restore by plan: what is missing, in conflict, too much; overwriting, keeping, or exactly', async () => {
    await push(['a:1', 'b:2', 'c:3']);
    const du = await startDu('du');
    const { id: backupId } = await du.backup();
    const before = await contentOf(registry);
    await wipe(registry);
    await push(['a:1']);
    await push(['b:2'], registry, { changed: 'yes' });
    await push(['d:4']);
    const changed = await contentOf(registry);
    const dry = await du.restore({ backupId, dryRun: true });
    expect(dry.restore.report).toMatchObject({
      present: 1,
      missing: ['c:3'],
      conflicts: ['b:2'],
      extra: ['d:4'],
      verified: null,
    });
    expect(dry.restore.report?.missingBytes).toBeGreaterThan(0);
    expect(await contentOf(registry)).toEqual(changed);
    expect((await du.restore({ backupId, onConflict: 'keep' })).restore.report).toMatchObject({ verified: 2 });
    expect(await contentOf(registry)).toEqual({ ...changed, 'c:3': before['c:3'] });
    expect((await du.restore({ backupId, repositories: ['b'], mode: 'exact' })).job.state).toBe('succeeded');
    expect(await contentOf(registry)).toEqual({ ...before, 'd:4': changed['d:4'] });
    expect((await du.restore({ backupId, mode: 'exact' })).restore.report).toMatchObject({
      verified: 3,
      extra: ['d:4'],
    });
    expect(await contentOf(registry)).toEqual(before);
    // One of some repositories knows nothing of the others.
    const { id: partial } = await du.backup({ repositories: ['a', 'b'] });
    await push(['d:4', 'a:2']);
    expect((await du.restore({ backupId: partial, mode: 'exact' })).restore.report).toMatchObject({
      extra: ['a:2'],
      verified: 2,
    });
    expect(await contentOf(registry)).toEqual({ ...before, 'd:4': changed['d:4'] });
  });

  it('count names in a restore, of which an image may have several: what is there, missing and in conflict is all', async () => {
    await push(['a:1', 'b:2']);
    await using client = new RegistryClient(registry.url);
    const tag = async (repository: string, from: string, to: string) => {
      const { bytes, mediaType } = (await client.getManifest(repository, from)) as FetchedManifest;
      await client.putManifest(repository, to, bytes, mediaType);
    };
    for (const to of ['also', 'too']) await tag('a', '1', to);
    const du = await startDu('du');
    const { id: backupId } = await du.backup();
    const seen = async () => {
      const { job, restore } = await du.restore({ backupId, dryRun: true });
      const { present = 0, missing = [], conflicts = [] } = restore.report ?? {};
      expect(job.result).toMatchObject({ images: 4, present });
      expect(present + missing.length + conflicts.length).toBe(4);
      return { present, missing, conflicts };
    };
    expect(await seen()).toEqual({ present: 4, missing: [], conflicts: [] });
    await client.deleteTag('a', 'too');
    expect(await seen()).toEqual({ present: 3, missing: ['a:too'], conflicts: [] });
    await push(['a:1'], registry, { changed: 'yes' });
    expect(await seen()).toEqual({ present: 2, missing: ['a:too'], conflicts: ['a:1'] });
  });

  it('are restored into another registry, and into one that is made for a drill and gone afterwards', async () => {
    await push(['a:1', 'b:2']);
    const du = await startDu('du');
    const { id: backupId } = await du.backup();
    const before = await contentOf(registry);
    const another = await startRegistry();
    ends.push(() => another.stop());
    const restored = await du.restore({
      backupId,
      registry: { url: another.url, username: 'me', password: 'sesame-4711' },
    });
    expect(restored.job.state).toBe('succeeded');
    expect(await contentOf(another)).toEqual(before);
    expect(JSON.stringify([restored, await du.sql('SELECT * FROM restore')])).not.toContain('sesame-4711');
    const drill = await du.restore({ backupId, drill: true });
    expect(drill).toMatchObject({
      job: { state: 'succeeded' },
      restore: { report: { missing: ['a:1', 'b:2'], verified: 2 } },
    });
    expect(await readdir(join(folder.path, 'du/drills'))).toEqual([]);
    const { stdout } = await run('sh', ['-c', 'ps -eo args']);
    expect(stdout).not.toContain(join(folder.path, 'du/drills'));
    for (const body of [
      { drill: true, dryRun: true },
      { drill: true, settings: true },
      { registry: { url: 'http://u:p@x' } },
      { registry: { url: 'ftp://x' } },
    ])
      expect((await du.api('post', '/v1/restores').send({ backupId, ...body })).body.code).toBe('request_invalid');
  });

  it("bring Airdock's own state back on a new DU that finds them, if it has the key", async () => {
    await push(['a:1']);
    const fingerprint = 'f'.repeat(32);
    const image = {
      name: 'image',
      rows: Array.from({ length: 1200 }, (_, index) => ({ id: `i${index}`, upstream: `quay.io/i:${index}` })),
    };
    answers['/v1/states/image'] = { service: 'image', formatVersion: 1, keyFingerprint: fingerprint, tables: [image] };
    const du = await startDu('du');
    const endpoint = (await du.api('post', '/v1/webhook-endpoints').send({ url: 'http://127.0.0.1:9/' }).expect(201))
      .body;
    const { id: backupId, hasSettings } = await du.backup();
    expect(hasSettings).toBe(true);
    await du.close();
    await wipe(registry);

    const written: { path: string; rows: number }[] = [];
    answers['/v1/states/image/tables/image'] = ({
      path,
      body,
    }: {
      path: string;
      body: { rows: object[]; keyFingerprint: string; dryRun: boolean };
    }) => {
      expect(body.keyFingerprint).toBe(fingerprint);
      if (!body.dryRun) written.push({ path, rows: body.rows.length });
      return { added: body.rows.length, replaced: 0, kept: 0, conflicts: [], changes: [] };
    };
    await mkdir(join(folder.path, 'fresh'));
    await cp(join(folder.path, 'du/signing.key'), join(folder.path, 'fresh/signing.key'));
    const fresh = await startDu('fresh');
    await waitFor(
      async () =>
        ((await fresh.api('get', '/v1/backups')).body.items as Backup[]).some(
          ({ id, state }) => id === backupId && state === 'complete',
        ),
      { what: 'the backup to be found' },
    );
    const refused = await fresh.restore({ backupId });
    expect(refused.job).toMatchObject({ state: 'failed', error: { code: 'secrets_key_mismatch' } });
    // What it would change can be seen all the same.
    expect(refused.restore.report?.changes).not.toEqual([]);
    expect(written).toEqual([]);
    expect(await contentOf(registry)).toEqual({});
    await fresh.close();
    await writeFile(join(folder.path, 'fresh/secrets.key'), await readFile(join(folder.path, 'du/secrets.key')), {
      mode: 0o600,
    });
    const again = await startDu('fresh');
    const { job, restore } = await again.restore({ backupId });
    expect(job.state).toBe('succeeded');
    expect(written.map(({ rows }) => rows)).toEqual([500, 500, 200]);
    expect(restore.report?.settings).toContainEqual({
      service: 'backup',
      table: 'webhook_endpoint',
      added: 1,
      replaced: 0,
      kept: 0,
      conflicts: [],
    });
    expect((await again.api('get', `/v1/webhook-endpoints/${endpoint.id}`)).body.url).toBe(endpoint.url);
    expect(Object.keys(await contentOf(registry))).toEqual(['a:1']);
  });

  it('are encrypted for those who are named, and open for nobody else', async () => {
    const { stdout: key } = await run('age-keygen', []);
    const identityFile = join(folder.path, 'age.key');
    await writeFile(identityFile, key, { mode: 0o600 });
    await push(['a:1']);
    const recipients = [/age1\w+/.exec(key)?.[0]];
    const du = await startDu('du', { 'backup.encryption.recipients': recipients });
    const { id: backupId } = await du.backup();
    expect((await blobFiles()).every((name) => name.endsWith('.age'))).toBe(true);
    expect((await du.restore({ backupId })).job).toMatchObject({
      state: 'failed',
      error: { code: 'backup_key_missing' },
    });
    await du.close();
    await wipe(registry);
    const holder = await startDu('du', {
      'backup.encryption.recipients': recipients,
      'backup.encryption.identityFile': identityFile,
    });
    expect((await holder.restore({ backupId })).job.state).toBe('succeeded');
    expect(Object.keys(await contentOf(registry))).toEqual(['a:1']);
    expect((await holder.backup()).addedBytes).toBe(0);
    expect((await holder.operate({ action: 'verify' })).job.state).toBe('succeeded');
  });

  it.each([
    ['full', 507, 'XMinioStorageFull', 'space_insufficient'],
    ['over its quota', 403, 'QuotaExceeded', 'space_insufficient'],
    ['read-only', 403, 'AccessDenied', 'backup_target_read_only'],
  ])(
    'in a bucket that is %s are read without a lock, which is said, and pruned where that makes room',
    async (_, status, refusal, code) => {
      await using s3 = await startS3Server();
      const secretKeyFile = join(folder.path, 's3.key');
      await writeFile(secretKeyFile, `${s3.secretAccessKey}\n`, { mode: 0o600 });
      const vault = {
        s3: { endpoint: s3.url, bucket: s3.bucket, prefix: 'airdock/', accessKeyId: s3.accessKeyId, secretKeyFile },
      };
      const du = await startDu('du', { 'backup.targets': { vault } });
      await push(['a:1']);
      const first = await du.backup({ target: 'vault' });
      await push(['a:1'], registry, { changed: 'yes' });
      const { id: backupId } = await du.backup({ target: 'vault' });
      const content = await contentOf(registry);
      const isReadOnly = code === 'backup_target_read_only';
      // A few bytes of records make no room, a blob does.
      let hasRoom = false;
      s3.refuse = ({ operation, key }) => {
        if (operation === 'GET' || operation === 'HEAD' || hasRoom) return undefined;
        if (operation !== 'DELETE' || isReadOnly) return { status, code: refusal };
        hasRoom = key.startsWith('airdock/blobs/');
        return undefined;
      };
      await wipe(registry);
      const jobs = [
        (await du.restore({ backupId, dryRun: true, settings: false })).job,
        (await du.restore({ backupId, settings: false })).job,
        await du.post('/v1/backup-operations', { target: 'vault', operation: { action: 'verify' } }),
        (await du.operate({ action: 'export', backupId, file: 'out.tar' })).job,
      ];
      for (const job of jobs)
        expect(job).toMatchObject({
          state: 'succeeded',
          result: { withoutLock: expect.stringContaining(code) as string },
        });
      expect(await contentOf(registry)).toEqual(content);
      await push(['c:3']);
      expect(await du.post('/v1/backups', { target: 'vault' })).toMatchObject({ state: 'failed', error: { code } });
      const pruned = await du.post('/v1/backup-operations', {
        target: 'vault',
        operation: { action: 'prune', keep: { last: 1 } },
      });
      expect(pruned).toMatchObject(
        isReadOnly ? { state: 'failed', error: { code } } : { state: 'succeeded', result: { backups: 1 } },
      );
      s3.refuse = () => undefined;
      const { items } = (await du.api('get', '/v1/backups').expect(200)).body as { items: Backup[] };
      const complete = items.filter(({ state }) => state === 'complete').map(({ id }) => id);
      expect(complete.sort()).toEqual(isReadOnly ? [first.id, backupId].sort() : [backupId]);
      expect((await du.backup({ target: 'vault' })).state).toBe('complete');
      expect(
        await du.post('/v1/backup-operations', { target: 'vault', operation: { action: 'verify' } }),
      ).toMatchObject({
        state: 'succeeded',
        result: { damaged: 0 },
      });
    },
  );

  it('lie in a bucket as in a folder, and wait for its server when that is away', async () => {
    await using s3 = await startS3Server();
    const secretKeyFile = join(folder.path, 's3.key');
    await writeFile(secretKeyFile, `${s3.secretAccessKey}\n`, { mode: 0o600 });
    const vault = {
      s3: { endpoint: s3.url, bucket: s3.bucket, prefix: 'airdock/', accessKeyId: s3.accessKeyId, secretKeyFile },
    };
    await push(['a:1', 'b:2']);
    const du = await startDu('du', { 'backup.targets': { vault } });
    const before = await contentOf(registry);
    const { id: backupId, ...backup } = await du.backup({ target: 'vault' });
    expect(backup).toMatchObject({ state: 'complete', images: 2, target: 'vault' });
    expect((await du.backup({ target: 'vault' })).addedBytes).toBe(0);
    expect((await du.api('get', '/v1/backup-targets')).body.items).toMatchObject([
      { name: 'vault', location: 's3://backups/airdock/', freeBytes: null, error: null },
      { name: 'default', storeId: null },
    ]);
    await s3.crash();
    const { body: waiting } = await du.api('post', '/v1/backups').send({ target: 'vault' }).expect(202);
    await waitFor(
      async () => ((await du.sql(`SELECT failures FROM job WHERE id = '${waiting.id}'`))[0]?.failures as number) > 0,
      {
        what: 'a first try',
        timeoutMs: 30_000,
      },
    );
    await s3.start();
    expect((await du.end(waiting)).state).toBe('succeeded');
    await wipe(registry);
    expect((await du.restore({ backupId })).job.state).toBe('succeeded');
    expect(await contentOf(registry)).toEqual(before);
    const { body: pruning } = await du
      .api('post', '/v1/backup-operations')
      .send({ target: 'vault', operation: { action: 'prune', keep: { last: 1 } } })
      .expect(202);
    expect((await du.end(pruning)).result).toMatchObject({ backups: 2 });
    const stored = await du.sql('SELECT * FROM backup');
    expect(JSON.stringify([stored, await du.sql('SELECT * FROM job')])).not.toContain(`"${s3.secretAccessKey}"`);
  });

  it('are not written where a disk should be mounted, until somebody says that this is the store now', async () => {
    await push(['a:1']);
    const du = await startDu('du');
    const { id } = await du.backup();
    const store = join(folder.path, 'store');
    await rename(store, `${store}-unplugged`);
    await mkdir(store);
    const [target] = (await du.api('get', '/v1/backup-targets')).body.items;
    expect(target).toMatchObject({ name: 'default', location: store, error: { code: 'backup_target_unavailable' } });
    const { body: job } = await du.api('post', '/v1/backups').send({}).expect(202);
    await waitFor(
      async () => ((await du.sql(`SELECT failures FROM job WHERE id = '${job.id}'`))[0]?.failures as number) > 0,
      { what: 'a first try' },
    );
    expect(await readdir(store)).toEqual([]);
    await rm(store, { recursive: true });
    await rename(`${store}-unplugged`, store);
    // The clock is set back before the next one.
    await du.sql(`UPDATE job SET "runAfter" = '2999-01-01T00:00:00.000Z' WHERE id = '${job.id}'`);
    expect((await du.end(job)).state).toBe('succeeded');
    await rm(store, { recursive: true });
    await du.api('post', '/v1/backup-targets/default/adoptions').expect(200);
    expect((await du.backup()).state).toBe('complete');
    await du.service.app.close();
    const again = await startDu('du');
    await waitFor(async () => ((await again.api('get', `/v1/backups/${id}`)).body as Backup).state === 'missing', {
      what: 'the lost backup to be marked',
    });
  });

  it('are made by schedule: what was missed once, pruned after, and told of when they are too old', async () => {
    await push(['a:1']);
    const du = await startDu('du');
    const base = {
      name: 'nightly',
      cron: '30 2 * * *',
      timeZone: 'Europe/Berlin',
      keep: { last: 1 },
      alertAfterHours: 1,
    };
    for (const bad of [
      { cron: '61 * * * *' },
      { cron: '* * * * * *' },
      { cron: 'whenever' },
      { timeZone: 'Nowhere/City' },
      { keep: { last: 0 } },
      { name: '' },
    ])
      expect(
        (await du.api('post', '/v1/backup-schedules').send({ ...base, ...bad })).body.code,
        JSON.stringify(bad),
      ).toBe('request_invalid');
    const { body: schedule } = await du.api('post', '/v1/backup-schedules').send(base).expect(201);
    expect((await du.api('post', '/v1/backup-schedules').send(base)).body.code).toBe('resource_exists');
    const read = async () => (await du.api('get', `/v1/backup-schedules/${schedule.id}`)).body as BackupSchedule;
    expect(new Date((await read()).nextAt ?? '').getTime()).toBeGreaterThan(Date.now());
    const mine = async () => (await du.api('get', `/v1/backups?scheduleId=${schedule.id}`)).body.items as Backup[];
    expect(await mine()).toEqual([]);
    // The DU was off for a month.
    const monthAgo = new Date(Date.now() - 30 * 24 * 3600_000).toISOString();
    const missed = () => du.sql(`UPDATE backup_schedule SET "lastAt" = '${monthAgo}'`);
    await missed();
    await waitFor(async () => (await mine()).some(({ state }) => state === 'complete'), { what: 'the missed backup' });
    expect(await mine()).toHaveLength(1);
    await missed();
    const first = (await mine())[0]?.id;
    await waitFor(async () => (await mine()).length === 1 && (await mine())[0]?.id !== first, {
      what: 'the first backup to be pruned after the second',
      timeoutMs: 30_000,
    });
    // The clock was set back.
    await du.sql(`UPDATE backup_schedule SET "lastAt" = '2999-01-01T00:00:00.000Z'`);
    await waitFor(async () => ((await read()).nextAt ?? '') < '2998', { what: 'the next time to be near again' });
    const events = async () =>
      (await du.sql(`SELECT payload FROM webhook_event WHERE type = 'backup.stale'`)).map(
        ({ payload }) => JSON.parse(String(payload)).data,
      );
    await du.sql(`UPDATE backup SET "completedAt" = '${monthAgo}'`);
    await waitFor(async () => (await read()).staleSince !== null, { what: 'the old backup to be noticed' });
    await missed();
    await waitFor(async () => (await read()).staleSince === null, { what: 'a new one', timeoutMs: 30_000 });
    const stale = await waitFor(async () => ((await events()).length > 0 ? events() : undefined), {
      what: 'the event',
    });
    expect(stale).toMatchObject([{ schedule: 'nightly', newestAt: monthAgo, alertAfterHours: 1 }]);
    await du.api('patch', `/v1/backup-schedules/${schedule.id}`).send({ enabled: false }).expect(200);
    expect(await read()).toMatchObject({ enabled: false, nextAt: null });
    await du.api('delete', `/v1/backup-schedules/${schedule.id}`).expect(204);
    expect((await mine()).length).toBeGreaterThan(0);
  });
});
