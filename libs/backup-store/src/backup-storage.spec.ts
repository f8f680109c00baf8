/** What every storage of backups does, whatever it is made of. */
import { createWriteStream } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { randomContent } from '@airdock/testing/bundles';
import { startS3Server } from '@airdock/testing/s3-server';
import { tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BackupStorage, StoredFile } from './backup-storage.js';
import { FolderStorage } from './folder-storage.js';
import { S3Storage } from './s3-storage.js';
import { TarStorage, writeTar } from './tar-storage.js';

type Files = Record<string, Buffer>;
/** A storage with these files, made in the way that is its own. */
type Make = (files: Files, resources: AsyncDisposableStack) => Promise<BackupStorage>;

async function fill<T extends BackupStorage>(storage: T, files: Files): Promise<T> {
  for (const [name, content] of Object.entries(files)) await storage.write(name, content);
  return storage;
}
const inFolder: Make = async (files, resources) =>
  fill(await FolderStorage.open(join(resources.use(await tempDir('storage')).path, 'store')), files);
const inBucket: Make = async (files, resources) => {
  const server = await startS3Server();
  resources.defer(() => server.stop());
  const { url: endpoint, bucket, accessKeyId, secretAccessKey } = server;
  const where = { endpoint, bucket, region: 'us-east-1', prefix: 'site/', pathStyle: true };
  return fill(resources.use(new S3Storage({ ...where, accessKeyId, secretAccessKey })), files);
};
const inTar: Make = async (files, resources) => {
  const folder = await inFolder(files, resources);
  const path = join(resources.use(await tempDir('tar')).path, 'export.tar');
  await pipeline(writeTar(folder, await filesOf(folder)), createWriteStream(path));
  return TarStorage.open(path);
};

async function filesOf(storage: BackupStorage, folder = ''): Promise<StoredFile[]> {
  const found: StoredFile[] = [];
  for await (const file of storage.list(folder)) found.push(file);
  return found.toSorted((a, b) => a.name.localeCompare(b.name));
}
const namesOf = async (storage: BackupStorage, folder = '') => (await filesOf(storage, folder)).map(({ name }) => name);
const bytesOf = async (content: Readable) => Buffer.concat((await content.toArray()) as Buffer[]);

const large = randomContent(9_000_000, 'large');
const files: Files = {
  'blobs/sha256/aa/aaaa': large,
  'blobs/sha256/ab/abab': Buffer.from('small'),
  'backups/one.json': Buffer.from('{}'),
  'backups-of-others/two.json': Buffer.from('[]'),
  empty: Buffer.alloc(0),
};

let resources: AsyncDisposableStack;
beforeEach(() => {
  resources = new AsyncDisposableStack();
});
afterEach(() => resources.disposeAsync());

describe.each<[string, Make]>([
  ['a folder', inFolder],
  ['a bucket', inBucket],
  ['an exported tar', inTar],
])('%s as a storage, for reading', (_what, make) => {
  let storage: BackupStorage;
  beforeEach(async () => {
    storage = await make(files, resources);
  });

  it('lists all files with their sizes, those of one folder, and none of a folder that is not there', async () => {
    expect((await filesOf(storage)).map(({ name, size }) => [name, size])).toEqual(
      Object.entries(files)
        .map(([name, content]) => [name, content.byteLength])
        .toSorted(([a], [b]) => String(a).localeCompare(String(b))),
    );
    expect(await namesOf(storage, 'blobs')).toEqual(['blobs/sha256/aa/aaaa', 'blobs/sha256/ab/abab']);
    // Not of one whose name begins alike.
    expect(await namesOf(storage, 'backups')).toEqual(['backups/one.json']);
    expect(await namesOf(storage, 'nothing')).toEqual([]);
  });

  it('tells the size of a file, and nothing of one that is not there', async () => {
    expect(await storage.stat('blobs/sha256/aa/aaaa')).toMatchObject({ name: 'blobs/sha256/aa/aaaa', size: 9_000_000 });
    expect(await storage.stat('empty')).toMatchObject({ size: 0 });
    expect(await storage.stat('blobs/sha256/aa/none')).toBeUndefined();
    expect(await storage.stat('none/of/these')).toBeUndefined();
  });

  it('reads a file whole, from any byte on, and an empty one', async () => {
    expect((await bytesOf(storage.read('blobs/sha256/aa/aaaa'))).equals(large)).toBe(true);
    const rest = await bytesOf(storage.read('blobs/sha256/aa/aaaa', { start: 8_999_990 }));
    expect(rest.equals(large.subarray(8_999_990))).toBe(true);
    expect(await bytesOf(storage.read('empty'))).toHaveLength(0);
  });

  it('ends the stream of a file that is not there with an error', async () => {
    await expect(bytesOf(storage.read('blobs/none'))).rejects.toMatchObject({
      message: expect.any(String),
    });
  });

  it('says where it is', () => {
    expect(storage.location).toMatch(/\/store$|^s3:\/\/|\.tar$/);
  });
});

