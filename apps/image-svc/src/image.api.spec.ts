import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { digestHex, digestOf } from '@airdock/core/oci/digest';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { RegistryStorage } from '@airdock/registry/folder/registry-storage';
import {
  breakConfig,
  buildDockerArchive,
  buildOciArchive,
  buildOciLayout,
  buildRandomFile,
  makeImage,
  makeIndex,
  truncateFile,
  withMember,
} from '@airdock/testing/bundles';
import { startJsonServer, startRedis, startRegistry, tempDir } from '@airdock/testing/servers';
import request from 'supertest';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ImageModule } from './image.module.js';

const base = { randomBytes: 200_000, seed: 'base' };
const pause = 'k8s.gcr.io/pause:3.2';
const etcd = 'gcr.io/etcd-development/etcd:v3.4.14';

describe('image-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let registry: Awaited<ReturnType<typeof startRegistry>>;
  let registryService: Awaited<ReturnType<typeof startJsonServer>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let bundleDir: string;
  const answers: Record<string, unknown> = {};
  const api = (method: 'get' | 'post' | 'delete' | 'patch' | 'head', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const end = async (job: Job): Promise<Job> =>
    (await api('get', `/v1/jobs/${job.id}?waitSeconds=30`).expect(200)).body as Job;
  const post = async (path: string, body: object) => end((await api('post', path).send(body).expect(202)).body as Job);
  const idOf = (job: Job) => job.resource.split('/').at(-1) ?? '';
  const inRegistry = async (name: string) => {
    const accept = 'application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json';
    return fetch(`${registry.url}/v2/${name}`, { method: 'HEAD', headers: { accept } });
  };
  const repositories = async () =>
    ((await (await fetch(`${registry.url}/v2/_catalog`)).json()) as { repositories: string[] }).repositories;

  beforeAll(async () => {
    folder = await tempDir('image-svc');
    bundleDir = join(folder.path, 'bundles');
    await mkdir(bundleDir);
    [redis, registry] = await Promise.all([startRedis(), startRegistry()]);
    answers['/v1/registry'] = { mode: 'local', url: registry.url, host: registry.host };
    answers['/v1/clusters'] = { items: [] };
    registryService = await startJsonServer(answers);
    const others = { 'services.registry': registryService.url, 'services.cluster': registryService.url };
    const overrides = { bundleDirs: [bundleDir], ...others, 'registry.port': registry.port };
    service = await startComponent('image', ImageModule, {
      dataDir: join(folder.path, 'data'),
      redisUrl: redis.url,
      overrides,
    });
  });
  afterAll(async () => {
    await service?.app.close();
    await Promise.all([redis, registry, registryService].map((server) => server?.stop()));
    await folder?.remove();
  });

  it.each([
    ['truncated', 'bundle_truncated'],
    ['damaged', 'digest_mismatch'],
    ['hostile', 'bundle_unsafe'],
    ['random', 'bundle_format_unknown'],
    ['empty', 'bundle_format_unknown'],
  ])('refuses a %s bundle with %s, and nothing of it is visible', async (kind, code) => {
    const file = join(bundleDir, `${kind}.tar`);
    const image = await makeImage({ name: pause, layers: [base] });
    if (kind === 'random') await buildRandomFile(file);
    else if (kind === 'empty') await writeFile(file, '');
    else await buildDockerArchive(file, [image]);
    if (kind === 'truncated') await truncateFile(file, 100_000);
    if (kind === 'damaged') await breakConfig(file, image);
    if (kind === 'hostile') await withMember(file, { name: '../evil' });
    const job = await post('/v1/bundles', { path: file });
    expect(job).toMatchObject({ state: 'failed', error: { code, nextStep: expect.any(String) } });
    const bundle = (await api('get', `/v1/bundles/${idOf(job)}`).expect(200)).body;
    expect(bundle).toMatchObject({ state: 'invalid', images: [] });
    const refused = await api('post', '/v1/pushes').send({ bundleId: bundle.id }).expect(409);
    expect(refused.body.code).toBe('bundle_not_ready');
    expect(await repositories()).toEqual([]);
    expect(await readdir(folder.path)).not.toContain('evil');
  });

  it('refuses paths outside of the bundle folders, however they are written', async () => {
    await writeFile(join(folder.path, 'outside.tar'), 'x');
    await symlink(join(folder.path, 'outside.tar'), join(bundleDir, 'link.tar'));
    for (const path of [
      '/etc/passwd',
      join(bundleDir, '../outside.tar'),
      '../outside.tar',
      join(bundleDir, 'link.tar'),
      bundleDir,
    ])
      expect((await api('post', '/v1/bundles').send({ path })).body, path).toMatchObject({
        status: 422,
        code: 'bundle_path_forbidden',
      });
    expect((await api('post', '/v1/bundles').send({ path: 'a\0b' })).body).toMatchObject({
      status: 422,
      code: 'request_invalid',
    });
    expect((await api('post', '/v1/bundles').send({ path: 'nothing.tar' })).body).toMatchObject({
      code: 'bundle_not_found',
    });
    expect((await api('post', '/v1/bundles').send({ path: 'a', uploadId: '0'.repeat(32) })).body).toMatchObject({
      code: 'request_invalid',
    });
    expect((await api('post', '/v1/bundles').send({ uploadId: '0'.repeat(32) })).body).toMatchObject({
      code: 'upload_not_found',
    });
  });

  it('refuses to push while the registry is off', async () => {
    const file = join(bundleDir, 'off.tar');
    await buildOciArchive(file, [await makeImage({ name: pause, layers: [base] })]);
    const bundleId = idOf(await post('/v1/bundles', { path: file }));
    const on = answers['/v1/registry'];
    answers['/v1/registry'] = { mode: 'none', url: null, host: null };
    const refused = await api('post', '/v1/pushes').send({ bundleId });
    answers['/v1/registry'] = on;
    expect(refused.body).toMatchObject({ status: 409, code: 'registry_off' });
  });

  it('pushes a docker-archive and an OCI archive under all local names, and lists what it pushed', async () => {
    const saved = join(bundleDir, 'saved.tar');
    await buildDockerArchive(
      saved,
      await Promise.all([pause, 'nginx:1.21'].map((name) => makeImage({ name, layers: [base, { files: { name } }] }))),
    );
    const savedId = idOf(await post('/v1/bundles', { path: 'saved.tar' }));
    expect(await post('/v1/pushes', { bundleId: savedId })).toMatchObject({
      state: 'succeeded',
      result: { images: 2 },
      progress: { percent: 100, itemsDone: 2 },
    });
    for (const name of [
      'pause/manifests/3.2',
      'k8s.gcr.io/pause/manifests/3.2',
      'nginx/manifests/1.21',
      'library/nginx/manifests/1.21',
      'docker.io/library/nginx/manifests/1.21',
    ])
      expect((await inRegistry(name)).status, name).toBe(200);

    const oci = join(bundleDir, 'etcd.tar');
    await buildOciArchive(oci, [await makeImage({ name: etcd, layers: [base] })]);
    const ociId = idOf(await post('/v1/bundles', { path: oci }));
    const bundle = (await api('get', `/v1/bundles/${ociId}`)).body;
    expect(bundle.images[0]).toMatchObject({
      names: [etcd],
      platforms: ['linux/amd64'],
      localReferences: [
        `${registry.host}/etcd-development/etcd:v3.4.14`,
        `${registry.host}/gcr.io/etcd-development/etcd:v3.4.14`,
      ],
    });
    const push = (await api('get', `/v1/pushes/${idOf(await post('/v1/pushes', { bundleId: ociId }))}`)).body;
    expect(push).toMatchObject({ state: 'succeeded', results: [{ digest: bundle.images[0].digest, error: null }] });
    expect((await inRegistry('etcd-development/etcd/manifests/v3.4.14')).headers.get('docker-content-digest')).toBe(
      bundle.images[0].digest,
    );

    const { items } = (await api('get', '/v1/images?search=etcd').expect(200)).body;
    expect(items).toEqual([
      expect.objectContaining({
        upstream: etcd,
        digest: bundle.images[0].digest,
        platforms: ['linux/amd64'],
        sizeBytes: expect.any(Number),
        bundleId: ociId,
      }),
    ]);
    expect((await api('get', '/v1/images')).body.items).toHaveLength(3);
  });

  it('pushes again what is there without moving bytes, and only what is selected', async () => {
    const bundleId = idOf(await post('/v1/bundles', { path: 'saved.tar' }));
    expect(await post('/v1/pushes', { bundleId, images: [pause] })).toMatchObject({
      state: 'succeeded',
      result: { images: 1 },
    });
    expect((await api('post', '/v1/pushes').send({ bundleId, images: ['quay.io/none:1'] })).body).toMatchObject({
      code: 'image_not_found',
      missing: ['quay.io/none:1'],
    });
  });

  it('refuses an image that would take the flat name of another, and names both', async () => {
    const file = join(bundleDir, 'collision.tar');
    await buildOciArchive(file, [await makeImage({ name: 'quay.io/pause:3.2', layers: [{ files: { other: 'x' } }] })]);
    const bundleId = idOf(await post('/v1/bundles', { path: file }));
    const refused = await api('post', '/v1/pushes').send({ bundleId }).expect(409);
    expect(refused.body).toMatchObject({
      code: 'image_name_collision',
      name: 'pause:3.2',
      sources: [pause, 'quay.io/pause:3.2'],
    });
    expect((await inRegistry('quay.io/pause/manifests/3.2')).status).toBe(404);
  });

  it('guards every local name, not only the first, and writes no tag for an image that has only a digest', async () => {
    const file = join(bundleDir, 'library.tar');
    await buildOciArchive(file, [
      await makeImage({ name: 'quay.io/library/nginx:1.21', layers: [{ files: { other: 'y' } }] }),
    ]);
    const bundleId = idOf(await post('/v1/bundles', { path: file }));
    const refused = await api('post', '/v1/pushes').send({ bundleId }).expect(409);
    expect(refused.body).toMatchObject({
      code: 'image_name_collision',
      name: 'library/nginx:1.21',
      sources: ['docker.io/library/nginx:1.21', 'quay.io/library/nginx:1.21'],
    });
    const wrong = join(bundleDir, 'digest.tar');
    await buildOciArchive(wrong, [
      await makeImage({ name: `quay.io/by/digest@sha256:${'0'.repeat(64)}`, layers: [base] }),
    ]);
    expect(await post('/v1/bundles', { path: wrong })).toMatchObject({
      state: 'failed',
      error: { code: 'digest_mismatch' },
    });
  });

  it('says why an image that a push asks for cannot be pushed, however its name is spelt', async () => {
    const dir = join(bundleDir, 'spelt');
    const odd = await makeImage({ name: 'docker.io/library/odd:1', layers: [{ files: { odd: 'odd' } }] });
    await buildOciLayout(dir, [await makeImage({ name: 'docker.io/library/whole:1', layers: [base] }), odd]);
    await rm(join(dir, 'blobs/sha256', digestHex(digestOf(odd.layers[0]?.gzip ?? ''))));
    const bundleId = idOf(await post('/v1/bundles', { path: dir }));
    for (const asked of [
      'docker.io/library/odd:1',
      'odd:1',
      'library/odd:1',
      'index.docker.io/library/odd:1',
      `odd:1@sha256:${'0'.repeat(64)}`,
    ])
      expect((await api('post', '/v1/pushes').send({ bundleId, images: [asked] })).body).toMatchObject({
        code: 'bundle_corrupt',
        image: 'docker.io/library/odd:1',
      });
    expect((await api('post', '/v1/pushes').send({ bundleId, images: ['odd:2'] })).body.code).toBe('image_not_found');
    expect((await api('post', '/v1/pushes').send({ bundleId, images: ['NO NAME'] })).body.code).toBe('image_not_found');
    expect(await post('/v1/pushes', { bundleId, images: ['whole:1'] })).toMatchObject({ state: 'succeeded' });
  });

  it('lets only one of two pushes at a time have a name', async () => {
    const ids: string[] = [];
    for (const registryName of ['k8s.gcr.io', 'quay.io']) {
      const file = join(bundleDir, `${registryName}.tar`);
      await buildOciArchive(file, [
        await makeImage({ name: `${registryName}/race:1`, layers: [{ files: { registryName } }] }),
      ]);
      ids.push(idOf(await post('/v1/bundles', { path: file })));
    }
    const started = await Promise.all(ids.map((bundleId) => api('post', '/v1/pushes').send({ bundleId })));
    const ends = await Promise.all(
      started.map(({ body, status }) =>
        status === 202 ? end(body as Job) : Promise.resolve({ state: 'failed', error: body }),
      ),
    );
    expect(ends.map(({ state }) => state).sort()).toEqual(['failed', 'succeeded']);
    expect(ends.find(({ state }) => state === 'failed')?.error?.code).toBe('image_name_collision');
  });

  it('notices that a bundle changed after it was read', async () => {
    const file = join(bundleDir, 'changing.tar');
    await buildOciArchive(file, [await makeImage({ name: 'quay.io/a/b:1', layers: [base] })]);
    const bundleId = idOf(await post('/v1/bundles', { path: file }));
    await writeFile(file, 'something else');
    expect(await post('/v1/pushes', { bundleId })).toMatchObject({
      state: 'failed',
      error: { code: 'bundle_changed' },
    });
  });

  it('tells which images of a set the registry cannot serve, by asking it', async () => {
    const set = (
      await api('post', '/v1/image-sets')
        .send({
          name: 'kubernetes-1.20',
          kubernetesVersion: '1.20.11',
          images: [pause, 'quay.io/coreos/flannel:v0.14.0', pause],
        })
        .expect(201)
    ).body;
    expect(set.images).toEqual([pause, 'quay.io/coreos/flannel:v0.14.0']);
    expect((await api('get', `/v1/image-sets/${set.id}/missing`)).body).toMatchObject({
      missing: ['quay.io/coreos/flannel:v0.14.0'],
      images: [
        {
          upstream: pause,
          state: 'present',
          localReference: `${registry.host}/pause:3.2`,
          platforms: ['linux/amd64'],
          sizeBytes: expect.any(Number),
        },
        { upstream: 'quay.io/coreos/flannel:v0.14.0', state: 'missing', localReference: null, bundles: [] },
      ],
    });
    const digest = (await inRegistry('pause/manifests/3.2')).headers.get('docker-content-digest');
    await fetch(`${registry.url}/v2/pause/manifests/${digest}`, { method: 'DELETE' });
    const { missing, images } = (await api('get', `/v1/image-sets/${set.id}/missing`)).body;
    expect(missing).toContain(pause);
    expect(images[0].bundles[0]).toMatchObject({ name: expect.any(String), platforms: ['linux/amd64'] });
    expect((await api('post', '/v1/image-sets').send({ name: 'kubernetes-1.20', images: [pause] })).body.code).toBe(
      'resource_exists',
    );
    expect((await api('post', '/v1/image-sets').send({ name: 'x', images: ['NOT A NAME'] })).body.code).toBe(
      'reference_invalid',
    );
    await api('delete', `/v1/image-sets/${set.id}`).expect(204);
    await api('get', `/v1/image-sets/${set.id}`).expect(404);
  });

  it('takes an upload in parts, refuses a wrong offset, and removes the file with the bundle', async () => {
    const file = join(bundleDir, 'upload.tar');
    await buildOciArchive(file, [await makeImage({ name: 'quay.io/up/load:1', layers: [base] })]);
    const bytes = await import('node:fs/promises').then(({ readFile }) => readFile(file));
    const tus = { 'tus-resumable': '1.0.0' };
    const created = await api('post', '/v1/uploads').set({
      ...tus,
      'upload-length': String(bytes.length),
      'upload-metadata': `filename ${Buffer.from('site.tar').toString('base64')}`,
    });
    expect(created.status).toBe(201);
    const location = created.headers.location as string;
    const part = (offset: number, data: Buffer) =>
      api('patch', location)
        .set({ ...tus, 'upload-offset': String(offset), 'content-type': 'application/offset+octet-stream' })
        .send(data);
    expect((await part(0, bytes.subarray(0, 100_000))).headers['upload-offset']).toBe('100000');
    const uploadId = location.split('/').at(-1);
    expect((await api('post', '/v1/bundles').send({ uploadId })).body).toMatchObject({
      code: 'upload_not_found',
      detail: expect.stringContaining('100000 of'),
    });
    const wrong = await part(5, bytes.subarray(5));
    expect(wrong.headers['content-type']).toContain('application/problem+json');
    expect((await api('head', location).set(tus)).headers['upload-offset']).toBe('100000');
    expect((await part(100_000, bytes.subarray(100_000))).status).toBe(204);
    const bundleId = idOf(await post('/v1/bundles', { uploadId }));
    expect((await api('get', `/v1/bundles/${bundleId}`)).body).toMatchObject({
      name: 'site.tar',
      path: null,
      uploadId,
      state: 'ready',
    });
    await api('delete', `/v1/bundles/${bundleId}`).expect(204);
    await api('head', location).set(tus).expect(404);
    await request(service.url)
      .post('/v1/uploads')
      .set({ ...tus, 'upload-length': '5' })
      .expect(401);
  });

  it('gives the images of a bundle as a tar for docker load, with local or upstream names', async () => {
    const bundleId = idOf(await post('/v1/bundles', { path: 'saved.tar' }));
    const get = (query: string) =>
      api('get', `/v1/bundles/${bundleId}/docker-archive?${query}`)
        .set('authorization', `Bearer ${service.internalToken}`)
        .buffer(true)
        .parse((response, done) => {
          const chunks: Buffer[] = [];
          response
            .on('data', (chunk: Buffer) => chunks.push(chunk))
            .on('end', () => done(null, Buffer.concat(chunks).toString('latin1')));
        });
    expect((await get('names=local').expect(200)).body).toContain(`${registry.host}/pause:3.2`);
    const upstream = (await get(`names=upstream&image=${encodeURIComponent(pause)}`).expect(200)).body as string;
    expect(upstream).toContain('"k8s.gcr.io/pause:3.2"');
    expect(upstream).not.toContain('nginx');
    await api('get', `/v1/bundles/${bundleId}/docker-archive?image=quay.io/none:1`)
      .set('authorization', `Bearer ${service.internalToken}`)
      .expect(404);
  });

  describe('before and after a push', () => {
    const layered = (name: string, seed: string) =>
      makeImage({
        name,
        layers: [
          { randomBytes: 150_000, seed: 'plan-base' },
          { randomBytes: 50_000, seed },
        ],
      });
    const bundleOf = async (file: string, names: string[]) => {
      await buildOciArchive(join(bundleDir, file), await Promise.all(names.map((name) => layered(name, name))));
      return idOf(await post('/v1/bundles', { path: file }));
    };
    const catalogue = async (search: string) =>
      (await api('get', `/v1/images?search=${encodeURIComponent(search)}`).expect(200)).body.items;
    const digestAt = async (name: string) => (await inRegistry(name)).headers.get('docker-content-digest');

    it('tells what a bundle would add, and a dry run what a selection would, without writing', async () => {
      const bundleId = await bundleOf('plan.tar', ['reg.site/plan/a:1', 'reg.site/plan/b:1', 'reg.site/other:1']);
      const bundle = (await api('get', `/v1/bundles/${bundleId}`)).body;
      expect(bundle.plan.images.map(({ state }: { state: string }) => state)).toEqual([
        'missing',
        'missing',
        'missing',
      ]);
      // The shared layer is counted once.
      expect(bundle.plan.missingBytes).toBeLessThan(350_000);
      const job = await post('/v1/pushes', { bundleId, images: ['reg.site/plan/*'], naming: ['flat'], dryRun: true });
      expect(job).toMatchObject({ state: 'succeeded', result: { images: 2, collisions: 0 } });
      const push = (await api('get', `/v1/pushes/${idOf(job)}`)).body;
      expect(push).toMatchObject({
        dryRun: true,
        results: null,
        plan: { images: [{ localReferences: [`${registry.host}/plan/a:1`] }, expect.anything()] },
      });
      expect(await repositories()).not.toContain('plan/a');
      expect(await post('/v1/pushes', { bundleId, images: ['reg.site/plan/*'], naming: ['flat'] })).toMatchObject({
        state: 'succeeded',
        result: { images: 2 },
      });
      expect((await inRegistry('plan/a/manifests/1')).status).toBe(200);
      expect((await inRegistry('reg.site/plan/a/manifests/1')).status).toBe(404);
      expect((await catalogue('reg.site/plan/a'))[0]).toMatchObject({
        localReferences: [`${registry.host}/plan/a:1`],
        layers: [expect.anything(), expect.anything()],
      });
      expect((await api('post', '/v1/pushes').send({ bundleId, images: ['reg.site/none/*'] })).body).toMatchObject({
        code: 'image_not_found',
      });
    });

    it('pushes only the platforms asked for', async () => {
      const images = await Promise.all(
        ['amd64', 'arm64'].map((architecture) =>
          makeImage({
            name: [],
            layers: [{ randomBytes: 1000, seed: architecture }],
            platform: { os: 'linux', architecture },
          }),
        ),
      );
      await buildOciArchive(join(bundleDir, 'platforms.tar'), [makeIndex('reg.site/multi:1', images)]);
      const bundleId = idOf(await post('/v1/bundles', { path: 'platforms.tar' }));
      expect(await post('/v1/pushes', { bundleId, platforms: ['linux/arm64'] })).toMatchObject({ state: 'succeeded' });
      expect((await catalogue('reg.site/multi'))[0]).toMatchObject({
        platforms: ['linux/arm64'],
        imageIds: [images[1]?.configDigest],
      });
      expect(await post('/v1/pushes', { bundleId, platforms: ['linux/s390x'] })).toMatchObject({
        state: 'failed',
        error: { code: 'image_not_found' },
      });
    });

    it('lists the smallest first, page by page', async () => {
      const file = join(bundleDir, 'sizes.tar');
      const sizes = [90_000, 1_000, 200_000, 1_000, 9_000];
      await buildOciArchive(
        file,
        await Promise.all(
          sizes.map((randomBytes, index) =>
            makeImage({ name: `quay.io/sizes/i${index}:1`, layers: [{ randomBytes, seed: `s${index}` }] }),
          ),
        ),
      );
      await post('/v1/pushes', { bundleId: idOf(await post('/v1/bundles', { path: file })) });
      const seen: { id: string; upstream: string; sizeBytes: number }[] = [];
      for (let cursor = ''; ; ) {
        const { body } = await api(
          'get',
          `/v1/images?sort=smallest&search=quay.io/sizes&platform=linux/amd64&limit=2${cursor && `&cursor=${cursor}`}`,
        ).expect(200);
        seen.push(...body.items);
        cursor = body.nextCursor;
        if (!cursor) break;
        // Somebody deletes the image that the page ended with.
        if (seen.length === 2) await api('delete', `/v1/images/${seen[1]?.id}`).expect(200);
      }
      expect(seen.map(({ sizeBytes }) => sizeBytes)).toEqual(
        seen.map(({ sizeBytes }) => sizeBytes).sort((a, b) => a - b),
      );
      expect(new Set(seen.map(({ upstream }) => upstream)).size).toBe(5);
      for (const platform of ['linux/amd64/v1', 'linux/x86_64']) {
        const { body } = await api('get', `/v1/images?search=quay.io/sizes&platform=${platform}`).expect(200);
        expect(body.items).toHaveLength(4);
      }
      for (const platform of ['linux/amd6', 'linux/arm', '%25'])
        expect(
          (await api('get', `/v1/images?search=quay.io/sizes&platform=${platform}`).expect(200)).body.items,
        ).toEqual([]);
      for (const cursor of ['nonsense', '5', `x-${seen[0]?.id}`, `-${seen[0]?.id}`, `1'-${seen[0]?.id}`, seen[0]?.id])
        expect((await api('get', `/v1/images?sort=smallest&cursor=${cursor}`).expect(422)).body.code).toBe(
          'cursor_invalid',
        );
    });

    it('gives a contested name to the winner that the push names, whoever has it', async () => {
      const ours = await bundleOf('won.tar', ['reg.one/contest:1']);
      const theirs = await bundleOf('lost.tar', ['reg.two/contest:1']);
      await post('/v1/pushes', { bundleId: ours });
      const before = await digestAt('contest/manifests/1');
      expect((await api('post', '/v1/pushes').send({ bundleId: theirs })).body.code).toBe('image_name_collision');
      expect(await post('/v1/pushes', { bundleId: theirs, winners: ['reg.one/contest:1'] })).toMatchObject({
        state: 'succeeded',
      });
      expect(await digestAt('contest/manifests/1')).toBe(before);
      expect((await catalogue('reg.two/contest'))[0].localReferences).toEqual([`${registry.host}/reg.two/contest:1`]);
      expect(await post('/v1/pushes', { bundleId: theirs, winners: ['reg.two/contest:1'] })).toMatchObject({
        state: 'succeeded',
      });
      expect(await digestAt('contest/manifests/1')).toBe(await digestAt('reg.two/contest/manifests/1'));
      expect((await catalogue('reg.one/contest'))[0].localReferences).toEqual([`${registry.host}/reg.one/contest:1`]);
    });

    it('names images that have no name, and takes image sets from lists inside bundles', async () => {
      await buildOciArchive(join(bundleDir, 'nameless.tar'), [await layered('reg.site/nameless:7', 'nameless')], {
        names: 'tag-only',
      });
      const refused = await post('/v1/bundles', { path: 'nameless.tar' });
      expect(refused).toMatchObject({
        state: 'failed',
        error: { code: 'image_name_missing', unnamed: [expect.any(String)] },
      });
      const bundleId = idOf(await post('/v1/bundles', { path: 'nameless.tar', names: { '7': 'reg.site/named:7' } }));
      expect((await api('get', `/v1/bundles/${bundleId}`)).body.images[0].names).toEqual(['reg.site/named:7']);
      const all = (await api('post', '/v1/image-sets').send({ name: 'from-names', bundleId }).expect(201)).body;
      expect(all.images).toEqual(['reg.site/named:7']);

      await buildOciLayout(join(bundleDir, 'layout'), [await layered('reg.site/listed:1', 'listed')]);
      await writeFile(join(bundleDir, 'layout/release-images.txt'), 'reg.site/listed:1\nreg.site/absent:1\n');
      const listed = idOf(await post('/v1/bundles', { path: 'layout' }));
      const set = (await api('post', '/v1/image-sets').send({ name: 'from-list', bundleId: listed }).expect(201)).body;
      expect(set.images).toEqual(['reg.site/listed:1', 'reg.site/absent:1']);
      expect(
        (await api('post', '/v1/image-sets').send({ name: 'from-none', bundleId: listed, list: 'x.txt' })).body.code,
      ).toBe('image_list_unclear');
    });

    it('removes one name, or a digest with all of its names, and says what that frees', async () => {
      await post('/v1/pushes', { bundleId: await bundleOf('delete.tar', ['reg.site/gone:1', 'reg.site/kept:1']) });
      const [gone] = await catalogue('reg.site/gone');
      const plan = (await api('delete', `/v1/images/${gone.id}?dryRun=true`).expect(200)).body;
      expect(plan).toMatchObject({ dryRun: true, upstreams: ['reg.site/gone:1'] });
      expect(plan.freedBytes).toBeLessThan(70_000);
      expect(plan.sharedBytes).toBeGreaterThan(150_000);
      expect((await inRegistry('gone/manifests/1')).status).toBe(200);
      expect((await api('delete', `/v1/images/${gone.id}`).expect(200)).body).toMatchObject({
        dryRun: false,
        freedBytes: plan.freedBytes,
      });
      for (const name of ['gone', 'reg.site/gone']) expect((await inRegistry(`${name}/manifests/1`)).status).toBe(404);
      expect((await inRegistry('kept/manifests/1')).status).toBe(200);
      const [kept] = await catalogue('reg.site/kept');
      await api('delete', `/v1/images/by-digest/${kept.digest}`).expect(200);
      expect((await inRegistry('kept/manifests/1')).status).toBe(404);
      expect(await catalogue('reg.site/kept')).toEqual([]);
    });

    it('keeps an image that is one platform of another one', async () => {
      const images = await Promise.all(
        ['amd64', 'arm64'].map((architecture) =>
          makeImage({ name: 'reg.site/both:amd64', layers: [base], platform: { os: 'linux', architecture } }),
        ),
      );
      await buildOciArchive(join(bundleDir, 'both.tar'), [makeIndex('reg.site/both:1', images), ...images.slice(0, 1)]);
      await post('/v1/pushes', { bundleId: idOf(await post('/v1/bundles', { path: 'both.tar' })) });
      const one = (await catalogue('reg.site/both:amd64'))[0];
      await api('delete', `/v1/images/${one.id}`).expect(200);
      expect((await inRegistry('both/manifests/amd64')).status).toBe(404);
      expect((await inRegistry(`both/manifests/${one.digest}`)).status).toBe(200);
    });

    it('tells who needs an image, and removes neither it nor their set without force', async () => {
      await post('/v1/pushes', { bundleId: await bundleOf('needed.tar', ['reg.site/needed:1']) });
      const [image] = await catalogue('reg.site/needed');
      const wanted = `reg.site/needed:1@sha256:${'0'.repeat(64)}`;
      const set = (
        await api('post', '/v1/image-sets')
          .send({ name: 'needing', images: [wanted] })
          .expect(201)
      ).body;
      expect((await api('get', `/v1/image-sets/${set.id}/missing`)).body).toMatchObject({
        missing: [wanted],
        images: [{ state: 'changed', digest: image.digest }],
      });
      const clusters = [{ id: set.id, name: 'prod' }];
      answers['/v1/clusters'] = ({ query }: { query: URLSearchParams }) => ({
        items: query.get('imageSetId') === set.id ? clusters : [],
      });
      const usedBy = { imageSets: [{ id: set.id, name: 'needing' }], clusters };
      expect((await api('get', `/v1/images/${image.id}`).expect(200)).body).toMatchObject({
        upstream: 'reg.site/needed:1',
        usedBy,
      });
      expect((await api('delete', `/v1/images/${image.id}?dryRun=true`).expect(200)).body).toMatchObject({ usedBy });
      const refused = (await api('delete', `/v1/images/${image.id}`).expect(409)).body;
      expect(refused).toMatchObject({ code: 'image_in_use', detail: 'image set needing, cluster prod', usedBy });
      expect((await api('delete', `/v1/image-sets/${set.id}`).expect(409)).body).toMatchObject({
        code: 'resource_in_use',
        detail: expect.stringContaining('prod'),
      });
      expect((await inRegistry('needed/manifests/1')).status).toBe(200);

      answers['/v1/clusters'] = {
        status: 503,
        code: 'dependency_unavailable',
        title: 'stub',
        type: 'stub',
        nextStep: 'stub',
      };
      expect((await api('get', `/v1/images/${image.id}`).expect(200)).body).toMatchObject({ usedBy: null });
      await api('delete', `/v1/images/${image.id}`).expect(503);
      await api('delete', `/v1/images/${image.id}?force=true`).expect(200);
      expect((await inRegistry('needed/manifests/1')).status).toBe(404);
      await api('delete', `/v1/image-sets/${set.id}?force=true`).expect(204);
    });

    it('makes the catalogue anew from the registry alone, and keeps who came when', async () => {
      const bundleId = await bundleOf('rebuild.tar', ['reg.site/rebuilt:1']);
      await post('/v1/pushes', { bundleId });
      const [before] = await catalogue('reg.site/rebuilt');
      const digest = await digestAt('contest/manifests/1');
      await fetch(`${registry.url}/v2/contest/manifests/${digest}`, { method: 'DELETE' });
      expect(await post('/v1/images/rebuild', {})).toMatchObject({ state: 'succeeded', result: { broken: [] } });
      expect((await catalogue('reg.site/rebuilt'))[0]).toMatchObject({
        id: before.id,
        digest: before.digest,
        firstBundleId: bundleId,
        firstPushedAt: before.firstPushedAt,
        layers: before.layers,
      });
      expect((await catalogue('reg.two/contest'))[0].localReferences).toEqual([`${registry.host}/reg.two/contest:1`]);
    });

    it('does not forget images without a tag when the catalogue is made anew, unless they have gone', async () => {
      const image = await makeImage({ name: 'reg.site/untagged:1', layers: [base] });
      const [root] = await buildOciArchive(join(bundleDir, 'untagged.tar'), [image]);
      const name = `reg.site/untagged@${root?.digest}`;
      await buildOciArchive(join(bundleDir, 'untagged.tar'), [{ ...image, names: [name] }]);
      await post('/v1/pushes', { bundleId: idOf(await post('/v1/bundles', { path: 'untagged.tar' })) });
      await post('/v1/images/rebuild', {});
      expect(await catalogue('reg.site/untagged')).toMatchObject([{ upstream: name, digest: root?.digest }]);
      for (const repository of ['untagged', 'reg.site/untagged'])
        await fetch(`${registry.url}/v2/${repository}/manifests/${root?.digest}`, { method: 'DELETE' });
      await post('/v1/images/rebuild', {});
      expect(await catalogue('reg.site/untagged')).toEqual([]);
    });

    it('forgets compressed layers that the registry has no more, and those only', async () => {
      const before = answers['/v1/registry'];
      const storageDir = registry.storageDir;
      await using client = new RegistryClient(registry.url);
      const recordedId = await RegistryStorage.enable(storageDir, client);
      answers['/v1/registry'] = { ...(before as object), storage: { path: storageDir, id: null, recordedId } };
      const names = ['reg.site/kept:1', 'reg.site/collected:1'];
      const images = await Promise.all(
        names.map((name) => makeImage({ name, layers: [{ randomBytes: 90_000, seed: name }] })),
      );
      await buildDockerArchive(join(bundleDir, 'collected.tar'), images);
      await post('/v1/pushes', { bundleId: idOf(await post('/v1/bundles', { path: 'collected.tar' })) });
      const layers = async () =>
        (await readdir(join(folder.path, 'data/image/work/layers'))).filter((each) => each.endsWith('.gz'));
      const all = await layers();
      const forget = () =>
        api('post', '/v1/bundles/forget-layers').set('authorization', `Bearer ${service.internalToken}`);
      await forget().expect(204);
      expect(await layers()).toEqual(all);
      const [{ layers: parts }] = await catalogue('reg.site/collected');
      const hex = (parts[0].digest as string).slice(7);
      await rm(join(storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex), { recursive: true });
      // Of a disk that is not there everything is missing.
      const storageError = { code: 'registry_storage_changed', status: 503, title: '', type: '', nextStep: '' };
      answers['/v1/registry'] = { ...(answers['/v1/registry'] as object), storageError };
      expect((await forget()).body.code).toBe('registry_storage_changed');
      expect(await layers()).toEqual(all);
      answers['/v1/registry'] = { ...(answers['/v1/registry'] as object), storageError: null };
      await forget().expect(204);
      expect(all.length - (await layers()).length).toBe(1);
      await api('post', '/v1/bundles/forget-layers').expect(403);
      answers['/v1/registry'] = before;
    });

    it('finds damage by reading everything again, sets it aside, and a push mends it', async () => {
      answers['/v1/registry'] = {
        mode: 'local',
        url: registry.url,
        host: registry.host,
        storage: { path: registry.storageDir, id: null, usedBytes: 0, freeBytes: 0 },
      };
      const bundleId = await bundleOf('verify.tar', ['reg.site/verified:1']);
      await post('/v1/pushes', { bundleId });
      expect(await post('/v1/verifications', { images: ['reg.site/verified:*'] })).toMatchObject({
        state: 'succeeded',
        result: { images: 1 },
      });
      const [image] = await catalogue('reg.site/verified');
      const hex = (image.layers[1].digest as string).slice(7);
      const blob = join(registry.storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data');
      const bytes = await readFile(blob);
      bytes[1000] = (bytes[1000] ?? 0) ^ 0xff;
      await writeFile(blob, bytes);
      const job = await post('/v1/verifications', { images: ['reg.site/verified:1'] });
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'images_damaged', images: ['reg.site/verified:1'] },
      });
      expect((await api('get', `/v1/verifications/${idOf(job)}`)).body.problems).toEqual([
        {
          upstream: 'reg.site/verified:1',
          kind: 'part_damaged',
          subject: `sha256:${hex}`,
          actual: expect.stringMatching(/^sha256:/),
        },
      ]);
      bytes[1000] = (bytes[1000] ?? 0) ^ 0xff;
      await writeFile(blob, bytes);
      // All bytes are right, and one of the two repositories does not give them.
      const repository = 'reg.site/verified';
      const link = join(
        registry.storageDir,
        `docker/registry/v2/repositories/${repository}/_layers/sha256/${hex}/link`,
      );
      await writeFile(link, '');
      expect(await post('/v1/pushes', { bundleId })).toMatchObject({ state: 'succeeded' });
      expect(await post('/v1/verifications', { images: ['reg.site/verified:1'] })).toMatchObject({
        state: 'succeeded',
      });
      const manifest = image.digest as string;
      const data = join(
        registry.storageDir,
        'docker/registry/v2/blobs/sha256',
        manifest.slice(7, 9),
        manifest.slice(7),
        'data',
      );
      for (const [path, subject] of [
        [link, `${repository}@sha256:${hex}`],
        [data, manifest],
      ] as const) {
        const before = await readFile(path);
        await writeFile(path, '');
        const found = await post('/v1/verifications', { images: ['reg.site/verified:1'] });
        expect(found).toMatchObject({ state: 'failed', error: { code: 'images_damaged' } });
        expect((await api('get', `/v1/verifications/${idOf(found)}`)).body.problems).toEqual(
          expect.arrayContaining([expect.objectContaining({ kind: 'part_missing', subject })]),
        );
        await writeFile(path, before);
      }
      expect(await post('/v1/verifications', { images: ['reg.site/verified:1'] })).toMatchObject({
        state: 'succeeded',
      });
    });

    it('takes nothing for damaged or gone while the disk is away, and says how it is when it is back', async () => {
      const bundleId = await bundleOf('away.tar', ['reg.site/away:1']);
      await post('/v1/pushes', { bundleId });
      await using empty = await startRegistry();
      const before = answers['/v1/registry'];
      const there = { mode: 'local', url: registry.url, host: registry.host };
      const storageError = {
        type: 'x',
        title: 'x',
        status: 503,
        code: 'registry_storage_changed',
        nextStep: 'x',
        detail: 'away',
      };
      for (const path of ['/v1/verifications', '/v1/images/rebuild']) {
        let asked = 0;
        const isRead = path === '/v1/verifications';
        answers['/v1/registry'] = () => {
          asked += 1;
          // A verification may begin without the disk, and asks once more before that.
          if (asked > (isRead ? 3 : 2)) return there;
          return { ...there, url: empty.url, storageError: isRead || asked === 2 ? storageError : null };
        };
        expect(await post(path, isRead ? { images: ['reg.site/away:1'] } : {})).toMatchObject({ state: 'succeeded' });
        expect(asked).toBeGreaterThan(isRead ? 3 : 2);
        expect(await catalogue('reg.site/away')).toMatchObject([{ bundleId }]);
      }
      answers['/v1/registry'] = before;
    });

    it('refuses a push that the disk would not hold, with the numbers, before its first byte', async () => {
      // On one Redis two services of a kind would take each other's wake-ups.
      await using ownRedis = await startRedis();
      await using other = await startComponent('image', ImageModule, {
        dataDir: join(folder.path, 'other'),
        redisUrl: ownRedis.url,
        overrides: {
          bundleDirs: [bundleDir],
          'services.registry': registryService.url,
          'registry.port': registry.port,
          'registry.minFreeBytes': 1e15,
        },
      });
      const call = (method: 'get' | 'post', path: string) =>
        request(other.url)[method](path).set('authorization', `Bearer ${other.token}`);
      const done = async (job: Job): Promise<Job> =>
        (await call('get', `/v1/jobs/${job.id}?waitSeconds=30`).expect(200)).body as Job;
      await buildOciArchive(join(bundleDir, 'space.tar'), [await layered('reg.site/space:1', 'space')]);
      const bundleId = idOf(await done((await call('post', '/v1/bundles').send({ path: 'space.tar' })).body as Job));
      expect((await call('get', `/v1/bundles/${bundleId}`)).body.plan).toMatchObject({ fits: false, freeBytes: 0 });
      const job = await done((await call('post', '/v1/pushes').send({ bundleId })).body as Job);
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'space_insufficient', missingBytes: expect.any(Number), freeBytes: 0 },
      });
      expect(await repositories()).not.toContain('space');
    });

    it('checks a file against the checksum that was declared for it', async () => {
      const path = join(bundleDir, 'space.tar');
      const sha256 = createHash('sha256')
        .update(await readFile(path))
        .digest('hex');
      expect(await post('/v1/bundles', { path, sha256 })).toMatchObject({ state: 'succeeded' });
      for (const text of [
        sha256.toUpperCase(),
        `sha256:${sha256}`,
        `${'0'.repeat(64)} *other.tar\r\n${sha256} *space.tar\r\n`,
      ])
        expect(await post('/v1/bundles', { path, sha256: text })).toMatchObject({ state: 'succeeded' });
      expect((await api('post', '/v1/bundles').send({ path, sha256: 'sha512' })).status).toBe(422);
      const other = await api('post', '/v1/bundles').send({ path, sha256: `SHA3-256 (space.tar) = ${sha256}` });
      expect(other).toMatchObject({
        status: 422,
        body: { code: 'request_invalid', detail: expect.stringContaining('SHA3-256') },
      });
      expect(await post('/v1/bundles', { path, sha256: '0'.repeat(64) })).toMatchObject({
        state: 'failed',
        error: { code: 'digest_mismatch', actual: sha256 },
      });
      const upload = async (declared: string) =>
        api('post', '/v1/uploads').set({
          'tus-resumable': '1.0.0',
          'upload-length': '4',
          'upload-metadata': `sha256 ${Buffer.from(declared).toString('base64')}`,
        });
      expect((await upload('nonsense')).status).toBe(400);
      expect(await upload(`blake2s256:${sha256}`)).toMatchObject({
        status: 400,
        text: expect.stringContaining('blake2s256'),
      });
      const { headers } = await upload('0'.repeat(64));
      await api('patch', headers.location as string)
        .set({ 'tus-resumable': '1.0.0', 'upload-offset': '0', 'content-type': 'application/offset+octet-stream' })
        .send(Buffer.from('abcd'));
      const uploadId = (headers.location as string).split('/').at(-1);
      expect(await post('/v1/bundles', { uploadId })).toMatchObject({
        state: 'failed',
        error: { code: 'digest_mismatch', expected: '0'.repeat(64) },
      });
    });
  });
});
