import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, rename, rm, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { digestHex, digestOf } from '@airdock/core/oci/digest';
import { openBundle } from '@airdock/oci/bundle/bundle';
import type { BlobReader, ImageSource } from '@airdock/oci/image/image-source';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { copyImages } from '@airdock/registry/copy/copy-image';
import { buildOciArchive, makeImage, makeIndex, randomContent, type TestImage } from '@airdock/testing/bundles';
import { startRegistry, type TempDir, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type BackupProgress, backupRegistry } from './backup-registry.js';
import { openBackup } from './backup-source.js';
import { type BackupBlob, BackupStore, type BackupStoreOptions } from './backup-store.js';
import { FolderStorage } from './folder-storage.js';
import { parsePublicKey, signingKeyOf } from './record-signature.js';

const run = promisify(execFile);
const base = { files: { 'bin/sh': 'shell' } };
const retry = { delayMs: 1 };

let dir: TempDir;
let server: TestRegistry;
let registry: RegistryClient;
let store: BackupStore;
const open = async (folder: string, options?: BackupStoreOptions) =>
  BackupStore.open(await FolderStorage.open(folder), options);
beforeEach(async () => {
  dir = await tempDir('backup');
  server = await startRegistry();
  registry = new RegistryClient(server.url);
  store = await open(join(dir.path, 'store'));
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
    names: image.names.map((name) => ({
      repository: name.slice(0, name.lastIndexOf(':')),
      tag: name.slice(name.lastIndexOf(':') + 1),
    })),
  }));
  return copyImages({ source, images, registry: to, retry });
}

async function push(images: Parameters<typeof buildOciArchive>[1]): Promise<void> {
  const file = join(dir.path, 'bundle.tar');
  await buildOciArchive(file, images);
  const source = await openBundle(file, { workDir: join(dir.path, 'work') });
  const toCopy = source.images.map((image) => ({
    image,
    names: image.names.map((name) => ({
      repository: name.replace(/^reg.site\/|:[^:]*$/g, ''),
      tag: name.replace(/.*:/, ''),
    })),
  }));
  for (const { error } of await copyImages({ source, images: toCopy, registry, retry })) if (error) throw error;
}

const nginx = () =>
  makeImage({
    name: ['reg.site/nginx:1', 'reg.site/nginx:latest'],
    layers: [base, { randomBytes: 200_000, seed: 'nginx' }],
  });
const backup = (id: string, more: Partial<Parameters<typeof backupRegistry>[0]> = {}) =>
  backupRegistry({ registry, store, id, retry, ...more });
const reading = (content: Uint8Array) => async (): Promise<BlobReader> => ({
  size: content.byteLength,
  open: ({ start } = { start: 0 }) => Readable.from([Buffer.from(content.subarray(start))], { objectMode: false }),
});
const put = async (blob: BackupBlob, content: Uint8Array, to = store) =>
  to.putBlob(await to.index(), blob, reading(content));
const has = async (blob: BackupBlob) => (await store.index()).has(blob);
const prune = async () => {
  await using lock = await store.lock({ kind: 'exclusive', id: 'prune' });
  return await store.prune(lock);
};
const blobFile = (image: TestImage, layer = 1): string => {
  const hex = digestHex(image.layers[layer]?.digest ?? image.configDigest);
  return join(store.storage.location, 'blobs/sha256', hex.slice(0, 2), hex);
};
const digests = async (client: RegistryClient) => {
  const found: Record<string, string | undefined> = {};
  for (const repository of await client.listRepositories())
    for (const tag of await client.listTags(repository))
      found[`${repository}:${tag}`] = (await client.headManifest(repository, tag))?.digest;
  return found;
};

describe('a new store', () => {
  it('is made by one of many that open it at once, also where one was killed', async () => {
    const folder = await tempDir('new-store');
    await mkdir(join(folder.path, 'blobs', 'sha256'), { recursive: true });
    const opened = await Promise.all(Array.from({ length: 8 }, () => open(folder.path)));
    expect(opened).toHaveLength(8);
    await folder.remove();
  });
});