describe.each<[string, Make]>([
  ['a folder', inFolder],
  ['a bucket', inBucket],
])('%s as a storage, for writing', (_what, make) => {
  let storage: BackupStorage;
  beforeEach(async () => {
    storage = await make({ 'backups/one.json': Buffer.from('{}') }, resources);
  });

  it('writes bytes and streams, of a size that is known or not, and replaces what is there', async () => {
    await storage.write('backups/one.json', Buffer.from('{"a":1}'));
    await storage.write('lock', Buffer.from('mine'), { isLasting: false });
    await storage.write('blobs/large', Readable.from([large], { objectMode: false }), { sizeHint: large.byteLength });
    await storage.write('blobs/other', Readable.from([large.subarray(0, 10), large.subarray(10, 30)]));
    expect((await bytesOf(storage.read('backups/one.json'))).toString()).toBe('{"a":1}');
    expect((await bytesOf(storage.read('blobs/large'))).equals(large)).toBe(true);
    expect((await bytesOf(storage.read('blobs/other'))).equals(large.subarray(0, 30))).toBe(true);
    expect(await namesOf(storage)).toEqual(['backups/one.json', 'blobs/large', 'blobs/other', 'lock']);
  });

  it('has nothing of a file whose stream breaks or whose writer was called off, and keeps the older one', async () => {
    const broken = () =>
      Readable.from(
        (async function* () {
          yield large.subarray(0, 6_000_000);
          throw new Error('the source broke');
        })(),
        { objectMode: false },
      );
    await expect(storage.write('blobs/new', broken())).rejects.toMatchObject({ message: expect.any(String) });
    await expect(storage.write('backups/one.json', broken())).rejects.toMatchObject({ message: expect.any(String) });
    const calledOff = { signal: AbortSignal.abort(new Error('called off')) };
    const content = Readable.from([large], { objectMode: false });
    await expect(storage.write('blobs/new', content, calledOff)).rejects.toMatchObject({ message: 'called off' });
    expect(content.destroyed).toBe(true);
    expect((await namesOf(storage)).filter((name) => !name.startsWith('tmp/'))).toEqual(['backups/one.json']);
    expect((await bytesOf(storage.read('backups/one.json'))).toString()).toBe('{}');
    await storage.sweep();
    expect(await namesOf(storage)).toEqual(['backups/one.json']);
  });

  it('gives a file another name, in place of what has that', async () => {
    await storage.write('damaged/one', Buffer.from('old'));
    await storage.move('backups/one.json', 'damaged/one');
    expect(await namesOf(storage)).toEqual(['damaged/one']);
    expect((await bytesOf(storage.read('damaged/one'))).toString()).toBe('{}');
  });

  it('removes a file, and nothing when it is not there', async () => {
    await storage.remove('backups/one.json');
    await storage.remove('backups/one.json');
    await storage.remove('nothing/of/it');
    expect(await namesOf(storage)).toEqual([]);
  });
});

it('an exported tar takes no changes', async () => {
  const storage = await inTar(files, resources);
  for (const change of [
    storage.write('a', Buffer.alloc(1)),
    storage.move('empty', 'b'),
    storage.remove('empty'),
    storage.sweep(),
  ])
    await expect(change).rejects.toThrow('an exported backup is only read');
  expect(await storage.freeBytes()).toBeUndefined();
});

it('a folder tells how much can be written to it, and a bucket does not know', async () => {
  expect(await (await inFolder({}, resources)).freeBytes()).toBeGreaterThan(0);
  expect(await (await inBucket({}, resources)).freeBytes()).toBeUndefined();
});
