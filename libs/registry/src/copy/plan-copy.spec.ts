import { readdir, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';
import { openBundle } from '@airdock/oci/bundle/bundle';
import type { ImageSource } from '@airdock/oci/image/image-source';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { startRegistry, tempDir } from '@airdock/testing/servers';
import { expect, it } from 'vitest';
import { copyImages } from './copy-image.js';
import { planCopy } from './plan-copy.js';

it('fails with what it could not read, also of an image whose turn has not come', async () => {
  const manifest = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config: {}, layers: [] }),
  );
  const [slow, broken] = [digestOf(manifest), digestOf(Buffer.from('broken'))];
  const readManifest = async (digest: Digest) => {
    if (digest === broken) throw new AppError('bundle_changed');
    await delay(50);
    return manifest;
  };
  const images = [slow, broken].map((digest) => ({
    image: {
      names: [],
      platforms: [],
      sizeBytes: 0,
      configDigests: [],
      root: { digest, mediaType: mediaTypes.ociManifest, size: manifest.length },
    },
    names: [],
  }));
  const unhandled: unknown[] = [];
  const note = (error: unknown) => unhandled.push(error);
  process.on('unhandledRejection', note);
  try {
    await using registry = new RegistryClient('http://127.0.0.1:9');
    await expect(planCopy({ source: { readManifest } as unknown as ImageSource, images, registry })).rejects.toThrow(
      AppError,
    );
    await delay(0);
  } finally {
    process.off('unhandledRejection', note);
  }
  expect(unhandled).toEqual([]);
});

it.each([500, 503])('fails at a registry that answers %i to everything, and soon', async (status) => {
  await using folder = await tempDir('plan');
  let asked = 0;
  const server = createServer((_, response) => {
    asked += 1;
    response.writeHead(status).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const file = join(folder.path, 'a.tar');
  await buildOciArchive(
    file,
    await Promise.all(
      Array.from({ length: 100 }, (_, n) => makeImage({ name: `quay.io/a${n}:1`, layers: [{ files: { a: `${n}` } }] })),
    ),
  );
  await using source = await openBundle(file, { workDir: join(folder.path, 'work') });
  await using registry = new RegistryClient(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  const images = source.images.map((image, n) => ({ image, names: [{ repository: `a${n}`, tag: '1' }] }));
  await expect(planCopy({ source, images, registry })).rejects.toMatchObject({
    code: 'registry_unavailable',
    details: { registryStatus: status },
  });
  // The first failure is enough, where it is no question of one name.
  if (status === 503) expect(asked).toBeLessThan(100);
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

it('finds over HTTP that an image is present where every repository has all of it', async () => {
  await using folder = await tempDir('plan');
  await using server = await startRegistry();
  const file = join(folder.path, 'a.tar');
  await buildOciArchive(file, [await makeImage({ name: 'quay.io/a:1', layers: [{ files: { a: 'b' } }] })]);
  await using source = await openBundle(file, { workDir: join(folder.path, 'work') });
  await using registry = new RegistryClient(server.url);
  const names = ['a', 'b'].map((repository) => ({ repository, tag: '1' }));
  const images = source.images.map((image) => ({ image, names }));
  const plan = () => planCopy({ source, images, registry });
  expect(await plan()).toMatchObject({ images: [{ state: 'missing' }], missingBytes: expect.any(Number) as number });
  for (const { error } of await copyImages({ source, registry, images })) expect(error).toBeUndefined();
  expect(await plan()).toMatchObject({ images: [{ state: 'present', missingBytes: 0 }], missingBytes: 0 });
  const layers = join(server.storageDir, 'docker/registry/v2/repositories/b/_layers/sha256');
  const [layer = ''] = await readdir(layers);
  await rm(join(layers, layer), { recursive: true });
  // The other repository has it.
  expect(await plan()).toMatchObject({ images: [{ state: 'missing', missingBytes: 0 }] });
  for (const { error } of await copyImages({ source, registry, images })) expect(error).toBeUndefined();
  expect(await readdir(layers)).toContain(layer);
});
