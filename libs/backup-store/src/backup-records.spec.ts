/** The records of a store, without blobs: what is listed, what is read, and what a new one comes after. */
import { createWriteStream } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { AppError } from '@airdock/core/errors';
import { type BackupContent, formatBackupRecord } from '@airdock/core/oci/backup-record';
import { digestHex, digestOf } from '@airdock/core/oci/digest';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type BackupBlob, BackupStore } from './backup-store.js';
import { FolderStorage } from './folder-storage.js';
import { signingKeyOf } from './record-signature.js';
import { TarStorage, writeTar } from './tar-storage.js';

const own = signingKeyOf(Buffer.alloc(32, 1));
const stranger = signingKeyOf(Buffer.alloc(32, 2));
const blobOf = (text: string): BackupBlob => ({ digest: digestOf(text), size: text.length });

let dir: TempDir;
let store: BackupStore;
const open = async (key = own, folder = 'store') =>
  BackupStore.open(await FolderStorage.open(join(dir.path, folder)), {
    signatures: { own: key, trusted: [] },
    compress: false,
  });
beforeEach(async () => {
  dir = await tempDir('backup-records');
  store = await open();
});
afterEach(() => dir.remove());

const pathOf = (name: string, folder = 'store') => join(dir.path, folder, name);
async function put(text: string, to = store): Promise<BackupBlob> {
  const blob = blobOf(text);
  const bytes = Buffer.from(text);
  await to.putBlob(await to.index(), blob, async () => ({
    size: blob.size,
    open: ({ start } = { start: 0 }) => Readable.from([bytes.subarray(start)], { objectMode: false }),
  }));
  return blob;
}
const content = (id: string, blobs: BackupBlob[] = [], sequence = 1): BackupContent => ({
  id,
  createdAt: '2026-11-30T01:02:03.000Z',
  sequence,
  references: [],
  settings: [],
  blobs,
});
const write = (id: string, blobs: BackupBlob[] = [], sequence = 1, to = store) =>
  to.writeRecord(content(id, blobs, sequence));
/** As somebody would who has the disk. */
async function writeByHand(id: string, bytes: Buffer): Promise<void> {
  await mkdir(pathOf('backups'), { recursive: true });
  await writeFile(pathOf(`backups/${id}.json`), bytes);
  await writeFile(pathOf(`backups/${id}.json.sha256`), `${digestHex(digestOf(bytes))}  ${id}.json\n`);
}

describe('the records of a store', () => {
  it('are listed by their ids, without what else lies beside them', async () => {
    await write('tuesday');
    await write('monday');
    await writeFile(pathOf('backups/not.an.id.json'), '{}');
    await mkdir(pathOf('backups/folder'));
    await writeFile(pathOf('backups/folder/deep.json'), '{}');
    expect(await store.listIds()).toEqual(['monday', 'tuesday']);
  });

  it('that cannot be read hide no others, and each says why', async () => {
    await write('good');
    await write('changed');
    await writeFile(pathOf('backups/changed.json'), '{}');
    await write('lost');
    await rm(pathOf('backups/lost.json.sha256'));
    await writeByHand('unsigned', formatBackupRecord(content('unsigned')));
    await write('strange', [], 1, await open(stranger));
    const listed = await store.listRecords();
    expect(listed.map(({ id, error }) => [id, error?.code])).toEqual([
      ['changed', 'backup_corrupt'],
      ['good', undefined],
      ['lost', 'backup_corrupt'],
      ['strange', 'backup_signer_unknown'],
      ['unsigned', 'backup_unsigned'],
    ]);
    const allowed = await store.listRecords({ allowUnsigned: true });
    expect(allowed.filter(({ error }) => error).map(({ id }) => id)).toEqual(['changed', 'lost']);
  });

  it('are not read with a wrong signature, also where unsigned ones are', async () => {
    await write('monday');
    await write('tuesday');
    await writeFile(pathOf('backups/monday.json.sig'), await readFile(pathOf('backups/tuesday.json.sig')));
    await expect(store.readRecord('monday', { allowUnsigned: true })).rejects.toMatchObject({
      code: 'backup_signature_wrong',
    });
    await expect(store.expectSignatures({ allowUnsigned: true })).rejects.toMatchObject({
      code: 'backup_signature_wrong',
    });
  });

  it('are followed by the next number, whatever the clock and their order', async () => {
    expect(await store.nextSequence()).toBe(1);
    await write('b', [], 41);
    await write('a', [], 7);
    expect(await store.nextSequence()).toBe(42);
  });

  it('of which one takes the last number leave room for those that come', async () => {
    await write('a', [], 7);
    await writeByHand('greedy', formatBackupRecord(content('greedy', [], 999_999_999_999)));
    await writeByHand('broken', Buffer.from('"sequence": x'));
    expect(await store.nextSequence()).toBe(8);
  });

  it('go with all that lies beside them, and are not there a second time', async () => {
    await write('monday');
    expect(await store.deleteRecord('monday')).toBe(true);
    expect(await store.deleteRecord('monday')).toBe(false);
    expect(await store.listIds()).toEqual([]);
    await expect(readFile(pathOf('backups/monday.json.sig'))).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(store.readRecord('monday')).rejects.toMatchObject({ code: 'resource_not_found' });
  });

  it.each(['../ID', 'a/b', '', '.'])('have no id like %j', async (id) => {
    await expect(store.readRecord(id)).rejects.toMatchObject({ code: 'resource_not_found' });
    await expect(store.deleteRecord(id)).rejects.toMatchObject({ code: 'resource_not_found' });
  });

  it('are signed later only where somebody vouches for them', async () => {
    await writeByHand('old', formatBackupRecord(content('old')));
    expect(await store.signAsOwn('old', () => false)).toBe(false);
    await expect(store.readRecord('old')).rejects.toMatchObject({ code: 'backup_unsigned' });
    expect(await store.signAsOwn('old', ({ id }) => id === 'old')).toBe(true);
    expect((await store.readSigned('old')).signature).toEqual({ state: 'own', keyId: own.keyId });
    await write('strange', [], 1, await open(stranger));
    expect(await store.signAsOwn('strange', () => true)).toBe(false);
  });
});

