import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { digestOf } from '@airdock/core/oci/digest';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { buildDockerArchive, buildOciArchive, flipByteIn, makeImage } from '@airdock/testing/bundles';
import { startRegistry, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { copyImages } from '../copy/copy-image.js';
import { RegistryStorage, storageMarker } from './registry-storage.js';

describe('RegistryStorage', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let server: Awaited<ReturnType<typeof startRegistry>>;
  let registry: RegistryClient;
  let storage: RegistryStorage;
  const workDir = () => join(folder.path, 'work');
  const enable = async () => {
    const id = await RegistryStorage.enable(server.storageDir, registry);
    const opened = id ? await RegistryStorage.open({ folder: server.storageDir, id }) : undefined;
    if (!opened) throw new Error('the registry does not keep its blobs where it should');
    return opened;
  };
  const push = async (file: string, options: { signal?: AbortSignal } = {}) => {
    const source = await openBundle(file, { workDir: workDir() });
    const images = source.images.map((image, index) => ({
      image,
      names: [
        { repository: `a/r${index}`, tag: 'v1' },
        { repository: `b/r${index}`, tag: 'v1' },
      ],
    }));
    const copied = await copyImages({ source, registry, storage, images, ...options });
    await source[Symbol.asyncDispose]();
    return copied;
  };

  beforeEach(async () => {
    folder = await tempDir('storage');
    server = await startRegistry();
    registry = new RegistryClient(server.url);
    storage = await enable();
  });
  afterEach(async () => {
    await registry.close();
    await server.stop();
    await folder.remove();
  });

  it('leaves no trace of its check, and finds the folder only by its id', async () => {
    expect(await registry.listRepositories()).toEqual([]);
    expect(await RegistryStorage.open({ folder: server.storageDir, id: 'another' })).toBeUndefined();
    expect(await RegistryStorage.open({ folder: folder.path, id: 'x' })).toBeUndefined();
    expect(await RegistryStorage.enable(server.storageDir, registry)).toBe(
      await RegistryStorage.enable(server.storageDir, registry),
    );
  });

  it('copies nothing of this machine to where a registry that was taken over could read it', async () => {
    const secret = join(folder.path, 'secrets.key');
    await writeFile(secret, 'the key of all');
    const marker = join(server.storageDir, storageMarker);
    await rm(marker);
    await symlink(secret, marker);
    expect(await RegistryStorage.enable(server.storageDir, registry)).toMatch(/^[0-9a-f-]{36}$/);
    expect(await readFile(marker, 'utf8')).not.toContain('key');
  });

  it('writes nothing where a link of a registry that was taken over leads', async () => {
    const outside = join(folder.path, 'outside');
    await mkdir(outside);
    await writeFile(join(outside, 'link'), 'of somebody else');
    await writeFile(join(outside, 'data'), 'of somebody else');
    const bytes = Buffer.from('a blob');
    const blob = { mediaType: 'application/octet-stream', digest: digestOf(bytes), size: bytes.byteLength };
    const place = () =>
      storage.place('a/b', blob, async () => ({ size: blob.size, open: () => Readable.from([bytes]) }));
    const root = join(server.storageDir, 'docker/registry/v2');
    const hex = blob.digest.slice('sha256:'.length);
    for (const path of [`blobs/sha256/${hex.slice(0, 2)}/${hex}`, `repositories/a/b/_layers/sha256/${hex}`]) {
      await mkdir(dirname(join(root, path)), { recursive: true });
      await symlink(outside, join(root, path));
      await expect(place()).rejects.toThrow(/ELOOP|ENOTDIR|link/);
      await rm(join(root, path));
    }
    // The blob itself was placed, in the second case.
    for (const path of [storage.blobFile(blob.digest), join(server.storageDir, 'airdock-incoming')])
      await rm(path, { recursive: true });
    await symlink(outside, join(server.storageDir, 'airdock-incoming'));
    await expect(place()).rejects.toThrow('is a link');
    expect((await readdir(outside)).sort()).toEqual(['data', 'link']);
    for (const name of ['data', 'link']) expect(await readFile(join(outside, name), 'utf8')).toBe('of somebody else');
  });

  it('is not used when the registry keeps its blobs elsewhere', async () => {
    await mkdir(join(folder.path, 'other'));
    expect(await RegistryStorage.enable(join(folder.path, 'other'), registry)).toBeUndefined();
  });

  it('gives the same digests as pushing over HTTP, and blobs that the registry serves', async () => {
    const file = join(folder.path, 'bundle.tar');
    const base = { randomBytes: 9_000_000, seed: 'base' };
    await buildOciArchive(
      file,
      await Promise.all(
        ['quay.io/a:1', 'quay.io/b:1'].map((name) => makeImage({ name, layers: [base, { files: { name } }] })),
      ),
    );
    const placed = await push(file);
    const plain = await startRegistry();
    const client = new RegistryClient(plain.url);
    const source = await openBundle(file, { workDir: workDir() });
    const sent = await copyImages({
      source,
      registry: client,
      images: source.images.map((image, index) => ({ image, names: [{ repository: `a/r${index}`, tag: 'v1' }] })),
    });
    expect(placed.map(({ digest, error }) => [digest, error])).toEqual(sent.map(({ digest }) => [digest, undefined]));
    for (const layer of JSON.parse((await registry.getManifest('b/r1', 'v1'))?.bytes.toString() ?? '{}').layers) {
      const chunks: Buffer[] = [];
      for await (const chunk of await registry.getBlob('b/r1', layer.digest)) chunks.push(chunk as Buffer);
      expect(digestOf(Buffer.concat(chunks))).toBe(layer.digest);
    }
    await client.close();
    await plain.stop();
  });

  it('places the layers of a docker-archive without another copy, and again without work', async () => {
    const file = join(folder.path, 'saved.tar');
    await buildDockerArchive(
      file,
      await Promise.all(
        ['a:1', 'b:1', 'c:1'].map((name) =>
          makeImage({ name, layers: [{ randomBytes: 3_000_000 }, { files: { name } }] }),
        ),
      ),
    );
    const first = await push(file);
    expect(first.map(({ error }) => error)).toEqual([undefined, undefined, undefined]);
    const flush = vi.spyOn(storage, 'flush');
    expect((await push(file)).map(({ digest }) => digest)).toEqual(first.map(({ digest }) => digest));
    expect(flush).not.toHaveBeenCalled();
    expect(await readdir(join(server.storageDir, 'airdock-incoming'))).toEqual([]);
  });

  it('puts nothing into the registry that does not have its digest', async () => {
    const file = join(folder.path, 'damaged.tar');
    const image = await makeImage({ name: 'quay.io/a:1', layers: [{ randomBytes: 5_000_000 }] });
    await buildOciArchive(file, [image]);
    await flipByteIn(file, (image.layers[0] as { gzip: Buffer }).gzip);
    const [copied] = await push(file);
    expect(copied?.error).toMatchObject({ code: 'digest_mismatch' });
    expect(await registry.headManifest('a/r0', 'v1')).toBeUndefined();
    expect(await readdir(join(server.storageDir, 'airdock-incoming'))).toEqual([]);
  });

  it('stops inside a blob, and goes on the next time', async () => {
    const file = join(folder.path, 'large.tar');
    await buildOciArchive(file, [await makeImage({ name: 'quay.io/a:1', layers: [{ randomBytes: 30_000_000 }] })]);
    const stop = new AbortController();
    const running = push(file, { signal: stop.signal });
    stop.abort(new AppError('job_cancelled'));
    await expect(running).rejects.toMatchObject({ code: 'job_cancelled' });
    expect(await readdir(join(server.storageDir, 'airdock-incoming')).catch(() => [])).toEqual([]);
    expect((await push(file))[0]?.error).toBeUndefined();
  });

  it('repairs a blob that lost its end, as after a disk that was full', async () => {
    const file = join(folder.path, 'bundle.tar');
    const image = await makeImage({ name: 'quay.io/a:1', layers: [{ randomBytes: 1_000_000 }] });
    await buildOciArchive(file, [image]);
    await push(file);
    const { digest } = JSON.parse((await registry.getManifest('a/r0', 'v1'))?.bytes.toString() ?? '{}').layers[0] as {
      digest: string;
    };
    const hex = digest.slice(7);
    await writeFile(join(server.storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data'), 'short');
    expect((await push(file))[0]?.error).toBeUndefined();
    expect((await registry.headBlob('a/r0', digest as `sha256:${string}`))?.size).toBeGreaterThan(900_000);
  });
});
