import { mkdir, readdir, rename, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Digest } from '@airdock/core/oci/digest';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { copyImages } from '@airdock/registry/copy/copy-image';
import { registrySockets } from '@airdock/registry/engine/process-engine';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { freePort, type JsonRequest, startJsonServer, startRedis, tempDir, waitFor } from '@airdock/testing/servers';
import request from 'supertest';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { GarbageCollection } from './garbage-collection/garbage-collection.schema.js';
import { RegistryModule } from './registry.module.js';

const path = '/v1/registry/garbage-collections';
const unavailable = { code: 'dependency_unavailable', title: 'stub', status: 503, type: 'stub', nextStep: 'stub' };

describe('garbage collections', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let others: Awaited<ReturnType<typeof startJsonServer>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let registry: RegistryClient;
  let storage: string;
  let answers: Record<string, unknown>;
  /** What image-svc does when it is to forget layers. */
  let forget: () => unknown;
  /** What image-svc and backup-svc say is running. */
  let running: { id: string; type: string }[];
  const api = (method: 'get' | 'post' | 'put', url: string) =>
    request(service.url)[method](url).set('authorization', `Bearer ${service.token}`);
  const end = async ({ id }: Job): Promise<Job> =>
    (await api('get', `/v1/jobs/${id}?waitSeconds=60`).expect(200)).body as Job;
  const begin = async (body: object = {}): Promise<Job> => (await api('post', path).send(body).expect(202)).body as Job;
  const collect = async (body: object = {}): Promise<Job> => end(await begin(body));
  const at = async ({ resource }: Job): Promise<GarbageCollection> =>
    (await api('get', resource).expect(200)).body as GarbageCollection;
  const isCollecting = async () => (await api('get', '/v1/registry').expect(200)).body.collecting as boolean;

  beforeEach(async () => {
    folder = await tempDir('garbage');
    storage = join(folder.path, 'storage');
    redis = await startRedis();
    running = [];
    forget = () => ({});
    answers = {
      '/v1/image-sets': { items: [] },
      '/v1/clusters': { items: [] },
      '/v1/images': { items: [] },
      '/v1/bundles/forget-layers': () => forget(),
      '/v1/jobs': ({ query }: JsonRequest) => ({ items: running.filter(({ type }) => type === query.get('type')) }),
    };
    others = await startJsonServer(answers);
    const port = await freePort();
    service = await startComponent('registry', RegistryModule, {
      dataDir: join(folder.path, 'data'),
      redisUrl: redis.url,
      privateRegistryType: 'local',
      overrides: {
        ...{ 'registry.port': port, 'registry.storageDir': storage, 'registry.allowedHosts': ['127.0.0.0/8'] },
        ...{ 'services.image': others.url, 'services.cluster': others.url, 'services.backup': others.url },
      },
    });
    registry = new RegistryClient(registrySockets(join(folder.path, 'data/run/registry')).readWrite);
    // After its check of the layout, which leaves nothing in the storage.
    await waitFor(async () => (await api('get', '/v1/registry')).body.storage?.id, { what: 'the registry to serve' });
  });
  afterEach(async () => {
    await registry.close();
    await end((await api('put', '/v1/registry').send({ mode: 'none' }).expect(202)).body as Job);
    await service.app.close();
    await Promise.all([redis.stop(), others.stop()]);
    await folder.remove();
  });

  /**
   * Returns the digests of what tags lead to, the last pushed last. The tag `app:1` is given to one after the other.
   */
  async function push(...seeds: string[]): Promise<Digest[]> {
    const digests: Digest[] = [];
    for (const seed of seeds) {
      const file = join(folder.path, `${seed}.tar`);
      await buildOciArchive(file, [
        await makeImage({ name: 'reg.site/app:1', layers: [{ randomBytes: 100_000, seed }] }),
      ]);
      await using source = await openBundle(file, { workDir: join(folder.path, 'work') });
      const [copied] = await copyImages({
        source,
        registry,
        images: source.images.map((image) => ({ image, names: [{ repository: 'app', tag: '1' }] })),
      });
      digests.push(copied?.digest as Digest);
    }
    const then = new Date(Date.now() - 3 * 60 * 60 * 1000);
    for (const entry of await readdir(join(storage, 'docker'), { recursive: true, withFileTypes: true }))
      if (entry.isFile()) await utimes(join(entry.parentPath, entry.name), then, then);
    return digests;
  }
  const isThere = async (digest: Digest | undefined) =>
    stat(join(storage, 'docker/registry/v2/blobs/sha256', digest?.slice(7, 9) ?? '', digest?.slice(7) ?? '')).then(
      () => true,
      () => false,
    );

  it('estimates first, frees as much, and remembers it', async () => {
    const [old, current] = await push('old', 'new');
    const dry = await collect({ dryRun: true });
    expect(dry).toMatchObject({
      type: 'registry.collect-garbage',
      state: 'succeeded',
      result: { dryRun: true, blobs: 3 },
    });
    const { estimate } = await at(dry);
    expect(estimate).toMatchObject({
      blobs: 3,
      revisions: 1,
      links: 3,
      uploads: 0,
      repositories: [{ repository: 'app' }],
    });
    expect(await isThere(old)).toBe(true);
    const job = await collect();
    expect(job).toMatchObject({
      state: 'succeeded',
      result: { blobs: 3, bytes: estimate?.bytes },
      progress: { percent: 100, bytesDone: estimate?.bytes },
    });
    expect(await at(job)).toMatchObject({
      dryRun: false,
      protectHours: 2,
      state: 'succeeded',
      estimate,
      freed: estimate,
    });
    expect([await isThere(old), await isThere(current)]).toEqual([false, true]);
    expect((await registry.headManifest('app', '1'))?.digest).toBe(current);
    const { items } = (await api('get', path).expect(200)).body as { items: GarbageCollection[] };
    expect(items.map(({ dryRun, freed }) => [dryRun, freed?.bytes ?? null])).toEqual([
      [false, estimate?.bytes],
      [true, null],
    ]);
    expect(await at(await collect())).toMatchObject({ estimate: { bytes: 0 }, freed: null });
  });

  it('keeps what image sets name by digest or by what was pushed for them, what has no tag, and everything when a cluster needs a set that is gone', async () => {
    const [byDigest, byName, unknown, untagged] = await push('first', 'second', 'third', 'fourth', 'fifth');
    const localReferences = ['localhost:5100/app:1'];
    const images = [
      { upstream: 'reg.site/two:1', digest: byName, companions: [], localReferences },
      { upstream: 'reg.site/three:1', digest: unknown, companions: [], localReferences },
      {
        upstream: `reg.site/four@${untagged}`,
        digest: untagged,
        companions: [],
        localReferences: [`localhost:5100/app@${untagged}`],
      },
    ];
    answers['/v1/images'] = ({ query }: JsonRequest) =>
      query.get('cursor') ? { items: images.slice(1) } : { items: images.slice(0, 1), nextCursor: 'next' };
    answers['/v1/image-sets'] = { items: [{ id: 'a', images: [`reg.site/one:1@${byDigest}`, 'reg.site/two:1'] }] };
    answers['/v1/clusters'] = { items: [{ imageSetId: null, targetImageSetId: 'gone' }] };
    expect(await collect()).toMatchObject({ state: 'succeeded', result: { blobs: 0 } });
    answers['/v1/clusters'] = { items: [{ imageSetId: 'a', targetImageSetId: null }] };
    expect(await collect()).toMatchObject({ state: 'succeeded', result: { blobs: 3 } });
    expect(await Promise.all([byDigest, byName, untagged, unknown].map(isThere))).toEqual([true, true, true, false]);
  });

  it('lets the same image be pushed again, since this registry does not answer from a memory of what it had', async () => {
    const [old] = await push('old');
    const blobs = JSON.parse((await registry.getManifest('app', '1'))?.bytes.toString() ?? '') as {
      layers: { digest: Digest }[];
    };
    const [layer] = blobs.layers;
    expect(await registry.headBlob('app', layer?.digest as Digest)).toBeDefined();
    await push('new');
    await collect();
    expect(await registry.headBlob('app', layer?.digest as Digest)).toBeUndefined();
    expect(await push('old')).toEqual([old]);
    expect(await registry.headBlob('app', layer?.digest as Digest)).toBeDefined();
    expect((await registry.headManifest('app', '1'))?.digest).toBe(old);
  });

  it('brings back what a collection has left that was cut short and does not go on, also with PUT /v1/registry', async () => {
    const [digest] = await push('kept');
    const blob = `blobs/sha256/${digest?.slice(7, 9)}/${digest?.slice(7)}`;
    const [from, aside] = [join(storage, 'docker/registry/v2', blob), join(storage, 'airdock-garbage/aside', blob)];
    const moveAway = async () => {
      await mkdir(dirname(aside), { recursive: true });
      await rename(from, aside);
      await writeFile(join(storage, 'airdock-garbage/aside/sweep.json.1.part'), '{');
    };
    await moveAway();
    await waitFor(
      async () => (await registry.headManifest('app', '1')) && !(await readdir(storage)).includes('airdock-garbage'),
      {
        what: 'the manifest to be back',
      },
    );
    await moveAway();
    await end((await api('put', '/v1/registry').send({ mode: 'local' }).expect(202)).body as Job);
    expect((await registry.headManifest('app', '1'))?.digest).toBe(digest);
  });

  it('removes nothing while a service does not say what it needs, and tries again', async () => {
    const [old] = await push('old', 'new');
    answers['/v1/clusters'] = unavailable;
    const job = await begin();
    await waitFor(async () => (await api('get', `/v1/jobs/${job.id}`)).body.attempt > 1, {
      what: 'a second try',
      timeoutMs: 20_000,
    });
    expect(await isThere(old)).toBe(true);
    expect((await at(job)).estimate).toBeNull();
    answers['/v1/clusters'] = { items: [] };
    expect(await end(job)).toMatchObject({ state: 'succeeded', result: { blobs: 3 } });
  });

  it('has image-svc forget compressed layers while nobody else is at work, and before their space is given back', async () => {
    const condemned = join(storage, 'airdock-garbage/condemned');
    const [old] = await push('old', 'new');
    const seen: unknown[] = [];
    forget = async () => {
      seen.push({
        isCollecting: await isCollecting(),
        isThere: await isThere(old),
        isKept: (await readdir(condemned)).length > 0,
      });
      return {};
    };
    expect(await collect()).toMatchObject({ state: 'succeeded', result: { blobs: 3 } });
    expect(seen).toEqual([{ isCollecting: true, isThere: false, isKept: true }]);
    expect(await collect({ dryRun: true })).toMatchObject({ state: 'succeeded' });
    expect(seen).toHaveLength(1);
  });

  it('keeps what it has swept until image-svc, which was away, has forgotten its layers', async () => {
    await push('old', 'new');
    let asked = 0;
    const marks: boolean[] = [];
    forget = async () => {
      marks.push(await isCollecting());
      return ++asked < 3 ? unavailable : {};
    };
    expect(await collect()).toMatchObject({ state: 'succeeded', result: { blobs: 3 } });
    expect(marks).toEqual([true, true, true]);
    expect(await isCollecting()).toBe(false);
    expect(await readdir(join(storage, 'airdock-garbage')).catch(() => [])).toEqual([]);
  });

  it('waits for jobs that use the registry, keeps others away while it collects, and gives up without removing anything', async () => {
    const [old] = await push('old', 'new');
    running = [{ id: '1', type: 'image.push' }];
    expect(await collect({ waitMinutes: 0 })).toMatchObject({
      state: 'failed',
      error: { code: 'registry_busy', jobs: running },
    });
    expect(await isThere(old)).toBe(true);
    const job = await begin();
    await waitFor(
      async () => (await api('get', `/v1/jobs/${job.id}`)).body.progress.phase === 'waiting for running jobs',
      { what: 'the collection to wait' },
    );
    expect(await isCollecting()).toBe(false);
    const seen: boolean[] = [];
    answers['/v1/jobs'] = async () => {
      seen.push(await isCollecting());
      return { items: [] };
    };
    expect(await end(job)).toMatchObject({ state: 'succeeded', result: { blobs: 3 } });
    // Six kinds of jobs, asked for before and after the mark.
    expect(seen).toEqual([...Array<boolean>(6).fill(false), ...Array<boolean>(6).fill(true)]);
    expect(await isCollecting()).toBe(false);
  });

  it('lets go of everybody when a job begins in between, until that has ended', async () => {
    await push('old', 'new');
    const pushed = { id: '1', type: 'backup.create' };
    let looks = 0;
    const marks: boolean[] = [];
    answers['/v1/jobs'] = async ({ query }: JsonRequest) => {
      if (query.get('type') !== pushed.type) return { items: [] };
      looks += 1;
      marks.push(await isCollecting());
      return { items: looks === 2 || looks === 3 ? [pushed] : [] };
    };
    expect(await collect()).toMatchObject({ state: 'succeeded', result: { blobs: 3 } });
    expect(marks).toEqual([false, true, false, false, true]);
  });

  it('runs one at a time, says which, and can be cancelled and begun again', async () => {
    const [old] = await push('old', 'new');
    running = [{ id: '1', type: 'image.verify' }];
    const first = await begin();
    const refused = (await api('post', path).send({ dryRun: true }).expect(409)).body;
    expect(refused).toMatchObject({
      code: 'collection_running',
      jobId: first.id,
      collectionId: first.resource.split('/').at(-1),
    });
    await waitFor(
      async () => (await api('get', `/v1/jobs/${first.id}`)).body.progress.phase === 'waiting for running jobs',
      {
        what: 'the collection to wait',
      },
    );
    await api('post', `/v1/jobs/${first.id}/cancel`).expect(202);
    expect(await end(first)).toMatchObject({ state: 'cancelled' });
    expect(await isThere(old)).toBe(true);
    const second = await begin();
    // One after the other.
    await api('post', `/v1/jobs/${first.id}/retry`).expect(202);
    running = [];
    expect(await end(second)).toMatchObject({ state: 'succeeded', result: { blobs: 3 } });
    expect(await end(first)).toMatchObject({ state: 'succeeded', result: { blobs: 0 } });
    const many = await Promise.all([1, 2, 3, 4].map(() => api('post', path).send({ dryRun: true })));
    expect(many.map(({ status }) => String(status)).sort()).toEqual(['202', '409', '409', '409']);
    await end(many.find(({ status }) => status === 202)?.body as Job);
  });

  it('names damaged manifests, and refuses registries that are off or not its own', async () => {
    const [, current] = await push('old', 'new');
    const data = join(
      storage,
      'docker/registry/v2/blobs/sha256',
      current?.slice(7, 9) ?? '',
      current?.slice(7) ?? '',
      'data',
    );
    await truncate(data, 10);
    await utimes(data, new Date(0), new Date(0));
    expect(await collect()).toMatchObject({
      state: 'failed',
      error: { code: 'registry_damaged', damaged: [expect.stringContaining('app:1')] },
    });
    Object.assign(answers, {
      '/v2/': {},
      '/v2/airdock.never-given/manifests/none': { errors: [{ code: 'MANIFEST_UNKNOWN' }] },
    });
    await end(
      (await api('put', '/v1/registry').send({ mode: 'external', externalUrl: others.url }).expect(202)).body as Job,
    );
    expect((await api('post', path).send({}).expect(409)).body.code).toBe('registry_external');
    await end((await api('put', '/v1/registry').send({ mode: 'none' }).expect(202)).body as Job);
    expect((await api('post', path).send({}).expect(409)).body.code).toBe('registry_off');
    expect((await api('post', path).send({ protectHours: -1 }).expect(422)).body.code).toBe('request_invalid');
  });
});