describe('what no backup needs', () => {
  it('is what no record names, but for those that are thought away', async () => {
    const [one, both, none] = [await put('one'), await put('both'), await put('none')];
    const other = await put('other');
    await write('a', [one, both]);
    await write('b', [both, other]);
    const unneeded = async (without?: string[]) =>
      (await store.findUnneeded(new Set(without))).map(({ name }) => name.split('/').at(-1) ?? '').sort();
    const hexes = (...blobs: BackupBlob[]) => blobs.map(({ digest }) => digestHex(digest)).sort();
    expect(await unneeded()).toEqual(hexes(none));
    expect(await unneeded(['a'])).toEqual(hexes(none, one));
    expect(await unneeded(['a', 'b'])).toEqual(hexes(none, one, both, other));
  });

  it('is not known while a record cannot be read', async () => {
    await put('none');
    await write('a');
    await writeFile(pathOf('backups/a.json'), '{}');
    await expect(store.findUnneeded()).rejects.toMatchObject({ code: 'backup_corrupt' });
    await expect(store.removeWithoutLock()).rejects.toMatchObject({ code: 'backup_corrupt' });
  });

  it('goes largest first where there is no room for a lock, unless somebody has one', async () => {
    await put('small');
    const large = await put('much larger than the other');
    {
      await using _lock = await store.lock({ kind: 'shared', id: 'job' });
      await expect(store.removeWithoutLock()).rejects.toMatchObject({ code: 'backup_store_busy' });
    }
    expect(await store.removeWithoutLock()).toBe(true);
    expect((await store.index()).has(large)).toBe(false);
    expect(await store.removeWithoutLock()).toBe(true);
    expect(await store.removeWithoutLock()).toBe(false);
  });

  it('is pruned one by one, up to where the signal ends it', async () => {
    await Promise.all(['1', '2', '3'].map((text) => put(text)));
    const called = new AbortController();
    await using lock = await store.lock({ kind: 'exclusive', id: 'prune' });
    const pruned = store.prune(lock, {
      signal: called.signal,
      onBlob: (done) => done === 2 && called.abort(new Error('enough')),
    });
    await expect(pruned).rejects.toThrow('enough');
    expect((await store.index()).blobs.size).toBe(1);
    expect(await store.prune(lock)).toMatchObject({ blobs: 1, bytes: 1 });
  });
});

describe('an exported backup', () => {
  async function exported(id: string): Promise<BackupStore> {
    const tar = join(dir.path, `${id}.tar`);
    let bytes = 0;
    const files = await store.filesOf(id);
    await pipeline(
      writeTar(store.storage, files, (count) => {
        bytes += count;
      }),
      createWriteStream(tar),
    );
    expect(bytes).toBe(files.reduce((sum, { size }) => sum + size, 0));
    return BackupStore.open(await TarStorage.open(tar), {
      signatures: { own: stranger, trusted: [own] },
      create: false,
    });
  }

  it('holds that backup alone, and is taken over by another site that trusts its key', async () => {
    const [one, two] = [await put('one'), await put('two')];
    await write('monday', [one]);
    await write('tuesday', [two]);
    await using archive = await exported('monday');
    expect(await archive.listIds()).toEqual(['monday']);
    const site = await BackupStore.open(await FolderStorage.open(pathOf('', 'site')), {
      signatures: { own: stranger, trusted: [own] },
    });
    await using lock = await site.lock({ kind: 'shared', id: 'import' });
    for (const _ of ['once', 'again'])
      expect(await site.copyFrom(archive, 'monday', lock)).toMatchObject({ id: 'monday', importedFrom: own.keyId });
    expect((await site.index()).has(one)).toBe(true);
    expect((await site.index()).has(two)).toBe(false);
    expect((await site.readSigned('monday')).signature).toEqual({ state: 'trusted', keyId: own.keyId });
  });

  it('is not made of a backup that lacks a blob', async () => {
    const one = await put('one');
    await write('monday', [one]);
    await store.setAside(await store.index(), one);
    await expect(store.filesOf('monday')).rejects.toMatchObject({ code: 'backup_incomplete' });
  });

  it('ends with what reading the store failed with', async () => {
    const failure = new AppError('backup_target_unavailable');
    const broken = new Proxy(store.storage, {
      get: (target, key) =>
        key === 'read'
          ? () =>
              new Readable({
                read() {
                  this.destroy(failure);
                },
              })
          : (Reflect.get(target, key) as unknown),
    });
    const files = [{ name: 'ID', size: 37, modifiedAt: 0 }];
    await expect(writeTar(broken, files).toArray()).rejects.toBe(failure);
  });
});
