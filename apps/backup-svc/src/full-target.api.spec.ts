import { execFile } from 'node:child_process';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { copyImages } from '@airdock/registry/copy/copy-image';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { freePort, startJsonServer, startRedis, startRegistry, tempDir } from '@airdock/testing/servers';
import request from 'supertest';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Backup } from './backup/backup.schema.js';
import { BackupModule } from './backup.module.js';

const run = promisify(execFile);

/** A real disk, which is full to its last byte or mounted read-only: the day on which a backup is needed. */
describe('a backup target that takes no writes', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let registry: Awaited<ReturnType<typeof startRegistry>>;
  let others: Awaited<ReturnType<typeof startJsonServer>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let disk: string;
  let canMount: boolean;
  let content: Record<string, string | undefined>;
  const backups: Backup[] = [];

  const api = (method: 'get' | 'post' | 'delete', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const post = async (path: string, body: object): Promise<Job> => {
    const { body: job, status } = await api('post', path).send(body);
    expect({ status, job }).toMatchObject({ status: 202 });
    return (await api('get', `/v1/jobs/${(job as Job).id}?waitSeconds=60`)).body as Job;
  };
  const operate = (operation: object) => post('/v1/backup-operations', { operation });
  const backup = async () => {
    const job = await post('/v1/backups', {});
    expect(job).toMatchObject({ state: 'succeeded' });
    backups.push((await api('get', job.resource)).body as Backup);
  };
  const push = async (seed: string) => {
    const file = join(folder.path, 'bundle.tar');
    await buildOciArchive(file, [
      await makeImage({ name: `quay.io/${seed}:1`, layers: [{ randomBytes: 300_000, seed }] }),
    ]);
    await using source = await openBundle(file, { workDir: join(folder.path, 'work') });
    await using client = new RegistryClient(registry.url);
    const copied = await copyImages({
      source,
      registry: client,
      images: source.images.map((image) => ({ image, names: [{ repository: seed, tag: '1' }] })),
    });
    for (const { error } of copied) if (error) throw error;
  };
  const contentOf = async () => {
    await using client = new RegistryClient(registry.url);
    const found: Record<string, string | undefined> = {};
    for (const repository of await client.listRepositories())
      for (const tag of await client.listTags(repository))
        found[`${repository}:${tag}`] = (await client.headManifest(repository, tag))?.digest;
    return found;
  };
  /** To the last byte, and to the last file where asked. */
  const fill = async ({ files = false } = {}) => {
    await run('sh', ['-c', 'cat /dev/zero >"$0/lost+found" 2>/dev/null || true', disk]);
    if (files)
      await run('sh', [
        '-c',
        'mkdir "$0/blobs/x"; i=0; while touch "$0/blobs/x/$i"; do i=$((i+1)); done 2>/dev/null || true',
        disk,
      ]);
    await expect(run('sh', ['-c', 'echo x >"$0/tmp/x"', disk])).rejects.toThrow('Command failed');
    await rm(join(disk, 'tmp/x'), { force: true });
  };
  const expectReadable = async () => {
    const { id } = backups.at(-1) as Backup;
    const drill = await post('/v1/restores', { backupId: id, dryRun: true, settings: false });
    expect(drill).toMatchObject({ state: 'succeeded' });
    await rm(join(registry.storageDir, 'docker'), { recursive: true });
    const restored = await post('/v1/restores', { backupId: id, settings: false });
    expect(restored).toMatchObject({ state: 'succeeded' });
    expect(await contentOf()).toEqual(content);
    const verified = await operate({ action: 'verify' });
    expect(verified).toMatchObject({ state: 'succeeded', result: { damaged: 0 } });
    const exported = await operate({ action: 'export', backupId: id, file: 'out.tar' });
    expect(exported).toMatchObject({ state: 'succeeded' });
    expect((await api('get', '/v1/backups').expect(200)).body.items).toHaveLength(backups.length);
    expect((await api('get', '/v1/backup-targets').expect(200)).body.items).toMatchObject([{ error: null }]);
    return [drill, restored, verified, exported].map(({ result }) => (result as { withoutLock?: string }).withoutLock);
  };

  beforeEach(async (context) => {
    folder = await tempDir('full-target');
    disk = join(folder.path, 'disk');
    for (const name of ['disk', 'exchange']) await mkdir(join(folder.path, name));
    canMount = await run('mount', ['-t', 'tmpfs', '-o', 'size=8m,nr_inodes=400', 'tmpfs', disk]).then(
      () => true,
      () => false,
    );
    [redis, registry] = await Promise.all([startRedis(), startRegistry()]);
    const answers: Record<string, unknown> = {
      '/v1/registry': { mode: 'local', url: registry.url },
      '/v1/images': { items: [] },
    };
    for (const name of ['image', 'host', 'cluster'])
      answers[`/v1/states/${name}`] = { service: name, formatVersion: 1, keyFingerprint: 'x', tables: [] };
    others = await startJsonServer(answers);
    service = await startComponent('backup', BackupModule, {
      dataDir: join(folder.path, 'du'),
      redisUrl: redis.url,
      overrides: {
        ...Object.fromEntries(['registry', 'image', 'host', 'cluster'].map((each) => [`services.${each}`, others.url])),
        'http.port': await freePort(),
        ...{ backupDir: disk, 'backup.exchangeDir': join(folder.path, 'exchange'), 'registry.minFreeBytes': 0 },
      },
    });
    backups.length = 0;
    if (!canMount) return context.skip('no file system can be mounted');
    for (const seed of ['one', 'two']) {
      await push(seed);
      await backup();
    }
    content = await contentOf();
  });
  afterEach(async () => {
    await service.app.close();
    await Promise.all([redis, registry, others].map((server) => server.stop()));
    if (canMount) await run('umount', ['--lazy', disk]);
    await folder.remove();
  });

  it('since it is mounted read-only is read without a lock, which is said; whatever writes says why it cannot', async () => {
    await run('mount', ['-o', 'remount,ro', disk]);
    expect(await expectReadable()).toEqual(Array(4).fill(expect.stringContaining('backup_target_read_only')));
    for (const job of [await post('/v1/backups', {}), await operate({ action: 'prune', keep: { last: 1 } })])
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'backup_target_read_only', nextStep: expect.stringContaining('for writing') as string },
      });
    expect((await api('delete', `/v1/backups/${backups[0]?.id}`).expect(409)).body).toMatchObject({
      code: 'backup_target_read_only',
    });
    await run('mount', ['-o', 'remount,rw', disk]);
    expect(await operate({ action: 'prune', keep: { last: 1 } })).toMatchObject({
      state: 'succeeded',
      result: { backups: 1 },
    });
  });

  it('since no byte is free is read with a lock, says what to do when it is written to, and is pruned', async () => {
    await fill();
    expect(await expectReadable()).toEqual(Array(4).fill(undefined));
    await push('three');
    expect(await post('/v1/backups', {})).toMatchObject({
      state: 'failed',
      error: { code: 'space_insufficient', detail: expect.stringContaining('prune') as string },
    });
    expect(await operate({ action: 'prune', keep: { last: 1 } })).toMatchObject({
      state: 'succeeded',
      result: { backups: 1 },
    });
    expect(await readdir(join(disk, 'locks'))).toEqual([]);
    await rm(join(disk, 'lost+found'));
    await backup();
  });

  it('since no file can be made is read, and pruned all the same', async () => {
    await fill({ files: true });
    expect(await expectReadable()).toEqual(Array(4).fill(expect.stringContaining('space_insufficient')));
    expect(await post('/v1/backups', {})).toMatchObject({ state: 'failed', error: { code: 'space_insufficient' } });
    expect(await operate({ action: 'prune', keep: { last: 1 } })).toMatchObject({
      state: 'succeeded',
      result: { backups: 1 },
    });
    const { items } = (await api('get', '/v1/backups').expect(200)).body as { items: Backup[] };
    expect(items.filter(({ state }) => state === 'complete').map(({ id }) => id)).toEqual([backups[1]?.id]);
  });

  it.each(['ro', 'full'])('says what is damaged there, and that it could not be replaced (%s)', async (how) => {
    const { stdout } = await run('sh', ['-c', 'ls -S $(find . -type f) | head -1'], { cwd: join(disk, 'blobs') });
    await run('sh', ['-c', 'printf x | dd of="$0" bs=1 seek=1000 conv=notrunc', join(disk, 'blobs', stdout.trim())]);
    if (how === 'ro') await run('mount', ['-o', 'remount,ro', disk]);
    else await fill({ files: true });
    expect(await operate({ action: 'verify' })).toMatchObject({
      state: 'failed',
      error: {
        code: 'backup_corrupt',
        detail: expect.stringMatching(how === 'ro' ? /backup_target_read_only/ : /space_insufficient/) as string,
      },
    });
  });
});