describe('a backup', () => {
  it('brings every name back into an empty registry, with the same digests', async () => {
    const platforms = await Promise.all(
      ['amd64', 'arm64'].map((architecture) =>
        makeImage({ name: [], layers: [base], platform: { os: 'linux', architecture } }),
      ),
    );
    await push([await nginx(), makeIndex('reg.site/deep/pause:3.9', platforms, { attestation: true })]);
    const before = await digests(registry);
    const progress: BackupProgress[] = [];
    const { record } = await backup('monday', { onProgress: (at) => progress.push(at) });
    expect(record.references.map(({ repository, tag }) => `${repository}:${tag}`)).toEqual([
      'deep/pause:3.9',
      'nginx:1',
      'nginx:latest',
    ]);
    expect(progress.at(-1)).toMatchObject({
      bytesDone: record.totalBytes,
      bytesTotal: record.totalBytes,
      itemsDone: record.blobs.length,
    });
    expect(progress.map(({ bytesDone }) => bytesDone)).toEqual(
      progress.map(({ bytesDone }) => bytesDone).sort((a, b) => a - b),
    );

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

  it('has images without a tag, which nothing but their digest leads to', async () => {
    const file = join(dir.path, 'untagged.tar');
    await buildOciArchive(file, [await nginx()]);
    await using source = await openBundle(file, { workDir: join(dir.path, 'work') });
    const images = source.images.map((image) => ({ image, names: [{ repository: 'by-digest' }] }));
    for (const { error } of await copyImages({ source, images, registry, retry })) if (error) throw error;
    const digest = source.images[0]?.root?.digest ?? digestOf(Buffer.alloc(0));
    const missing = digestOf(Buffer.from('missing'));
    const { record, skipped } = await backup('one', {
      untagged: [digest, missing].map((each) => ({ repository: 'by-digest', digest: each })),
    });
    expect(record.references).toMatchObject([{ repository: 'by-digest', digest }]);
    expect(skipped).toEqual([{ name: `by-digest@${missing}`, reason: 'its manifest is missing' }]);
    const opened = await openBackup(store, 'one');
    expect(opened.images[0]?.names).toEqual([`by-digest@${digest}`]);
  });

  it('names a tag that the registry cannot read, and holds the others', async () => {
    await push([await nginx()]);
    await truncate(join(server.storageDir, 'docker/registry/v2/repositories/nginx/_manifests/tags/1/current/link'));
    const { record, skipped } = await backup('one');
    expect(record.references).toMatchObject([{ repository: 'nginx', tag: 'latest' }]);
    expect(skipped).toEqual([{ name: 'nginx:1', reason: 'its manifest is missing' }]);
  });

  it('stores a blob of several backups once, and only what the filter takes', async () => {
    await push([await nginx()]);
    await backup('one');
    const blobs = async () =>
      (await readdir(join(store.storage.location, 'blobs'), { recursive: true, withFileTypes: true })).filter((entry) =>
        entry.isFile(),
      ).length;
    const first = await blobs();
    await push([await makeImage({ name: 'reg.site/redis:7', layers: [base] })]);
    const { record } = await backup('two', { filter: ({ repository }) => repository === 'redis' });
    expect(record.references).toHaveLength(1);
    // Its manifest and its configuration; the layer was there.
    expect(await blobs()).toBe(first + 2);
    expect((await store.listRecords()).map(({ id }) => id)).toEqual(['one', 'two']);
  });

  it('can be checked with common tools', async () => {
    await push([await nginx()]);
    await backup('one');
    await run('sh', ['-ec', 'cd backups && sha256sum -c one.json.sha256'], { cwd: store.storage.location });
    const { stdout } = await run(
      'sh',
      ['-ec', "cd blobs/sha256 && find . -type f -printf '%f  %p\\n' | sha256sum -c"],
      { cwd: store.storage.location },
    );
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
    expect(await readdir(join(store.storage.location, 'tmp'))).toEqual([]);
    await backup('one');
    expect(await store.listRecords()).toHaveLength(1);
  });

  it('is of what is complete in the registry, and names what is not', async () => {
    const image = await nginx();
    await push([image, await makeImage({ name: 'reg.site/redis:7', layers: [base] })]);
    const hex = digestHex(image.layers[1]?.digest ?? image.configDigest);
    await rm(join(server.storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex), { recursive: true });
    const { record, skipped } = await backup('one');
    expect(record.references.map(({ repository }) => repository)).toEqual(['redis']);
    expect(skipped.map(({ name }) => name)).toEqual(['nginx:1', 'nginx:latest']);
    expect(skipped[0]?.reason).toContain(image.layers[1]?.digest);
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
    const names = async () => (await openBackup(store, 'one')).broken.map(({ name }) => name);
    await truncate(blobFile(image), 10);
    expect(await names()).toEqual(['nginx:1', 'nginx:latest']);
    await rm(blobFile(image));
    expect(await names()).toEqual(['nginx:1', 'nginx:latest']);
    await backup('two');
    expect(await names()).toEqual([]);
  });

  it('restores no image of which a blob was changed', async () => {
    const bytes = await readFile(blobFile(image));
    bytes[1000] = (bytes[1000] ?? 0) ^ 1;
    await writeFile(blobFile(image), bytes);
    const layer = image.layers[1];
    if (!layer) throw new Error('no layer');
    await expect(
      store.verifyBlob(await store.index(), { digest: layer.digest, size: layer.gzip.byteLength }),
    ).rejects.toMatchObject({
      code: 'backup_corrupt',
    });
    const other = await startRegistry();
    const target = new RegistryClient(other.url);
    try {
      expect((await restore(await openBackup(store, 'one'), target))[0]?.error).toMatchObject({
        code: 'digest_mismatch',
      });
      expect(await digests(target)).toEqual({});
    } finally {
      await target.close();
      await other.stop();
    }
  });

  it('is corrupt when its record or a manifest was changed', async () => {
    const path = join(store.storage.location, 'backups', 'one.json');
    const text = await readFile(path, 'utf8');
    await writeFile(path, text.replace('latest', 'newest'));
    await expect(store.readRecord('one')).rejects.toMatchObject({ code: 'backup_corrupt' });
    expect(await store.listRecords()).toMatchObject([{ id: 'one', error: { code: 'backup_corrupt' } }]);
    await writeFile(path, text);
    const hex = digestHex((await store.readRecord('one')).references[0]?.digest ?? image.configDigest);
    await writeFile(
      join(store.storage.location, 'blobs/sha256', hex.slice(0, 2), hex),
      '{"schemaVersion":2}'.padEnd((await registry.getManifest('nginx', '1'))?.bytes.byteLength ?? 0),
    );
    expect(await openBackup(store, 'one')).toMatchObject({
      images: [],
      broken: [{ name: 'nginx:1' }, { name: 'nginx:latest' }],
    });
  });
});

describe('an encoded blob', () => {
  const text = Buffer.from('What compresses well, compresses well. '.repeat(20_000));
  const random = randomContent(3_000_000);
  const blobOf = (content: Uint8Array): BackupBlob => ({ digest: digestOf(content), size: content.byteLength });
  const stored = async (content: Uint8Array, from = store) =>
    (await from.index()).blobs.get(digestOf(content))?.name ?? '';
  const readAll = async (content: Uint8Array, start: number, from = store) =>
    Buffer.concat(
      (await from
        .openBlob(await from.index(), blobOf(content))
        .open({ start })
        .toArray()) as Buffer[],
    );

  it('is compressed where that pays, and read from anywhere', async () => {
    await put(blobOf(text), text);
    await put(blobOf(random), random);
    expect(await stored(text)).toMatch(/[0-9a-f]{64}\.zst$/);
    expect(await stored(random)).toMatch(/[0-9a-f]{64}$/);
    expect((await store.storage.stat(await stored(text)))?.size).toBeLessThan(text.byteLength / 10);
    for (const start of [0, 1, 700_000])
      for (const content of [text, random])
        expect((await readAll(content, start)).equals(content.subarray(start))).toBe(true);
    const { stdout } = await run('sh', ['-c', `zstd -dc < ${await stored(text)} | sha256sum`], {
      cwd: store.storage.location,
    });
    expect(stdout).toContain(digestHex(blobOf(text).digest));
  });

  it('is encrypted for all recipients, opens with age, and with nothing but their keys', async () => {
    const { stdout: key } = await run('age-keygen', []);
    const identity = /AGE-SECRET-KEY-1\w+/.exec(key)?.[0] ?? '';
    const recipient = /age1\w+/.exec(key)?.[0] ?? '';
    const keyFile = join(dir.path, 'key');
    await writeFile(keyFile, key);
    const writer = await open(store.storage.location, { keys: { recipients: [recipient], identities: [] } });
    const reader = await open(store.storage.location, { keys: { recipients: [recipient], identities: [identity] } });
    for (const content of [text, random]) {
      await put(blobOf(content), content, writer);
      expect(await stored(content)).toMatch(content === text ? /\.zst\.age$/ : /[0-9a-f]{64}\.age$/);
      await expect(writer.verifyBlob(await writer.index(), blobOf(content))).rejects.toMatchObject({
        code: 'backup_key_missing',
      });
      await reader.verifyBlob(await reader.index(), blobOf(content));
      expect((await readAll(content, 10, reader)).equals(content.subarray(10))).toBe(true);
    }
    const { stdout } = await run('sh', ['-c', `age -d -i ${keyFile} < ${await stored(text)} | zstd -dc | sha256sum`], {
      cwd: store.storage.location,
    });
    expect(stdout).toContain(digestHex(blobOf(text).digest));
    const { stdout: otherKey } = await run('age-keygen', []);
    const stranger = await open(store.storage.location, {
      keys: { recipients: [], identities: [/AGE-SECRET-KEY-1\w+/.exec(otherKey)?.[0] ?? ''] },
    });
    await expect(stranger.verifyBlob(await stranger.index(), blobOf(text))).rejects.toMatchObject({
      code: 'backup_key_missing',
    });
  });

  it('that is damaged is found, set aside, and stored again', async () => {
    await put(blobOf(text), text);
    const path = join(store.storage.location, await stored(text));
    const bytes = await readFile(path);
    bytes[bytes.byteLength >> 1] = (bytes[bytes.byteLength >> 1] ?? 0) ^ 1;
    await writeFile(path, bytes);
    const index = await store.index();
    await expect(store.verifyBlob(index, blobOf(text))).rejects.toMatchObject({ code: 'backup_corrupt' });
    await store.setAside(index, blobOf(text));
    expect(index.has(blobOf(text))).toBe(false);
    expect(await readdir(join(store.storage.location, 'damaged'))).toHaveLength(1);
    await put(blobOf(text), text);
    await store.verifyBlob(await store.index(), blobOf(text));
  });

  it('of a backup restores like any other', async () => {
    await push([await nginx()]);
    const before = await digests(registry);
    await backup('one');
    const other = await startRegistry();
    const target = new RegistryClient(other.url);
    try {
      expect((await restore(await openBackup(store, 'one'), target)).map(({ error }) => error)).toEqual([undefined]);
      expect(await digests(target)).toEqual(before);
    } finally {
      await target.close();
      await other.stop();
    }
  });
});

describe('BackupStore', () => {
  const content = randomContent(5000);
  const blob = { digest: digestOf(content), size: content.byteLength };

  it('gives wrong bytes no name', async () => {
    for (const wrong of [content.subarray(1), Buffer.concat([content, content]), Buffer.alloc(5000)]) {
      await expect(put(blob, wrong)).rejects.toMatchObject({ code: 'digest_mismatch' });
    }
    expect(await has(blob)).toBe(false);
    expect(await readdir(join(store.storage.location, 'tmp'))).toEqual([]);
    await put(blob, content);
    expect(await has(blob)).toBe(true);
  });

  it('refuses a record without its blobs, another one under the same id, and ids that are paths', async () => {
    const record = {
      id: 'one',
      createdAt: '2024-01-01T00:00:00.000Z',
      sequence: 1,
      references: [],
      settings: [],
      blobs: [blob],
    };
    await expect(store.writeRecord(record)).rejects.toMatchObject({ code: 'backup_incomplete' });
    await put(blob, content);
    await store.writeRecord(record);
    await store.writeRecord(record);
    await expect(store.writeRecord({ ...record, blobs: [] })).rejects.toMatchObject({ code: 'resource_exists' });
    for (const id of ['../one', 'a/b', '', '.', 'one.json'])
      await expect(store.readRecord(id)).rejects.toMatchObject({ code: 'resource_not_found' });
  });

  it('reads only records that somebody known has signed, when it has keys', async () => {
    const content = { createdAt: '2024-01-01T00:00:00.000Z', sequence: 1, references: [], settings: [], blobs: [] };
    await store.writeRecord({ ...content, id: 'unsigned' });
    const { location } = store.storage;
    const [own, other] = [signingKeyOf(Buffer.alloc(32, 1)), signingKeyOf(Buffer.alloc(32, 2))];
    const ours = await open(location, { signatures: { own, trusted: [] } });
    const theirs = await open(location, { signatures: { own: other, trusted: [] } });
    const friends = await open(location, { signatures: { own: other, trusted: [parsePublicKey(`${own.text} ours`)] } });
    await ours.writeRecord({ ...content, id: 'signed' });
    await expect(ours.readRecord('unsigned')).rejects.toMatchObject({ code: 'backup_unsigned' });
    await expect(theirs.readRecord('signed')).rejects.toMatchObject({
      code: 'backup_signer_unknown',
      details: { keyId: own.keyId },
    });
    expect((await ours.readSigned('signed')).signature).toEqual({ state: 'own', keyId: own.keyId });
    expect((await friends.readSigned('signed')).signature).toEqual({ state: 'trusted', keyId: own.keyId });
    expect((await theirs.readSigned('signed', { allowUnsigned: true })).signature).toEqual({
      state: 'unknown',
      keyId: own.keyId,
    });
    expect((await ours.readSigned('unsigned', { allowUnsigned: true })).signature).toEqual({
      state: 'unsigned',
      keyId: null,
    });

    const file = join(location, 'backups/signed.json');
    const changed = (await readFile(file, 'utf8')).replace('2024', '2025');
    await writeFile(file, changed);
    await writeFile(`${file}.sha256`, `${digestHex(digestOf(Buffer.from(changed)))}  signed.json\n`);
    for (const reader of [ours, friends])
      await expect(reader.readRecord('signed', { allowUnsigned: true })).rejects.toMatchObject({
        code: 'backup_signature_wrong',
      });
  });

  it('signs so that openssl finds it right, with a key that ssh-keygen calls the same', async () => {
    const own = signingKeyOf(Buffer.alloc(32, 7));
    const signed = await open(store.storage.location, { signatures: { own, trusted: [] } });
    await signed.writeRecord({
      id: 'a',
      createdAt: '2024-01-01T00:00:00.000Z',
      sequence: 1,
      references: [],
      settings: [],
      blobs: [],
    });
    const file = join(store.storage.location, 'backups/a.json');
    const [pem, signature, line] = ['key.pem', 'signature', 'key.pub'].map((name) => join(dir.path, name)) as [
      string,
      string,
      string,
    ];
    await writeFile(pem, own.key.export({ format: 'pem', type: 'spki' }));
    await writeFile(signature, Buffer.from((await readFile(`${file}.sig`, 'utf8')).split('\n')[2] ?? '', 'base64'));
    await writeFile(line, own.text);
    const { stdout } = await run('openssl', [
      'pkeyutl',
      '-verify',
      '-pubin',
      '-inkey',
      pem,
      '-rawin',
      '-in',
      file,
      '-sigfile',
      signature,
    ]);
    expect(stdout).toContain('Signature Verified Successfully');
    expect((await run('ssh-keygen', ['-lf', line])).stdout).toContain(own.keyId);
  });

  it('goes on to read what was signed with a shared secret', async () => {
    const own = signingKeyOf(Buffer.alloc(32, 1));
    await store.writeRecord({
      id: 'old',
      createdAt: '2024-01-01T00:00:00.000Z',
      sequence: 1,
      references: [],
      settings: [],
      blobs: [],
    });
    const file = join(store.storage.location, 'backups/old.json');
    const { stdout } = await run('openssl', ['dgst', '-sha256', '-mac', 'HMAC', '-macopt', 'hexkey:00ff', file]);
    await writeFile(`${file}.hmac`, `${stdout.trim().split(' ').at(-1)}\n`);
    const read = async (hmacKey?: Buffer) =>
      (await open(store.storage.location, { signatures: { own, trusted: [] }, hmacKey })).readSigned('old');
    expect((await read(Buffer.from('00ff', 'hex'))).signature).toEqual({ state: 'own', keyId: null });
    await expect(read(Buffer.from('00fe', 'hex'))).rejects.toMatchObject({ code: 'backup_signature_wrong' });
    await expect(read()).rejects.toMatchObject({ code: 'backup_unsigned' });
  });

  it('prunes only what no backup needs, and what killed writers left', async () => {
    const spare = randomContent(300, 'spare');
    await put(blob, content);
    await put({ digest: digestOf(spare), size: 300 }, spare);
    const left = join(store.storage.location, 'tmp', 'left.part');
    await writeFile(left, '1234567');
    await utimes(left, 0, 0);
    await store.writeRecord({
      id: 'one',
      createdAt: '2024-01-01T00:00:00.000Z',
      sequence: 1,
      references: [],
      settings: [],
      blobs: [blob],
    });
    expect(await store.findUnneeded()).toHaveLength(1);
    expect(await store.findUnneeded(new Set(['one']))).toHaveLength(2);
    expect(await prune()).toEqual({ blobs: 1, bytes: 307 });
    expect(await has(blob)).toBe(true);
    expect(await store.deleteRecord('one')).toBe(true);
    expect(await store.deleteRecord('one')).toBe(false);
    expect(await prune()).toEqual({ blobs: 1, bytes: 5000 });
    expect(await prune()).toEqual({ blobs: 0, bytes: 0 });
  });

  it('prunes nothing while a record cannot be read', async () => {
    await put(blob, content);
    await store.writeRecord({
      id: 'one',
      createdAt: '2024-01-01T00:00:00.000Z',
      sequence: 1,
      references: [],
      settings: [],
      blobs: [],
    });
    await writeFile(join(store.storage.location, 'backups/one.json'), '{}');
    await expect(prune()).rejects.toMatchObject({ code: 'backup_corrupt' });
    expect(await has(blob)).toBe(true);
  });

  it('lets many write and read at a time, and prunes when nobody else is there', async () => {
    const first = await store.lock({ kind: 'shared', id: 'first' });
    const second = await store.lock({ kind: 'shared', id: 'second' });
    const waits: string[][] = [];
    await expect(
      store.lock({ kind: 'exclusive', id: 'prune', waitMs: 0, pauseMs: 1, onWait: (holders) => waits.push(holders) }),
    ).rejects.toMatchObject({
      code: 'backup_store_busy',
    });
    expect(waits[0]).toEqual(['shared-first', 'shared-second']);
    await first[Symbol.asyncDispose]();
    await second[Symbol.asyncDispose]();
    const pruning = await store.lock({ kind: 'exclusive', id: 'prune' });
    await expect(store.lock({ kind: 'shared', id: 'third', waitMs: 0, pauseMs: 1 })).rejects.toMatchObject({
      code: 'backup_store_busy',
    });
    // Who takes the work of a killed process up again has its lock.
    const again = await store.lock({ kind: 'exclusive', id: 'prune' });
    await pruning[Symbol.asyncDispose]();
    await again[Symbol.asyncDispose]();
    const third = await store.lock({ kind: 'shared', id: 'third' });
    const lock = join(store.storage.location, 'locks/shared-third.json');
    const old = new Date(Date.now() - 16 * 60_000);
    await utimes(lock, old, old);
    // Only what does not move while it is watched is stale: a clock that jumps makes all locks look old.
    await expect(store.lock({ kind: 'exclusive', id: 'prune', waitMs: 0, pauseMs: 1 })).rejects.toMatchObject({
      code: 'backup_store_busy',
    });
    await (await store.lock({ kind: 'exclusive', id: 'prune', pauseMs: 1, watchMs: 20 }))[Symbol.asyncDispose]();
    expect(await readdir(join(store.storage.location, 'locks'))).toEqual([]);
    await third[Symbol.asyncDispose]();
  });

  it('is not taken for an empty folder, or another store, that is where it was', async () => {
    const { id, storage } = store;
    await rename(storage.location, `${storage.location}-carried-away`);
    await mkdir(storage.location);
    await expect(put(blob, content)).rejects.toMatchObject({ code: 'backup_target_unavailable' });
    expect(await readdir(storage.location)).not.toContain('blobs');
    await expect(store.index()).rejects.toMatchObject({ code: 'backup_target_unavailable' });
    await rm(storage.location, { recursive: true });
    await expect(open(storage.location, { expectedId: id })).rejects.toMatchObject({
      code: 'backup_target_unavailable',
    });
    expect(await readdir(storage.location)).toEqual([]);
    await open(storage.location);
    await expect(open(storage.location, { expectedId: id })).rejects.toMatchObject({ code: 'backup_target_changed' });
    expect((await open(`${storage.location}-carried-away`, { expectedId: id })).id).toBe(id);
  });

  it('opens neither a folder with other content nor a store of another version', async () => {
    await expect(open(dir.path)).rejects.toMatchObject({ code: 'backup_format_unsupported' });
    await writeFile(join(store.storage.location, 'VERSION'), 'airdock-backup 2\n');
    await expect(open(store.storage.location)).rejects.toMatchObject({ code: 'backup_format_unsupported' });
  });
});
