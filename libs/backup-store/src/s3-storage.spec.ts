import { Readable } from 'node:stream';
import { digestOf } from '@airdock/core/oci/digest';
import { randomContent } from '@airdock/testing/bundles';
import { type S3Server, startS3Server } from '@airdock/testing/s3-server';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BackupStore } from './backup-store.js';
import { S3Storage } from './s3-storage.js';

let server: S3Server;
const storages: S3Storage[] = [];
const open = (change: object = {}) => {
  const { url: endpoint, bucket, accessKeyId, secretAccessKey } = server;
  const storage = new S3Storage({
    endpoint,
    bucket,
    accessKeyId,
    secretAccessKey,
    region: 'us-east-1',
    prefix: 'site-1/',
    pathStyle: true,
    ...change,
  });
  storages.push(storage);
  return storage;
};
beforeEach(async () => {
  server = await startS3Server();
});
afterEach(async () => {
  for (const storage of storages.splice(0)) await storage[Symbol.asyncDispose]();
  await server.stop();
});
const names = async (storage: S3Storage, folder = '') => {
  const found: string[] = [];
  for await (const { name } of storage.list(folder)) found.push(name);
  return found.sort();
};
const readAll = async (content: Readable) => Buffer.concat((await content.toArray()) as Buffer[]);

describe('a store in a bucket', () => {
  it('is one as in a folder, beside others in the bucket', async () => {
    const store = await BackupStore.open(open());
    const other = await BackupStore.open(open({ prefix: 'site-2/' }));
    expect(other.id).not.toBe(store.id);
    const contents = [randomContent(12_000_000, 'large'), Buffer.from('compresses '.repeat(50_000)), Buffer.from('{}')];
    const blobs = contents.map((content) => ({ digest: digestOf(content), size: content.byteLength }));
    const index = await store.index();
    for (const [at, blob] of blobs.entries()) {
      const content = contents[at] as Buffer;
      await store.putBlob(index, blob, async () => ({
        size: blob.size,
        open: ({ start } = { start: 0 }) => Readable.from([content.subarray(start)], { objectMode: false }),
      }));
    }
    await store.writeRecord({
      id: 'one',
      createdAt: '2026-01-01T00:00:00.000Z',
      sequence: 1,
      references: [],
      settings: [],
      blobs: blobs.slice(0, 2),
    });
    const again = await BackupStore.open(open(), { expectedId: store.id });
    expect(await again.listIds()).toEqual(['one']);
    const seen = await again.index();
    for (const [at, blob] of blobs.entries()) {
      await again.verifyBlob(seen, blob);
      expect(
        (await readAll(again.openBlob(seen, blob).open({ start: 1 }))).equals((contents[at] as Buffer).subarray(1)),
      ).toBe(true);
    }
    await using lock = await again.lock({ kind: 'exclusive', id: 'prune' });
    expect(await again.prune(lock)).toEqual({ blobs: 1, bytes: 2 });
    await again.setAside(await again.index(), blobs[0] as (typeof blobs)[0]);
    expect((await names(open(), 'damaged')).length).toBe(1);
    expect((await again.index()).blobs.size).toBe(1);
    expect(await other.listIds()).toEqual([]);
  });

  it('never shows half a blob, nor wrong bytes', async () => {
    const storage = open();
    const abort = new AbortController();
    const endless = Readable.from(
      (async function* () {
        for (let count = 0; ; count++) {
          if (count === 3) abort.abort(new Error('enough'));
          yield randomContent(3_000_000, `${count}`);
        }
      })(),
      { objectMode: false },
    );
    await expect(storage.write('blobs/half', endless, { signal: abort.signal })).rejects.toThrow('enough');
    const failing = Readable.from(
      (async function* () {
        yield randomContent(6_000_000);
        throw new Error('the source failed');
      })(),
      { objectMode: false },
    );
    await expect(storage.write('blobs/failed', failing)).rejects.toThrow('the source failed');
    expect(await names(storage)).toEqual([]);
    const store = await BackupStore.open(storage);
    const content = Buffer.from('what it should be');
    const put = store.putBlob(await store.index(), { digest: digestOf(content), size: 17 }, async () => ({
      size: 17,
      open: () => Readable.from([Buffer.from('what it should BE')], { objectMode: false }),
    }));
    await expect(put).rejects.toMatchObject({ code: 'digest_mismatch' });
    expect((await store.index()).blobs.size).toBe(0);
  });

  it('that cannot be reached, or not with this key, or has no bucket, is unavailable', async () => {
    const unavailable = { code: 'backup_target_unavailable' };
    await expect(BackupStore.open(open({ bucket: 'no-such-bucket' }))).rejects.toMatchObject(unavailable);
    await expect(BackupStore.open(open({ accessKeyId: 'nobody' }))).rejects.toMatchObject(unavailable);
    const store = await BackupStore.open(open());
    await server.crash();
    await expect(store.index()).rejects.toMatchObject(unavailable);
    await expect(readAll(store.storage.read('VERSION'))).rejects.toMatchObject(unavailable);
    await server.start();
    expect(await store.listIds()).toEqual([]);
  });
});

describe('a bucket that refuses', () => {
  const bytes = randomContent(12_000_000, 'large');
  const stream = () => Readable.from([bytes.subarray(0, 7_000_000), bytes.subarray(7_000_000)], { objectMode: false });
  /** Status and code of MinIO, Ceph, versitygw, AWS. */
  it.each([
    [507, 'XMinioStorageFull', 'space_insufficient'],
    [507, 'InsufficientStorage', 'space_insufficient'],
    [403, 'QuotaExceeded', 'space_insufficient'],
    [400, 'XMinioAdminBucketQuotaExceeded', 'space_insufficient'],
    [403, 'AccessDenied', 'backup_target_read_only'],
    [403, 'AllAccessDisabled', 'backup_target_read_only'],
    [405, 'MethodNotAllowed', 'backup_target_read_only'],
    [403, 'InvalidAccessKeyId', 'backup_target_unavailable'],
    [404, 'NoSuchBucket', 'backup_target_unavailable'],
  ])(
    'with %i %s says what that means, however it is written to, and shows nothing of it',
    async (status, code, expected) => {
      const storage = open();
      await storage.write('there', Buffer.from('there'));
      server.refuse = ({ operation }) => (['PUT', 'POST', 'COPY'].includes(operation) ? { status, code } : undefined);
      await expect(storage.write('bytes', Buffer.from('x'))).rejects.toMatchObject({ code: expected });
      await expect(storage.write('stream', stream(), { sizeHint: 12_000_000 })).rejects.toMatchObject({
        code: expected,
      });
      await expect(storage.move('there', 'moved')).rejects.toMatchObject({ code: expected });
      expect(await names(storage)).toEqual(['there']);
      expect((await readAll(storage.read('there'))).toString()).toBe('there');
      await storage.remove('there');
      server.refuse = () => undefined;
      await storage.write('stream', stream(), { sizeHint: 12_000_000 });
      expect((await readAll(storage.read('stream'))).equals(bytes)).toBe(true);
    },
  );

  it('in the middle of an upload says so too', async () => {
    const storage = open();
    let parts = 0;
    server.refuse = ({ operation }) =>
      operation === 'PUT' && ++parts > 1 ? { status: 507, code: 'XMinioStorageFull' } : undefined;
    await expect(storage.write('stream', stream(), { sizeHint: 12_000_000 })).rejects.toMatchObject({
      code: 'space_insufficient',
    });
    expect(await names(storage)).toEqual([]);
  });
});
