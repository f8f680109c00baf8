/**
 * Bundles that are broken, hostile or not where they may be, and uploads that break off: through a whole DU, from the
 * request to what its registry shows.
 */
import { randomBytes } from 'node:crypto';
import { appendFile, copyFile, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { createBundle, createPush, getBundle, getPush, listImages } from '@airdock/clients/generated/sdk.gen';
import type { Job, Problem } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { AppError, toProblem } from '@airdock/core/errors';
import {
  breakConfig,
  buildDockerArchive,
  buildOciArchive,
  buildRandomFile,
  flipByteIn,
  makeImage,
  type TestImage,
  truncateFile,
  withMember,
} from '@airdock/testing/bundles';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { missingOf, namesAt } from '../support/registry.js';

const name = 'k8s.gcr.io/pause:3.2';
let folder: TempDir;
let du: Du;
let client: Client;
let image: TestImage;
let large: TestImage;
beforeAll(async () => {
  folder = await tempDir('bad-bundles');
  du = await Du.start({ folder: folder.path });
  client = await du.client();
  image = await makeImage({ name, layers: [{ randomBytes: 300_000, seed: 'pause' }] });
  large = await makeImage({ name: 'quay.io/large:1', layers: [{ randomBytes: 3_000_000, seed: 'large' }] });
});
afterEach(({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du.output}\n`);
});
afterAll(async () => {
  await du?.stop();
  await folder?.remove();
});

const file = (suffix: string) => join(du.bundleDir, suffix);
const tagged = async () => (await namesAt(du.registryPort)).filter((found) => found.includes(':'));

/** The problem that a call is refused with. */
async function refused(call: Promise<unknown>): Promise<Problem> {
  const error: unknown = await call.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof AppError)) throw new Error('was not refused', { cause: error });
  return toProblem(error) as Problem;
}
const registering = (body: { path: string } | { uploadId: string }) =>
  createBundle({ client, body, throwOnError: true });
async function readingOf(path: string): Promise<Job> {
  return endOf(client, (await registering({ path })).data.id);
}
async function pushOf(bundleId: string): Promise<Job> {
  return endOf(client, (await createPush({ client, body: { bundleId }, throwOnError: true })).data.id);
}

/** Files below the work folder that no complete layer accounts for. */
async function leftovers(): Promise<string[]> {
  const entries = await readdir(join(du.dataDir, 'image', 'work'), { recursive: true, withFileTypes: true }).catch(
    () => [],
  );
  return entries
    .filter((entry) => entry.isFile() && !/^[0-9a-f]{64}\.tar\.gz(\.json)?$/.test(entry.name))
    .map((entry) => entry.name);
}

const asGzip = async (path: string, cut = 0) => {
  const packed = gzipSync(await readFile(path));
  await writeFile(path, packed.subarray(0, packed.length - cut));
};

describe('a bundle', () => {
  it.each<[string, string, RegExp, (path: string) => Promise<void>]>([
    [
      'that was cut off',
      'bundle_truncated',
      /Copy the file again/,
      (path) => buildDockerArchive(path, [image]).then(() => truncateFile(path, 150_000)),
    ],
    [
      'that was cut off at its end',
      'bundle_truncated',
      /Copy the file again/,
      (path) => buildOciArchive(path, [image]).then(() => truncateFile(path, -5_000)),
    ],
    [
      'that was cut off while compressed',
      'bundle_truncated',
      /Copy the file again/,
      (path) => buildDockerArchive(path, [image]).then(() => asGzip(path, 1_000)),
    ],
    [
      'whose image has another digest',
      'digest_mismatch',
      /compare its checksum/,
      (path) => buildDockerArchive(path, [image]).then(() => breakConfig(path, image)),
    ],
    [
      'with a member above its folder',
      'bundle_unsafe',
      /Do not trust/,
      (path) =>
        buildDockerArchive(path, [image]).then(() => withMember(path, { name: '../../evil' }, Buffer.from('x'))),
    ],
    [
      'with a link out of it',
      'bundle_unsafe',
      /Do not trust/,
      (path) =>
        buildOciArchive(path, [image]).then(() =>
          withMember(path, { name: 'blobs/x', type: 'symlink', linkname: '/etc/passwd' }),
        ),
    ],
    ['that is none', 'bundle_format_unknown', /docker save/, (path) => buildRandomFile(path)],
    ['that is empty', 'bundle_format_unknown', /docker save/, (path) => writeFile(path, '')],
  ])('%s fails with %s and is not seen again', async (_, code, nextStep, build) => {
    const path = file(`${code}.tar`);
    await build(path);
    const job = await readingOf(path);
    expect(job).toMatchObject({
      state: 'failed',
      error: {
        code,
        type: `urn:airdock:problem:${code}`,
        status: 422,
        nextStep: expect.stringMatching(nextStep) as string,
      },
    });
    const { data: bundle } = await getBundle({ client, path: { id: resourceId(job) }, throwOnError: true });
    expect(bundle).toMatchObject({ state: 'invalid', images: [] });
    expect(await refused(createPush({ client, body: { bundleId: bundle.id }, throwOnError: true }))).toMatchObject({
      code: 'bundle_not_ready',
      status: 409,
    });
    // The layout check of a registry that has just started is seen for a moment.
    await waitFor(async () => (await namesAt(du.registryPort)).length === 0, { what: 'the registry to be empty' });
    expect(await leftovers()).toEqual([]);
    expect(await readdir(folder.path)).not.toContain('evil');
    await rm(path);
  });

  it.each([
    ['docker', buildDockerArchive, ({ layers }: TestImage) => layers[0]?.tar],
    ['oci', buildOciArchive, ({ layers }: TestImage) => layers[0]?.gzip],
  ] as const)(
    'in the %s format whose layer has another digest fails when it is pushed, with no tag',
    async (format, build, layerOf) => {
      const path = file(`damaged-${format}.tar`);
      await build(path, [large]);
      await flipByteIn(path, (layerOf(large) as Buffer).subarray(1_000_000, 1_000_100));
      const job = await pushOf(await register(client, path));
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'digest_mismatch', status: 422, nextStep: expect.stringContaining('checksum') as string },
      });
      expect(job.error?.detail).toContain('quay.io/large:1');
      expect(await tagged()).toEqual([]);
      expect((await listImages({ client, throwOnError: true })).data.items).toEqual([]);
      expect(await leftovers()).toEqual([]);
    },
  );

  it('outside of the bundle folders is refused, however its path is written, and a missing one is named', async () => {
    const outside = join(folder.path, 'outside.tar');
    await buildDockerArchive(outside, [image]);
    await symlink(outside, file('link.tar'));
    await symlink(folder.path, file('up'));
    await mkdir(`${du.bundleDir}-2`);
    await copyFile(outside, join(`${du.bundleDir}-2`, 'sibling.tar'));
    const paths = [
      outside,
      file('../outside.tar'),
      '../outside.tar',
      'link.tar',
      file('up/outside.tar'),
      join(`${du.bundleDir}-2`, 'sibling.tar'),
      '/etc/passwd',
      '/nowhere',
    ];
    for (const path of paths)
      expect(await refused(registering({ path })), path).toMatchObject({
        code: 'bundle_path_forbidden',
        status: 422,
        nextStep: expect.stringContaining('airdock.bundleDirs') as string,
      });
    for (const path of ['missing.tar', file('missing.tar')])
      expect(await refused(registering({ path })), path).toMatchObject({
        code: 'bundle_not_found',
        status: 422,
        detail: path,
        nextStep: expect.stringContaining('Check the path') as string,
      });
  });

  it('that changed or went after it was registered is not pushed', async () => {
    const [changing, going] = [file('changing.tar'), file('going.tar')];
    for (const path of [changing, going]) await buildDockerArchive(path, [image]);
    const ids = [await register(client, changing), await register(client, going)] as const;
    await appendFile(changing, 'x');
    await rm(going);
    expect(await pushOf(ids[0])).toMatchObject({
      state: 'failed',
      error: { code: 'bundle_changed', status: 409, nextStep: 'Register the bundle again.' },
    });
    expect(await pushOf(ids[1])).toMatchObject({ state: 'failed', error: { code: 'bundle_not_found' } });
    expect(await tagged()).toEqual([]);
  });

  it('that would take the flat name of another image is refused, with both named; the other stays as it is', async () => {
    const [one, other, both] = [file('one.tar'), file('other.tar'), file('both.tar')];
    const rival = await makeImage({ name: 'quay.io/pause:3.2', layers: [{ files: { other: 'image' } }] });
    await buildDockerArchive(one, [image]);
    await buildOciArchive(other, [rival]);
    await buildDockerArchive(both, [image, rival]);
    const collision = {
      code: 'image_name_collision',
      status: 409,
      name: 'pause:3.2',
      sources: [name, 'quay.io/pause:3.2'],
    };
    const bothId = await register(client, both);
    expect(await refused(createPush({ client, body: { bundleId: bothId }, throwOnError: true }))).toMatchObject(
      collision,
    );
    expect(await tagged()).toEqual([]);

    const bundleId = await register(client, one);
    await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
    const before = await tagged();
    expect(before).toEqual(['k8s.gcr.io/pause:3.2', 'pause:3.2']);
    const otherId = await register(client, other);
    expect(await refused(createPush({ client, body: { bundleId: otherId }, throwOnError: true }))).toMatchObject(
      collision,
    );
    expect(await tagged()).toEqual(before);
    expect(await missingOf(client, du.registryPort, bundleId)).toEqual([]);
    expect(await leftovers()).toEqual([]);
  });

  it('of which one image is damaged brings the others, and says what it leaves out: itself, its push, and the job that webhooks tell of', async () => {
    const path = file('partial.tar');
    const damaged = await makeImage({
      name: 'quay.io/partial/damaged:1',
      layers: [{ randomBytes: 1_000, seed: 'damaged' }],
    });
    await buildDockerArchive(path, [
      await makeImage({ name: 'quay.io/partial/whole:1', layers: [{ randomBytes: 1_000, seed: 'whole' }] }),
      damaged,
    ]);
    await breakConfig(path, damaged);
    const bundleId = resourceId(await success(client, createBundle({ client, body: { path }, throwOnError: true })));
    const leftOut = [
      {
        name: 'quay.io/partial/damaged:1',
        digest: damaged.configDigest,
        code: 'digest_mismatch',
        detail: expect.any(String) as string,
      },
    ];
    const { data: bundle } = await getBundle({ client, path: { id: bundleId }, throwOnError: true });
    expect(bundle).toMatchObject({
      state: 'ready',
      images: [{ names: ['quay.io/partial/whole:1'] }],
      unusable: leftOut,
    });

    const job = await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
    expect(job.result).toEqual({ images: 1, leftOut, leftOutCount: 1 });
    const { data: pushed } = await getPush({ client, path: { id: resourceId(job) }, throwOnError: true });
    expect(pushed.leftOut).toEqual(leftOut);
    expect(await tagged()).toContain('partial/whole:1');

    const chosen = await success(
      client,
      createPush({ client, body: { bundleId, images: ['quay.io/partial/w*'] }, throwOnError: true }),
    );
    expect(chosen.result).toEqual({ images: 1 });
    const asking = createPush({
      client,
      body: { bundleId, images: ['quay.io/partial/damaged:1'] },
      throwOnError: true,
    });
    expect(await refused(asking)).toMatchObject({ code: 'digest_mismatch', image: 'quay.io/partial/damaged:1' });
    const strict = await createBundle({ client, body: { path, strict: true }, throwOnError: true });
    expect(await endOf(client, strict.data.id)).toMatchObject({
      state: 'failed',
      error: { code: 'digest_mismatch', image: 'quay.io/partial/damaged:1' },
    });
  });
});

describe('an upload', () => {
  const tus = async (method: string, url: string, headers: Record<string, string> = {}, body?: Buffer) => {
    const authorization = `Bearer ${(await readFile(join(du.dataDir, 'admin.token'), 'utf8')).trim()}`;
    return fetch(new URL(url, du.url), {
      method,
      headers: { authorization, 'tus-resumable': '1.0.0', ...headers },
      ...(body ? { body: new Uint8Array(body) } : {}),
    });
  };
  const start = async (bytes: number) => {
    const created = await tus('POST', '/v1/uploads', {
      'upload-length': String(bytes),
      'upload-metadata': `filename ${Buffer.from('site.tar').toString('base64')}`,
    });
    expect(created.status).toBe(201);
    return new URL(created.headers.get('location') ?? '', du.url).pathname;
  };
  const part = (url: string, offset: number, body: Buffer) =>
    tus('PATCH', url, { 'upload-offset': String(offset), 'content-type': 'application/offset+octet-stream' }, body);
  const offsetOf = async (url: string) => Number((await tus('HEAD', url)).headers.get('upload-offset'));

  it('continues where it was after the DU was killed and started again, and is a bundle when it is complete', async () => {
    const path = join(folder.path, 'site.tar');
    const sent = await makeImage({ name: 'quay.io/site/app:1', layers: [{ randomBytes: 400_000, seed: 'site' }] });
    await buildOciArchive(path, [sent]);
    const bytes = await readFile(path);
    const url = await start(bytes.length);
    const uploadId = url.split('/').at(-1) ?? '';
    expect((await part(url, 0, bytes.subarray(0, 200_000))).status).toBe(204);
    expect(await refused(registering({ uploadId }))).toMatchObject({
      code: 'upload_not_found',
      status: 422,
      detail: expect.stringContaining('200000 of') as string,
      nextStep: expect.stringContaining('HEAD') as string,
    });

    await du.end('SIGKILL');
    await du.startProcess();
    expect(await offsetOf(url)).toBe(200_000);
    expect((await part(url, 200_000, bytes.subarray(200_000))).status).toBe(204);
    const bundle = await success(client, registering({ uploadId }));
    await success(client, createPush({ client, body: { bundleId: resourceId(bundle) }, throwOnError: true }));
    expect(await missingOf(client, du.registryPort, resourceId(bundle))).toEqual([]);
  });

  it('at a wrong offset or unknown is refused with a problem document', async () => {
    const url = await start(1_000);
    expect((await part(url, 0, randomBytes(100))).status).toBe(204);
    const wrong = await part(url, 50, randomBytes(100));
    expect(wrong.headers.get('content-type')).toContain('application/problem+json');
    expect(await wrong.json()).toMatchObject({
      status: wrong.status,
      code: expect.any(String) as string,
      nextStep: expect.any(String) as string,
    });
    expect(wrong.status).toBe(409);
    expect(await offsetOf(url)).toBe(100);
    const unknown = await part(`/v1/uploads/${'0'.repeat(32)}`, 0, randomBytes(1));
    expect(await unknown.json()).toMatchObject({ status: 404, code: 'resource_not_found' });
  });
});
