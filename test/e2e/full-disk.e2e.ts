/**
 * A DU whose data folder, or the registry's storage, lies on a real disk (ext4) that has no byte or no inode left. That
 * is when an operator deletes and collects: it must be possible, although a job is a row first, and a collection sets
 * aside before it frees.
 */
import { execFile } from 'node:child_process';
import { watch } from 'node:fs';
import { mkdir, readdir, rm, statfs, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import {
  createBackup,
  createGarbageCollection,
  createPush,
  createRestore,
  createVerification,
  deleteBundle,
  deleteImage,
  getGarbageCollection,
  listBundles,
  listImages,
  listJobs,
  rebuildCatalogue,
  retryJob,
} from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { parseManifest } from '@airdock/core/oci/manifest';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { carryIn, push, register, writeLargeBundle } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { missingOf } from '../support/registry.js';

const run = promisify(execFile);
const layerBytes = 20_000_000;

let folder: TempDir;
let disk: string;
let du: Du;
let client: Client;
let canMount: boolean;
let keptId: string;

beforeEach(async (context) => {
  folder = await tempDir('full-disk');
  disk = join(folder.path, 'disk');
  await mkdir(disk);
  const make = 'truncate -s 220M "$0" && mkfs.ext4 -q -m 0 -N 3000 "$0" && mount -o loop "$0" "$1"';
  canMount = await run('sh', ['-c', make, join(folder.path, 'image'), disk]).then(
    () => true,
    () => false,
  );
  if (!canMount) context.skip('no file system can be mounted');
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  if (canMount) {
    await du?.stop();
    await run('umount', ['--lazy', disk]);
  }
  await folder?.remove();
});

/** With an image that was deleted long ago, one that stays, and room in reserve. */
async function start(where: 'data' | 'storage'): Promise<void> {
  const bundleDir = join(folder.path, 'bundles');
  const storageDir = join(disk, 'storage');
  const own = { minFreeBytes: 0, ...(where === 'storage' && { storageDir }) };
  du = await Du.start({
    folder: where === 'data' ? disk : join(folder.path, 'du'),
    bundleDir,
    registry: own,
    airdock: { backupDir: join(folder.path, 'backups') },
  });
  client = await du.client();
  const oldId = await carryIn(client, du, { name: 'old', images: ['quay.io/old/app:1'], layerBytes });
  keptId = await carryIn(client, du, { name: 'kept', images: ['quay.io/kept/app:1'], layerBytes });
  for (const id of [oldId, keptId]) await push(client, id);
  const then = new Date(Date.now() - 3 * 60 * 60 * 1000);
  const root = where === 'data' ? join(du.dataDir, 'registry/storage/docker') : join(storageDir, 'docker');
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true }))
    if (entry.isFile()) await utimes(join(entry.parentPath, entry.name), then, then);
  await waitFor(async () => (await reserve()) === 256, { what: 'the reserve to be made', timeoutMs: 30_000 });
}

const reserve = async () => Number((await run('sh', ['-c', 'find "$0" -name "piece-*" | wc -l', disk])).stdout);
const fill = (what: string) =>
  run('sh', [
    '-c',
    what === 'byte'
      ? 'cat /dev/zero >"$0/full$1"; i=0; while echo x >"$0/full$1-$i"; do i=$((i+1)); done'
      : 'mkdir -p "$0/full"; i=0; while true >"$0/full/$1-$i"; do i=$((i+1)); done',
    disk,
    String(Date.now()),
  ]).catch(() => undefined);
const empty = () => run('sh', ['-c', 'rm -r "$0"/full*', disk]);
const notices = async () =>
  ((await (await fetch(`${du.url}/readyz`)).json()) as { notices: Record<string, string> }).notices;
const catalogue = async () =>
  (await (await fetch(`http://localhost:${du.registryPort}/v2/_catalog`)).json()) as { repositories: string[] };
/** Tags that lead to something that is not there. */
async function incomplete(): Promise<string[]> {
  await using registry = new RegistryClient(`http://localhost:${du.registryPort}`);
  const found: string[] = [];
  for (const repository of await registry.listRepositories())
    for (const tag of await registry.listTags(repository)) {
      const manifest = await registry.getManifest(repository, tag);
      const document = manifest && parseManifest(manifest.bytes, manifest.mediaType);
      const blobs = document?.kind === 'manifest' ? [document.config, ...document.layers] : undefined;
      const sizes = await Promise.all((blobs ?? []).map(({ digest }) => registry.headBlob(repository, digest)));
      if (!blobs || sizes.some((blob, index) => blob?.size !== blobs[index]?.size)) found.push(`${repository}:${tag}`);
    }
  return found;
}
/** What is given out while the disk is still being filled is gone at once: the next part is waited for. */
const given = () =>
  waitFor(async () => (await reserve()) < 256 && (await hasRoom()), {
    what: 'the reserve to be given out',
    timeoutMs: 30_000,
  });
async function hasRoom(): Promise<boolean> {
  const { bfree, bsize, ffree } = await statfs(disk);
  return bfree * bsize > 2 * 1024 * 1024 && ffree > 32;
}

