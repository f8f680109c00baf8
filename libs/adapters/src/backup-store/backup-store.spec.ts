import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, rm, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { digestHex, digestOf } from '@airdock/core/oci/digest';
import { buildOciArchive, makeImage, makeIndex, randomContent, type TestImage } from '@airdock/testing/bundles';
import { startRegistry, type TempDir, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openBundle } from '../oci-client/bundle.js';
import { copyImages } from '../oci-client/copy-image.js';
import type { ImageSource } from '../oci-client/image-source.js';
import { RegistryClient } from '../oci-client/registry-client.js';
import { type BackupProgress, backupRegistry } from './backup-registry.js';
import { openBackup } from './backup-source.js';
import { BackupStore } from './backup-store.js';

const run = promisify(execFile);
const base = { files: { 'bin/sh': 'shell' } };
const retry = { delayMs: 1 };

let dir: TempDir;
let server: TestRegistry;
let registry: RegistryClient;
let store: BackupStore;
beforeEach(async () => {
  dir = await tempDir('backup');
  server = await startRegistry();
  registry = new RegistryClient(server.url);
  store = await BackupStore.open(join(dir.path, 'store'));
});
afterEach(async () => {
  await registry.close();
  await server.stop();
  await dir.remove();
});

/** The names of a backup are local already. */
function restore(source: ImageSource, to = registry) {
  const images = source.images.map((image) => ({
    image,
    names: image.names.map((name) => ({ repository: name.slice(0, name.lastIndexOf(':')), tag: name.slice(name.lastIndexOf(':') + 1) })),
  }));
  return copyImages({ source, images, registry: to, retry });
}

async function push(images: Parameters<typeof buildOciArchive>[1]): Promise<void> {
  const file = join(dir.path, 'bundle.tar');
  await buildOciArchive(file, images);
  const source = await openBundle(file, { workDir: join(dir.path, 'work') });
  const toCopy = source.images.map((image) => ({
    image,
    names: image.names.map((name) => ({ repository: name.replace(/^reg.site\/|:[^:]*$/g, ''), tag: name.replace(/.*:/, '') })),
  }));
  for (const { error } of await copyImages({ source, images: toCopy, registry, retry })) if (error) throw error;
}

const nginx = () => makeImage({ name: ['reg.site/nginx:1', 'reg.site/nginx:latest'], layers: [base, { randomBytes: 200_000, seed: 'nginx' }] });
const backup = (id: string, more: Partial<Parameters<typeof backupRegistry>[0]> = {}) => backupRegistry({ registry, store, id, retry, ...more });
const blobFile = (image: TestImage, layer = 1): string => {
  const hex = digestHex(image.layers[layer]?.digest ?? image.configDigest);
  return join(store.dir, 'blobs/sha256', hex.slice(0, 2), hex);
};
const digests = async (client: RegistryClient) => {
  const found: Record<string, string | undefined> = {};
  for (const repository of await client.listRepositories())
    for (const tag of await client.listTags(repository)) found[`${repository}:${tag}`] = (await client.headManifest(repository, tag))?.digest;
  return found;
};

describe('a new store', () => {
  it('is made by one of many that open it at once, also where one was killed', async () => {
    const folder = await tempDir('new-store');
    await mkdir(join(folder.path, 'blobs', 'sha256'), { recursive: true });
    const opened = await Promise.all(Array.from({ length: 8 }, () => BackupStore.open(folder.path)));
    expect(opened).toHaveLength(8);
    await folder.remove();
  });
});

