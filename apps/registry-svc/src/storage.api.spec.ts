import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { registrySockets } from '@airdock/registry/engine/process-engine';
import { storageMarker } from '@airdock/registry/folder/registry-storage';
import { freePort, startRedis, tempDir, waitFor } from '@airdock/testing/servers';
import request from 'supertest';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Registry } from './registry/registry.schema.js';
import { RegistryModule } from './registry.module.js';

const run = promisify(execFile);

/** Folders that lie on a real disk of their own where this user may mount one. */
describe("the folder of the registry's storage", () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let port: number;
  let disk: string;
  let mark: string;
  let mounts: string[];
  let canMount: boolean;

  const api = (method: 'get' | 'put' | 'post', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const registry = async (): Promise<Registry> => (await api('get', '/v1/registry').expect(200)).body as Registry;
  const end = async (id: string) => (await api('get', `/v1/jobs/${id}?waitSeconds=30`)).body as Job;
  const adopt = (storageId: unknown) => api('post', '/v1/registry/storage-adoptions').send({ storageId });
  const start = async () => {
    service = await startComponent('registry', RegistryModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      privateRegistryType: 'local',
      overrides: { 'registry.port': port, 'registry.storageDir': disk },
    });
  };
  const mount = async () => {
    await run('mount', ['-t', 'tmpfs', '-o', 'size=30m', 'tmpfs', disk]);
    mounts.push(disk);
  };
  const umount = () => run('umount', ['--lazy', disk]);
  const writes = async () => {
    const { readWrite } = registrySockets(join(folder.path, 'run/registry'));
    return run('curl', [
      '--silent',
      '--fail',
      '-X',
      'POST',
      '--unix-socket',
      readWrite.slice('unix:'.length),
      'http://x/v2/a/b/blobs/uploads/',
    ]).then(
      () => true,
      () => false,
    );
  };
  const well = () =>
    waitFor(
      async () => {
        const { storageError, health, storage } = await registry();
        return storageError === null && health?.ok && health.readOnlyOk && storage?.id && (await writes());
      },
      { what: 'the registry to work with its storage', timeoutMs: 30_000 },
    );
  /** Waits until the supervisor has seen it too. */
  const changed = async (code = 'registry_storage_changed') => {
    const found = await waitFor(async () => ((await writes()) ? undefined : (await registry()).storageError), {
      what: 'the change to be seen, and writes to end',
      timeoutMs: 30_000,
    });
    const { health, address, storage, sockets } = await registry();
    expect(health).toMatchObject({ ok: false, error: code });
    expect([address, storage?.id ?? null]).toEqual([sockets?.readOnly, null]);
    const { body } = await request(service.url).get('/readyz').expect(200);
    expect((body as { notices: Record<string, string> }).notices['registry:storage']).toContain(code);
    expect(
      (await api('post', '/v1/registry/garbage-collections').send({ dryRun: false }).expect(503)).body,
    ).toMatchObject({ code });
    return found as unknown as {
      detail: string;
      recordedId: string;
      foundId: string | null;
      adoptableId: string | null;
      folderState: string;
    };
  };

  beforeEach(async () => {
    folder = await tempDir('storage-mark');
    disk = join(folder.path, 'disk');
    mark = join(disk, storageMarker);
    await mkdir(disk);
    mounts = [];
    canMount = await mount().then(
      () => true,
      () => false,
    );
    redis = await startRedis();
    port = await freePort();
    await start();
    await well();
  });
  afterEach(async () => {
    await end((await api('put', '/v1/registry').send({ mode: 'none' })).body.id as string);
    await service.app.close();
    await redis.stop();
    for (const mounted of mounts) await run('umount', ['--lazy', mounted]).catch(() => undefined);
    await folder.remove();
  });

  it('gets an id on the first start of a site, and keeps it', async () => {
    const id = (await readFile(mark, 'utf8')).trim();
    expect((await registry()).storage?.id).toBe(id);
    await service.app.close();
    await start();
    await well();
    expect([(await readFile(mark, 'utf8')).trim(), (await registry()).storage?.id]).toEqual([id, id]);
    // Nothing was changed, so there is nothing to be adopted but what it is.
    expect((await adopt('another').expect(409)).body).toMatchObject({ code: 'storage_adoption_refused' });
    expect(await end((await adopt(id).expect(202)).body.id as string)).toMatchObject({ state: 'succeeded' });
    expect((await adopt('../x').expect(422)).body).toMatchObject({ code: 'request_invalid' });
  });

  it('is not taken for a new one when its disk is not mounted at a start, and goes on by itself when it is, also late', async (context) => {
    if (!canMount) return context.skip('no file system can be mounted');
    const disk2 = join(folder.path, 'aside');
    await mkdir(disk2);
    await run('mount', ['--bind', disk, disk2]);
    mounts.push(disk2);
    await service.app.close();
    await umount();
    await start();
    expect(await changed()).toMatchObject({
      folderState: 'unmarked',
      foundId: null,
      adoptableId: expect.any(String) as string,
    });
    expect(await readdir(disk)).toEqual([]);
    await run('mount', ['--bind', disk2, disk]);
    await well();
    expect((await registry()).storage?.id).toBe((await readFile(mark, 'utf8')).trim());
  });

  it('stops everything that writes when its disk goes while all runs, with nothing written below the mount', async (context) => {
    if (!canMount) return context.skip('no file system can be mounted');
    await umount();
    const { recordedId, adoptableId } = await changed();
    expect(await readdir(disk)).toEqual([]);
    expect((await adopt('something').expect(409)).body).toMatchObject({
      code: 'storage_adoption_refused',
      adoptableId,
    });
    expect(await end((await adopt(adoptableId).expect(202)).body.id as string)).toMatchObject({ state: 'succeeded' });
    await well();
    expect((await readFile(mark, 'utf8')).trim()).toBe(adoptableId);
    // The disk of before is another one now.
    await mount();
    await writeFile(mark, `${recordedId}\n`);
    expect(await changed()).toMatchObject({
      folderState: 'marked',
      foundId: recordedId,
      adoptableId: recordedId,
      recordedId: adoptableId,
    });
    await adopt(recordedId).expect(202);
    await well();
  });

  it.each<[string, () => Promise<unknown>, object]>([
    ['is empty', () => rm(mark), { folderState: 'unmarked', foundId: null }],
    [
      'has the id of another',
      () => writeFile(mark, 'another\n'),
      { folderState: 'marked', foundId: 'another', adoptableId: 'another' },
    ],
    ['has a file of zero bytes for its id', () => truncate(mark), { folderState: 'damaged', foundId: null }],
    [
      'has garbage for its id',
      () => writeFile(mark, Buffer.alloc(5_000, 0xff)),
      { folderState: 'damaged', foundId: null },
    ],
    [
      'has a link for its id',
      () => rename(mark, `${mark}.x`).then(() => symlink(`${mark}.x`, mark)),
      { folderState: 'damaged', foundId: null },
    ],
    ['has a folder for its id', () => rm(mark).then(() => mkdir(mark)), { folderState: 'damaged', foundId: null }],
  ])('that %s is said, until it is as it was', async (_, damage, expected) => {
    const id = (await readFile(mark, 'utf8')).trim();
    await damage();
    expect(await changed()).toMatchObject({ ...expected, recordedId: id });
    await service.app.close();
    await start();
    expect(await changed()).toMatchObject({ ...expected, recordedId: id });
    await rm(mark, { recursive: true, force: true });
    await writeFile(mark, `${id}\n`);
    await well();
  });

  it('whose file with the id alone was lost gets it again by its name', async () => {
    const id = (await readFile(mark, 'utf8')).trim();
    await truncate(mark, 3);
    await writeFile(mark, '');
    expect(await changed()).toMatchObject({ recordedId: id });
    expect(await end((await adopt(id).expect(202)).body.id as string)).toMatchObject({ state: 'succeeded' });
    await well();
    expect((await readFile(mark, 'utf8')).trim()).toBe(id);
  });

  it('that is mounted read-only is said to be so, at a start too, and goes on by itself', async (context) => {
    if (!canMount) return context.skip('no file system can be mounted');
    const id = (await readFile(mark, 'utf8')).trim();
    await run('mount', ['-o', 'remount,ro', disk]);
    expect((await changed('registry_storage_read_only')).detail).toContain('read-only');
    expect((await registry()).health).toMatchObject({ readOnlyOk: true });
    await service.app.close();
    await start();
    await changed('registry_storage_read_only');
    expect((await adopt('another').expect(409)).body).toMatchObject({ code: 'storage_adoption_refused' });
    await run('mount', ['-o', 'remount,rw', disk]);
    await well();
    expect((await readFile(mark, 'utf8')).trim()).toBe(id);
  });

  it('that is not there at all is not made again', async (context) => {
    if (canMount) await umount();
    await rm(disk, { recursive: true });
    expect(await changed()).toMatchObject({ folderState: 'absent' });
    await service.app.close();
    await start();
    expect(await changed()).toMatchObject({ folderState: 'absent' });
    expect(existsSync(disk)).toBe(false);
    if (!canMount) return context.skip();
    await mkdir(disk);
    await mount();
    const { adoptableId } = await changed();
    await adopt(adoptableId).expect(202);
    await well();
  });
});