describe.each([
  ['data', 'byte'],
  ['data', 'inode'],
  ['storage', 'byte'],
  ['storage', 'inode'],
] as const)('a DU whose disk of the %s has no %s left', (where, what) => {
  it('says so, deletes and collects, and works as before when that has made room', async () => {
    await start(where);
    await fill(what);
    expect(await notices()).toMatchObject({ 'disk:storage': expect.stringContaining('full') as string });
    expect('disk:data' in (await notices())).toBe(where === 'data');
    await given();
    const { items } = (await listImages({ client, query: { search: 'old' }, throwOnError: true })).data;
    await deleteImage({ client, path: { id: items[0]?.id ?? '' }, throwOnError: true });
    const bundles = (await listBundles({ client, throwOnError: true })).data.items;
    await deleteBundle({
      client,
      path: { id: bundles.find(({ name }) => name === 'old.tar')?.id ?? '' },
      throwOnError: true,
    });
    const job = await success(client, createGarbageCollection({ client, body: {}, throwOnError: true }));
    const { estimate, freed } = (
      await getGarbageCollection({ client, path: { id: resourceId(job) }, throwOnError: true })
    ).data;
    expect(freed).toEqual(estimate);
    expect(freed?.bytes).toBeGreaterThan(layerBytes);
    expect(await missingOf(client, du.registryPort, keptId)).toEqual([]);
    await success(client, createVerification({ client, body: {}, throwOnError: true }));
    await success(client, rebuildCatalogue({ client, throwOnError: true }));
    await empty();
    await waitFor(async () => (await reserve()) === 256, { what: 'the reserve to be made again', timeoutMs: 30_000 });
    await push(client, await carryIn(client, du, { name: 'new', images: ['quay.io/new/app:1'] }));
    expect(await notices()).toEqual({});
  });
});

describe('a DU whose disk is full', () => {
  it('with nothing left in reserve says so soon, reads, and goes on by itself, also when it was killed meanwhile', async () => {
    await start('data');
    const bundleId = await carryIn(client, du, { name: 'new', images: ['quay.io/new/app:1'] });
    const refused = (call: Promise<{ data?: unknown; error?: unknown }>) =>
      call.then(
        ({ error }) => error,
        (error: unknown) => error,
      );
    // Whoever filled it takes what is given out.
    const isTaken = async () => {
      await fill('byte');
      return (await reserve()) === 0 && (await refused(createPush({ client, body: { bundleId } }))) !== undefined;
    };
    await waitFor(isTaken, { what: 'nothing to be left', timeoutMs: 60_000 });
    expect(await refused(createGarbageCollection({ client, body: {} }))).toMatchObject({ code: 'database_full' });
    expect((await listImages({ client, throwOnError: true })).data.items.length).toBeGreaterThan(1);
    expect(await missingOf(client, du.registryPort, keptId)).toEqual([]);
    await du.end('SIGKILL');
    await empty();
    await du.startProcess();
    await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
    expect(await missingOf(client, du.registryPort, bundleId)).toEqual([]);
  });

  it.each(['byte', 'inode'])('without a free %s starts with what is in reserve', async (what) => {
    await start('data');
    await du.end('SIGKILL');
    await fill(what);
    await du.startProcess();
    await success(client, createGarbageCollection({ client, body: {}, throwOnError: true }));
    expect(await missingOf(client, du.registryPort, keptId)).toEqual([]);
  });

  it('restores nothing by half: refused before the first byte, or ended in the middle and finished by a retry', async () => {
    await start('data');
    const largeId = await register(
      client,
      await writeLargeBundle({ dir: du.bundleDir, name: 'large', images: 4, layerBytes: 12_000_000 }),
    );
    await push(client, largeId);
    const backupId = resourceId(await success(client, createBackup({ client, body: {}, throwOnError: true })));
    const before = await missingOf(client, du.registryPort, largeId);
    const wipe = () => rm(join(du.dataDir, 'registry/storage/docker'), { recursive: true });
    const body = { backupId, settings: false };
    await wipe();

    await fill('byte');
    await given();
    const { data: refused } = await createRestore({ client, body, throwOnError: true });
    expect(await endOf(client, refused.id)).toMatchObject({
      state: 'failed',
      error: { code: 'space_insufficient', nextStep: expect.any(String) as string },
    });
    expect((await catalogue()).repositories).toEqual([]);

    const jobs = [refused.id];
    const restore = async () => {
      const { data } = await createRestore({
        client,
        body,
        headers: { 'Idempotency-Key': `worst-day-${jobs.length}` },
        throwOnError: true,
      });
      return data;
    };
    const incoming = join(du.dataDir, 'registry/storage/airdock-incoming');
    let job: Job | undefined;
    // A fast machine may be done before the DU is frozen.
    for (let round = 0; !job?.error && round < 10; round++) {
      if (job) jobs.push(job.id);
      await empty();
      if (job) await wipe();
      const began = new AbortController();
      const frozen = new Promise<void>((resolve) => {
        watch(incoming, { signal: began.signal }, () => {
          process.kill(du.pid ?? 0, 'SIGSTOP');
          began.abort();
          resolve();
        });
      });
      const begun = await restore();
      await frozen;
      await fill('byte');
      process.kill(du.pid ?? 0, 'SIGCONT');
      job = await endOf(client, begun.id);
    }
    if (!job) throw new Error('nothing was restored');
    expect(await incomplete()).toEqual([]);
    await empty();
    expect((await restore()).id).toBe(job.id);
    expect(job).toMatchObject({ state: 'failed', error: { code: 'space_insufficient' } });
    await retryJob({ client, path: { id: job.id }, throwOnError: true });
    await du.end('SIGKILL');
    await du.startProcess();
    expect((await restore()).id).toBe(job.id);
    await success(client, job);
    for (const id of [largeId, keptId]) expect(await missingOf(client, du.registryPort, id)).toEqual(before);
    const { items } = (await listJobs({ client, query: { type: 'backup.restore' }, throwOnError: true })).data;
    expect(items.map(({ id }) => id).sort()).toEqual([...jobs, job.id].sort());
  });
});
