/** Garbage collections of an embedded DU beside its own pushes, verifications and backups, and over its death. */
import { execFile } from 'node:child_process';
import { readdir, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import {
  createBackup,
  createGarbageCollection,
  createImageSet,
  createPush,
  createVerification,
  deleteImage,
  getGarbageCollection,
  getJob,
  getRegistry,
  listImages,
} from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { carryIn, push, register, writeLargeBundle } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { endOf, midway, resourceId, success } from '../support/jobs.js';
import { missingOf } from '../support/registry.js';

const run = promisify(execFile);
const layerBytes = 20_000_000;
const old = 'quay.io/old/app:1';
const kept = 'quay.io/kept/app:1';

let folder: TempDir;
let du: Du;
let client: Client;
beforeEach(async () => {
  folder = await tempDir('garbage');
  du = await Du.start({ folder: folder.path });
  client = await du.client();
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  await du?.stop();
  await folder?.remove();
});

const storage = () => join(du.dataDir, 'registry/storage');
const collect = async (body = {}) => (await createGarbageCollection({ client, body, throwOnError: true })).data;
const collection = async (job: Job) =>
  (await getGarbageCollection({ client, path: { id: resourceId(job) }, throwOnError: true })).data;
const phase = async ({ id }: Job) => (await getJob({ client, path: { id }, throwOnError: true })).data.progress.phase;
const isCollecting = async () => (await getRegistry({ client, throwOnError: true })).data.collecting;

/** Everything in the registry was pushed long ago. */
async function age(): Promise<void> {
  const then = new Date(Date.now() - 3 * 60 * 60 * 1000);
  for (const entry of await readdir(join(storage(), 'docker'), { recursive: true, withFileTypes: true }))
    if (entry.isFile()) await utimes(join(entry.parentPath, entry.name), then, then);
}

/** Two images were pushed long ago, one was deleted since. Returns the bundles. */
async function makeGarbage(): Promise<{ oldId: string; keptId: string }> {
  const oldId = await carryIn(client, du, { name: 'old', images: [old], layerBytes });
  const keptId = await carryIn(client, du, { name: 'kept', images: [kept], layerBytes });
  await push(client, oldId);
  await push(client, keptId);
  const { data } = await listImages({ client, query: { search: old }, throwOnError: true });
  await deleteImage({ client, path: { id: data.items[0]?.id ?? '' }, throwOnError: true });
  await age();
  return { oldId, keptId };
}

/** Of all that this DU keeps; a file with two names counts once. */
const usedBytes = async () => Number.parseInt((await run('du', ['-sk', du.dataDir])).stdout, 10) * 1024;

describe('a garbage collection', () => {
  it('gives the space of a deleted image back, which can be pushed again afterwards', async () => {
    const { oldId, keptId } = await makeGarbage();
    const { estimate } = await collection(await success(client, await collect({ dryRun: true })));
    expect(estimate?.bytes).toBeGreaterThan(layerBytes);
    const before = await usedBytes();
    const { freed } = await collection(await success(client, await collect()));
    expect(freed).toEqual(estimate);
    // The layer was in the cache of compressed layers as well.
    expect(before - (await usedBytes())).toBeGreaterThan(layerBytes / 2);
    expect(await missingOf(client, du.registryPort, keptId)).toEqual([]);
    expect(await missingOf(client, du.registryPort, oldId)).not.toEqual([]);
    await success(client, createVerification({ client, body: {}, throwOnError: true }));
    await push(client, oldId);
    expect(await missingOf(client, du.registryPort, oldId)).toEqual([]);
    await createImageSet({ client, body: { name: 'all', images: [old, kept] }, throwOnError: true });
    await age();
    expect((await success(client, await collect())).result).toMatchObject({ blobs: 0 });
  });

  it('waits for a push that runs, and pushes, verifications and backups wait for it', async () => {
    const { oldId, keptId } = await makeGarbage();
    const largeId = await register(
      client,
      await writeLargeBundle({ dir: du.bundleDir, name: 'large', format: 'docker' }),
    );
    const { data: large } = await createPush({ client, body: { bundleId: largeId }, throwOnError: true });
    await midway(client, large.id);
    const job = await collect();
    await waitFor(async () => (await phase(job)) === 'waiting for running jobs', { what: 'the collection to wait' });
    expect((await getJob({ client, path: { id: large.id }, throwOnError: true })).data.state).toBe('running');
    await success(client, large);

    await waitFor(isCollecting, { what: 'the collection to keep others away', intervalMs: 5, timeoutMs: 30_000 });
    const [pushed, verified, backedUp] = await Promise.all([
      createPush({ client, body: { bundleId: oldId }, throwOnError: true }),
      createVerification({ client, body: {}, throwOnError: true }),
      createBackup({ client, body: {}, throwOnError: true }),
    ]);
    await waitFor(async () => (await phase(pushed.data)) === 'waiting for a garbage collection', {
      what: 'the push to wait',
      intervalMs: 5,
    });
    await success(client, job);
    for (const { data } of [pushed, verified, backedUp]) await success(client, data);
    expect(await isCollecting()).toBe(false);
    for (const bundleId of [oldId, keptId, largeId])
      expect(await missingOf(client, du.registryPort, bundleId)).toEqual([]);
  });

  it('goes on after the DU was killed in the middle of it', async () => {
    const { keptId } = await makeGarbage();
    const job = await collect();
    await waitFor(
      async () => (await readdir(join(storage(), 'airdock-garbage/aside/blobs/sha256')).catch(() => [])).length > 0,
      {
        what: 'blobs to be set aside',
        intervalMs: 5,
        timeoutMs: 30_000,
      },
    );
    await du.end('SIGKILL');
    await du.startProcess();
    expect(await endOf(client, job.id)).toMatchObject({ state: 'succeeded', attempt: 2 });
    const { estimate, freed } = await collection(job);
    expect(freed).toEqual(estimate);
    expect(freed?.bytes).toBeGreaterThan(layerBytes);
    expect(await missingOf(client, du.registryPort, keptId)).toEqual([]);
    expect(await readdir(storage())).not.toContain('airdock-garbage');
  });
});