describe('a backup', () => {
  it('brings every name back into an empty registry, with the same digests', async () => {
    const platforms = await Promise.all(
      ['amd64', 'arm64'].map((architecture) => makeImage({ name: [], layers: [base], platform: { os: 'linux', architecture } })),
    );
    await push([await nginx(), makeIndex('reg.site/deep/pause:3.9', platforms, { attestation: true })]);
    const before = await digests(registry);
    const progress: BackupProgress[] = [];
    const record = await backup('monday', { onProgress: (at) => progress.push(at) });
    expect(record.references.map(({ repository, tag }) => `${repository}:${tag}`)).toEqual(['deep/pause:3.9', 'nginx:1', 'nginx:latest']);
    expect(progress.at(-1)).toMatchObject({ bytesDone: record.totalBytes, bytesTotal: record.totalBytes, itemsDone: record.blobs.length });
    expect(progress.map(({ bytesDone }) => bytesDone)).toEqual(progress.map(({ bytesDone }) => bytesDone).sort((a, b) => a - b));

    const other = await startRegistry();
    const target = new RegistryClient(other.url);
    try {
      const restored = await restore(await openBackup(store, 'monday'), target);
      expect(restored.map(({ error }) => error)).toEqual([undefined, undefined]);
      expect(await digests(target)).toEqual(before);
      await run('skopeo', [
        'copy',
        '--all',
        '--insecure-policy',
        '--src-tls-verify=false',
        `docker://${other.host}/deep/pause:3.9`,
        `dir:${join(dir.path, 'pulled')}`,
      ]);
    } finally {
      await target.close();
      await other.stop();
    }
  });

  it('stores a blob of several backups once, and only what the filter takes', async () => {
    await push([await nginx()]);
    await backup('one');
    const blobs = async () => (await readdir(join(store.dir, 'blobs'), { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile()).length;
    const first = await blobs();
    await push([await makeImage({ name: 'reg.site/redis:7', layers: [base] })]);
    const record = await backup('two', { filter: ({ repository }) => repository === 'redis' });
    expect(record.references).toHaveLength(1);
    // Its manifest and its configuration; the layer was there.
    expect(await blobs()).toBe(first + 2);
    expect((await store.listRecords()).map(({ id }) => id)).toEqual(['one', 'two']);
  });

  it('can be checked with common tools', async () => {
    await push([await nginx()]);
    await backup('one');
    await run('sh', ['-ec', 'cd backups && sha256sum -c one.json.sha256'], { cwd: store.dir });
    const { stdout } = await run('sh', ['-ec', "cd blobs/sha256 && find . -type f -printf '%f  %p\\n' | sha256sum -c"], { cwd: store.dir });
    expect(stdout.match(/: OK/g)).toHaveLength((await store.readRecord('one')).blobs.length);
  });

  it('is not there when the run was cancelled, and the next run uses what was stored', async () => {
    await push([await nginx()]);
    const abort = new AbortController();
    const cancelled = backup('one', {
      signal: abort.signal,
      concurrency: 1,
      onProgress: ({ itemsDone }) => itemsDone === 2 && abort.abort(new Error('enough')),
    });
    await expect(cancelled).rejects.toThrow('enough');
    expect(await store.listRecords()).toEqual([]);
    expect(await readdir(join(store.dir, 'tmp'))).toEqual([]);
    await backup('one');
    expect(await store.listRecords()).toHaveLength(1);
  });

  it('names what the registry lacks', async () => {
    const image = await nginx();
    await push([image]);
    const hex = digestHex(image.layers[1]?.digest ?? image.configDigest);
    await rm(join(server.storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex), { recursive: true });
    await expect(backup('one')).rejects.toMatchObject({ code: 'backup_incomplete', details: { digest: image.layers[1]?.digest } });
  });
});

describe('a damaged backup', () => {
  let image: TestImage;
  beforeEach(async () => {
    image = await nginx();
    await push([image]);
    await backup('one');
  });

  it('is incomplete when a blob is missing or short', async () => {
    await truncate(blobFile(image), 10);
    await expect(openBackup(store, 'one')).rejects.toMatchObject({ code: 'backup_incomplete' });
    await rm(blobFile(image));
    await expect(openBackup(store, 'one')).rejects.toMatchObject({ code: 'backup_incomplete' });
    await backup('two');
    await expect(openBackup(store, 'one')).resolves.toBeDefined();
  });

  it('restores no image of which a blob was changed', async () => {
    const bytes = await readFile(blobFile(image));
    bytes[1000] = (bytes[1000] ?? 0) ^ 1;
    await writeFile(blobFile(image), bytes);
    const layer = image.layers[1];
    if (!layer) throw new Error('no layer');
    await expect(store.verifyBlob({ digest: layer.digest, size: layer.gzip.byteLength })).rejects.toMatchObject({ code: 'backup_corrupt' });
    const other = await startRegistry();
    const target = new RegistryClient(other.url);
    try {
      expect((await restore(await openBackup(store, 'one'), target))[0]?.error).toMatchObject({ code: 'digest_mismatch' });
      expect(await digests(target)).toEqual({});
    } finally {
      await target.close();
      await other.stop();
    }
  });

  it('is corrupt when its record or a manifest was changed', async () => {
    const path = join(store.dir, 'backups', 'one.json');
    const text = await readFile(path, 'utf8');
    await writeFile(path, text.replace('latest', 'newest'));
    await expect(store.readRecord('one')).rejects.toMatchObject({ code: 'backup_corrupt' });
    expect(await store.listRecords()).toMatchObject([{ id: 'one', error: { code: 'backup_corrupt' } }]);
    await writeFile(path, text);
    const hex = digestHex((await store.readRecord('one')).references[0]?.digest ?? image.configDigest);
    await writeFile(
      join(store.dir, 'blobs/sha256', hex.slice(0, 2), hex),
      '{"schemaVersion":2}'.padEnd((await registry.getManifest('nginx', '1'))?.bytes.byteLength ?? 0),
    );
    await expect(openBackup(store, 'one')).rejects.toMatchObject({ code: 'backup_corrupt' });
  });
});

describe('BackupStore', () => {
  const content = randomContent(5000);
  const blob = { digest: digestOf(content), size: content.byteLength };

  it('gives wrong bytes no name', async () => {
    for (const wrong of [content.subarray(1), Buffer.concat([content, content]), Buffer.alloc(5000)]) {
      await expect(store.putBlob(blob, Readable.from([wrong]))).rejects.toMatchObject({ code: 'digest_mismatch' });
    }
    expect(await store.hasBlob(blob)).toBe(false);
    expect(await readdir(join(store.dir, 'tmp'))).toEqual([]);
    expect(await store.putBlob(blob, Readable.from([content]))).toBe('stored');
    expect(await store.putBlob(blob, Readable.from([content]))).toBe('present');
  });

  it('refuses a record without its blobs, another one under the same id, and ids that are paths', async () => {
    const record = { id: 'one', createdAt: '2024-01-01T00:00:00.000Z', references: [], blobs: [blob] };
    await expect(store.writeRecord(record)).rejects.toMatchObject({ code: 'backup_incomplete' });
    await store.putBlob(blob, Readable.from([content]));
    await store.writeRecord(record);
    await store.writeRecord(record);
    await expect(store.writeRecord({ ...record, blobs: [] })).rejects.toMatchObject({ code: 'resource_exists' });
    for (const id of ['../one', 'a/b', '', '.', 'one.json']) await expect(store.readRecord(id)).rejects.toMatchObject({ code: 'resource_not_found' });
  });

  it('accepts only records that are signed, when it has a key', async () => {
    await store.writeRecord({ id: 'unsigned', createdAt: '2024-01-01T00:00:00.000Z', references: [], blobs: [] });
    const signed = await BackupStore.open(store.dir, { hmacKey: Buffer.from('00ff', 'hex') });
    await expect(signed.readRecord('unsigned')).rejects.toMatchObject({ code: 'backup_corrupt' });
    await signed.writeRecord({ id: 'signed', createdAt: '2024-01-01T00:00:00.000Z', references: [], blobs: [] });
    await expect(signed.readRecord('signed')).resolves.toMatchObject({ id: 'signed' });
    const { stdout } = await run('openssl', ['dgst', '-sha256', '-mac', 'HMAC', '-macopt', 'hexkey:00ff', join(store.dir, 'backups/signed.json')]);
    expect(stdout.trim().split(' ').at(-1)).toBe((await readFile(join(store.dir, 'backups/signed.json.hmac'), 'utf8')).trim());
  });

  it('prunes only what no backup needs and nobody used for a day', async () => {
    const spare = randomContent(300, 'spare');
    await store.putBlob(blob, Readable.from([content]));
    await store.putBlob({ digest: digestOf(spare), size: 300 }, Readable.from([spare]));
    await store.writeRecord({ id: 'one', createdAt: '2024-01-01T00:00:00.000Z', references: [], blobs: [blob] });
    expect(await store.prune()).toEqual({ blobs: 0, bytes: 0 });
    const hex = digestHex(digestOf(spare));
    const old = new Date(Date.now() - 25 * 60 * 60 * 1000);
    await utimes(join(store.dir, 'blobs/sha256', hex.slice(0, 2), hex), old, old);
    expect(await store.prune()).toEqual({ blobs: 1, bytes: 300 });
    expect(await store.hasBlob(blob)).toBe(true);
    expect(await store.deleteRecord('one')).toBe(true);
    expect(await store.deleteRecord('one')).toBe(false);
    expect(await store.prune({ minAgeMs: -1000 })).toEqual({ blobs: 1, bytes: 5000 });
  });

  it('opens neither a folder with other content nor a store of another version', async () => {
    await expect(BackupStore.open(dir.path)).rejects.toMatchObject({ code: 'backup_format_unsupported' });
    await writeFile(join(store.dir, 'VERSION'), 'airdock-backup 2\n');
    await expect(BackupStore.open(store.dir)).rejects.toMatchObject({ code: 'backup_format_unsupported' });
  });
});
