/**
 * A store for backups of the registry: content-addressed blobs, and one record per backup. It knows neither the
 * registry nor schedules; `backupRegistry` fills it, `openBackup` reads it as an image source. Format:
 * docs/design/backup-format.md
 */
import { randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import {
  type BackupContent,
  type BackupRecord,
  formatBackupRecord,
  maxBackupRecordBytes,
  parseBackupRecord,
} from '@airdock/core/oci/backup-record';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { createPooledDigest, digestOfFile, hashPieces } from '@airdock/disk/files/hash-pool';
import type { BlobReader } from '@airdock/oci/image/image-source';
import {
  BackupRecords,
  type ReadOptions,
  type RecordOptions,
  readAtMost,
  readSmall,
  recordName,
  signatureFiles,
} from './backup-records.js';
import type { BackupStorage, StoredFile } from './backup-storage.js';
import { decode, type Encoding, type EncryptionKeys, encode, isCompressible } from './blob-encoding.js';
import { formatSignature, isTrusted } from './record-signature.js';
import { type LockOptions, StoreLock } from './store-lock.js';

const version = 'airdock-backup 1\n';

/** A blob that a store has. */
export interface BackupBlob {
  digest: Digest;
  /** Bytes, not encoded. */
  size: number;
}

/** How new blobs and records are encoded and signed. */
export interface BackupStoreOptions extends RecordOptions {
  /** With recipients new blobs are encrypted. */
  keys?: EncryptionKeys | undefined;
  /** Whether new blobs that get smaller by it are compressed. Default true. */
  compress?: boolean | undefined;
  /**
   * Of the store that must be there; else `backup_target_changed`, or `backup_target_unavailable` where there is none
   * at all.
   */
  expectedId?: string | undefined;
  /** Whether empty storage becomes a store. Default true; else `backup_target_unavailable`. */
  create?: boolean | undefined;
}

/** How one blob is brought into a store. */
export interface PutOptions extends BlobOptions {
  /** False for what is known to be compressed. Default true: a look at its first bytes decides. */
  mayCompress?: boolean | undefined;
  /** Bounds how many copies run at a time; waiting for the disk is not bounded by it. */
  limit?: <T>(work: () => Promise<T>) => Promise<T>;
}

/** Who may stop a call, and who hears of its bytes. */
export interface BlobOptions {
  signal?: AbortSignal | undefined;
  /** Called with the number of plain bytes that were just read. */
  onBytes?: ((count: number) => void) | undefined;
}

interface StoredBlob {
  name: string;
  encoding: Encoding;
  /** Bytes as it lies there. */
  size: number;
}

/**
 * What lay in a store at one moment: one listing, in place of a look at each blob. Blobs that are stored through it are
 * added.
 */
export class BlobIndex {
  readonly blobs = new Map<Digest, StoredBlob>();

  /** True when the blob is there, and has its size where that can be told. Its content is not read. */
  has(blob: BackupBlob): boolean {
    return this.find(blob) !== undefined;
  }

  find({ digest, size }: BackupBlob): StoredBlob | undefined {
    const stored = this.blobs.get(digest);
    return stored && (stored.encoding !== '' || stored.size === size) ? stored : undefined;
  }
}

const blobPattern = /^blobs\/sha256\/[0-9a-f]{2}\/([0-9a-f]{64})((?:\.zst)?(?:\.age)?)$/;

const blobName = (digest: Digest, encoding: Encoding): string => {
  const hex = digestHex(digest);
  return `blobs/sha256/${hex.slice(0, 2)}/${hex}${encoding}`;
};

/** Several processes may use one store at a time, when they hold a lock of it: `lock`. */
export class BackupStore extends BackupRecords implements AsyncDisposable {
  private constructor(
    storage: BackupStorage,
    /** Of this store, wherever it is carried. */
    readonly id: string,
    private readonly options: BackupStoreOptions,
  ) {
    super(storage, options);
  }

  /**
   * Opens a store; empty storage becomes one. Throws `backup_format_unsupported` for storage with other content, and
   * for a store of a later version, and `backup_target_changed`, `backup_target_unavailable`.
   */
  static async open(storage: BackupStorage, options: BackupStoreOptions = {}): Promise<BackupStore> {
    const { location } = storage;
    const found = await readSmall(storage, 'VERSION', 1024);
    if (found && found.toString('utf8') !== version)
      throw new AppError('backup_format_unsupported', {
        detail: `${location} says ${JSON.stringify(found.toString('utf8').slice(0, 60))}`,
      });
    if (!found && options.expectedId)
      throw new AppError('backup_target_unavailable', {
        detail: `${location} is empty: the store ${options.expectedId} is not mounted there`,
      });
    if (!found && options.create === false)
      throw new AppError('backup_target_unavailable', { detail: `${location} is no backup store` });
    if (!found) {
      // `lost+found` is what a new file system has; the others are of a process that is at this point now, or was
      // killed here.
      for await (const { name } of storage.list('')) {
        if (!/^(lost\+found|blobs|backups|locks|tmp|ID)(\/|$)/.test(name))
          throw new AppError('backup_format_unsupported', {
            detail: `${location} is no backup store, and it is not empty: ${name}`,
          });
      }
    }
    // Of those who come at once the last one's id stays; the version is written last, and with it the store exists.
    if (options.create !== false && !(await storage.stat('ID')))
      await storage.write('ID', Buffer.from(`${randomUUID()}\n`));
    if (!found) await storage.write('VERSION', Buffer.from(version));
    const id = (await readSmall(storage, 'ID', 1024))?.toString('utf8').trim() ?? '';
    if (!id) throw new AppError('backup_corrupt', { detail: `${location} has no ID` });
    if (options.expectedId && id !== options.expectedId) {
      throw new AppError('backup_target_changed', {
        detail: `${location} has the store ${id}, not ${options.expectedId}`,
        storeId: id,
      });
    }
    return new BackupStore(storage, id, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.storage[Symbol.asyncDispose]();
  }

  /** Has to be held by whoever stores or reads blobs (`shared`) and by whoever prunes (`exclusive`). */
  lock(options: LockOptions): Promise<StoreLock> {
    return StoreLock.acquire(this.storage, options);
  }

  /** What is there now. */
  async index(): Promise<BlobIndex> {
    const index = new BlobIndex();
    for await (const { name, size } of this.storage.list('blobs/sha256')) {
      const [, hex, encoding] = blobPattern.exec(name) ?? [];
      if (hex) index.blobs.set(`sha256:${hex}`, { name, encoding: encoding as Encoding, size });
    }
    return index;
  }

  /**
   * Stores a blob, unless it is there. Only bytes with the right digest get a name: `digest_mismatch`. Throws
   * `space_insufficient`, what reading and the storage throw, and the signal's reason.
   */
  async putBlob(
    index: BlobIndex,
    blob: BackupBlob,
    reader: () => Promise<BlobReader>,
    options: PutOptions = {},
  ): Promise<void> {
    if (index.has(blob)) return;
    const { keys, compress = true } = this.options;
    const { limit = (work) => work() } = options;
    const source = await reader();
    const encoding: Encoding = `${compress && options.mayCompress !== false && (await isCompressible(source)) ? '.zst' : ''}${keys?.recipients.length ? '.age' : ''}`;
    const name = blobName(blob.digest, encoding);
    const former = index.blobs.get(blob.digest);
    if (encoding === '' && this.storage.place) await this.storage.place(name, blob, async () => source, options);
    else
      await limit(async () => {
        const plain = Readable.from(verifiedChunks(blob, source.open(), options), { objectMode: false });
        const content = encoding === '' ? plain : encode(plain, encoding, keys ?? { recipients: [], identities: [] });
        await this.storage.write(name, content, { signal: options.signal, sizeHint: blob.size });
      });
    index.blobs.set(blob.digest, { name, encoding, size: encoding === '' ? blob.size : 0 });
    // Of another size, and perhaps encoded in another way.
    if (former && former.name !== name) await this.storage.remove(former.name);
  }

  /**
   * A blob for reading; its content is verified by the consumer. Throws `backup_incomplete`; its streams end with
   * `backup_corrupt`, `backup_key_missing`.
   */
  openBlob(index: BlobIndex, blob: BackupBlob): BlobReader {
    const stored = index.find(blob);
    if (!stored) throw incomplete(blob, index.blobs.get(blob.digest)?.size);
    const { name, encoding } = stored;
    const plain = encoding === '';
    const open: BlobReader['open'] = ({ start } = { start: 0 }) => {
      if (plain) return this.storage.read(name, { start });
      const content = decode(
        this.storage.read(name),
        encoding,
        this.options.keys ?? { recipients: [], identities: [] },
      );
      return start === 0 ? content : Readable.from(skip(content, start), { objectMode: false });
    };
    const path = plain ? this.storage.pathOf?.(name) : undefined;
    return { size: blob.size, open, ...(path !== undefined && { file: { path, offset: 0 } }) };
  }

  /** A small blob in memory, verified. Throws `backup_incomplete`, `backup_corrupt`, `backup_key_missing`. */
  async readBlob(index: BlobIndex, blob: BackupBlob, maxBytes: number): Promise<Buffer> {
    if (blob.size > maxBytes) throw corruptBlob(blob.digest, `${blob.size} bytes`);
    const bytes = await readAtMost(this.openBlob(index, blob).open(), maxBytes);
    const actual = digestOf(bytes);
    if (actual !== blob.digest) throw corruptBlob(blob.digest, `the digest ${actual}`);
    return bytes;
  }

  /**
   * Reads a blob to its end. Throws `backup_incomplete` when it is missing, `backup_corrupt` when it is damaged,
   * `backup_key_missing`.
   */
  async verifyBlob(index: BlobIndex, blob: BackupBlob, { signal, onBytes }: BlobOptions = {}): Promise<void> {
    const { file, open } = this.openBlob(index, blob);
    const actual = file
      ? await digestOfFile(file.path, { signal, onBytes })
      : await digestOfStream(atMost(open(), blob), { signal, onBytes });
    if (actual !== blob.digest) throw corruptBlob(blob.digest, `the digest ${actual}`);
  }

  /**
   * Takes a damaged blob out, so that the next backup brings it again; the bytes stay in `damaged/` to be looked at.
   */
  async setAside(index: BlobIndex, { digest }: BackupBlob): Promise<void> {
    const stored = index.blobs.get(digest);
    if (!stored) return;
    await this.storage.move(stored.name, `damaged/${stored.name.split('/').at(-1)}`);
    index.blobs.delete(digest);
  }

  /**
   * Makes a backup exist, after looking that all of its blobs are there: `backup_incomplete`. Writing the same record
   * again does nothing; another one under the same id is refused with `resource_exists`. `index`: younger than the lock
   * which is held, with what was stored through it; without a lock that is still held nobody knows what is there.
   */
  async writeRecord(
    content: BackupContent,
    {
      index: known,
      lock,
      isSigned = true,
    }: { index?: BlobIndex; lock?: StoreLock | undefined; isSigned?: boolean } = {},
  ): Promise<BackupRecord> {
    const name = recordName(content.id);
    const signing = isSigned ? this.options.signatures?.own : undefined;
    const bytes = formatBackupRecord(content, signing ? 2 : 1);
    const record = parseBackupRecord(bytes, content.id);
    const index = known ?? (await this.index());
    for (const blob of record.blobs) if (!index.has(blob)) throw incomplete(blob);
    const existing = await readSmall(this.storage, name, maxBackupRecordBytes);
    if (existing?.equals(bytes)) return record;
    if (existing) throw new AppError('resource_exists', { detail: `there is a backup ${content.id}` });
    lock?.assertHeld();
    // What lies there is of a record that was removed.
    if (signing) await this.storage.write(`${name}.sig`, formatSignature(signing, bytes));
    else await this.storage.remove(`${name}.sig`);
    await this.storage.write(`${name}.sha256`, Buffer.from(`${digestHex(digestOf(bytes))}  ${content.id}.json\n`));
    await this.storage.write(name, bytes);
    return record;
  }

  /**
   * The files that are a store with this backup alone, its record first, and the bytes of all. Throws
   * `backup_incomplete` when a blob is missing.
   */
  async filesOf(id: string): Promise<StoredFile[]> {
    const record = await this.readRecord(id, { allowUnsigned: true });
    const index = await this.index();
    const name = recordName(id);
    const names = ['VERSION', 'ID', name, `${name}.sha256`, ...signatureFiles.map((suffix) => `${name}${suffix}`)];
    for (const blob of record.blobs) {
      const stored = index.find(blob);
      if (!stored) throw incomplete(blob);
      names.push(stored.name);
    }
    const files: StoredFile[] = [];
    for (const each of names) {
      const file = await this.storage.stat(each);
      if (file) files.push(file);
      else if (!signatureFiles.some((suffix) => each.endsWith(suffix)))
        throw new AppError('backup_incomplete', { detail: `${each} is missing` });
    }
    return files;
  }

  /**
   * Takes a backup over from another store, blob by blob, verified. Idempotent. Throws `backup_corrupt`,
   * `backup_incomplete`.
   */
  async copyFrom(
    other: BackupStore,
    id: string,
    lock: StoreLock,
    options: BlobOptions & ReadOptions = {},
  ): Promise<BackupRecord> {
    const { record, signature } = await other.readSigned(id, options);
    const [from, to] = [await other.index(), await this.index()];
    for (const blob of record.blobs) {
      options.signal?.throwIfAborted();
      await this.putBlob(to, blob, async () => other.openBlob(from, blob), options).catch((error: unknown) => {
        // Reading it again would not help.
        throw error instanceof AppError && error.code === 'digest_mismatch'
          ? corruptBlob(blob.digest, 'other bytes')
          : error;
      });
    }
    // It is the newest here, however many the other store had.
    const own = await this.readRecord(id, options).catch(() => undefined);
    // Signed by this site from here on, as far as somebody known has signed it; whose it was stays written in it.
    const importedFrom = signature.state === 'trusted' ? (signature.keyId ?? undefined) : record.importedFrom;
    return (
      own ??
      this.writeRecord(
        { ...record, importedFrom, sequence: await this.nextSequence() },
        { lock, isSigned: isTrusted(signature) },
      )
    );
  }

  /**
   * What no backup needs, but for the ids in `without`, as if those were deleted. Throws the error of any record that
   * cannot be read: what it needs is not known.
   */
  async findUnneeded(without: ReadonlySet<string> = new Set()): Promise<StoredBlob[]> {
    const needed = new Set<Digest>();
    for (const { id, record, error } of await this.listRecords({ allowUnsigned: true })) {
      if (error) throw error;
      if (!without.has(id)) for (const { digest } of record.blobs) needed.add(digest);
    }
    return [...(await this.index()).blobs].filter(([digest]) => !needed.has(digest)).map(([, blob]) => blob);
  }

  /**
   * Removes the largest blob that no backup needs, from a storage without room for a lock. Whoever relies on blobs has
   * had room for his: `backup_store_busy`; and whoever gets it now looks at what is there afterwards. False when there
   * is no such blob.
   */
  async removeWithoutLock(): Promise<boolean> {
    const [largest] = (await this.findUnneeded()).sort((a, b) => b.size - a.size);
    if (!largest) return false;
    for await (const { name } of this.storage.list('locks'))
      if (name.endsWith('.json'))
        throw new AppError('backup_store_busy', { detail: `there is no room for a lock, and ${name} is there` });
    await this.storage.remove(largest.name);
    return true;
  }

  /** Removes blobs that no backup needs, and what killed writers left. The lock must be exclusive. */
  async prune(
    lock: StoreLock,
    { signal, onBlob }: { signal?: AbortSignal | undefined; onBlob?: (done: number, total: number) => void } = {},
  ): Promise<Pruned> {
    const unneeded = await this.findUnneeded();
    const pruned: Pruned = { blobs: 0, bytes: 0 };
    for (const { name, size } of unneeded) {
      signal?.throwIfAborted();
      lock.assertHeld();
      await this.storage.remove(name);
      pruned.blobs += 1;
      pruned.bytes += size;
      onBlob?.(pruned.blobs, unneeded.length);
    }
    lock.assertHeld();
    pruned.bytes += await this.storage.sweep();
    return pruned;
  }
}

/** What a prune has freed. */
export interface Pruned {
  blobs: number;
  /** As they lay there, with unfinished files. */
  bytes: number;
}

const incomplete = ({ digest, size }: { digest: Digest; size?: number }, found?: number) =>
  new AppError('backup_incomplete', {
    detail: `blob ${digest} ${found === undefined ? 'is missing' : `has ${found} bytes instead of ${size}`}`,
    digest,
  });
const corruptBlob = (digest: Digest, found: string) =>
  new AppError('backup_corrupt', { detail: `blob ${digest} has ${found}`, digest });

/** What was compressed may go on for ever. */
async function* atMost(content: Readable, { digest, size }: BackupBlob): AsyncGenerator<Buffer> {
  let bytes = 0;
  for await (const chunk of content as AsyncIterable<Buffer>) {
    bytes += chunk.byteLength;
    if (bytes > size) throw corruptBlob(digest, `more than ${size} bytes`);
    yield chunk;
  }
}

async function digestOfStream(content: AsyncIterable<Buffer>, options: BlobOptions): Promise<Digest> {
  const digest = createPooledDigest();
  const look = hashPieces(digest, options);
  for await (const chunk of content) await look(chunk);
  return digest.value();
}

/** Fails instead of ending when the bytes are not those of the digest. */
async function* verifiedChunks(
  { digest, size }: BackupBlob,
  content: Readable,
  options: BlobOptions,
): AsyncGenerator<Uint8Array> {
  const running = createPooledDigest();
  const look = hashPieces(running, options);
  let count = 0;
  for await (const chunk of content as AsyncIterable<Buffer>) {
    await look(chunk);
    count += chunk.byteLength;
    if (count > size) break;
    yield chunk;
  }
  const actual = await running.value();
  if (count === size && actual === digest) return;
  throw new AppError('digest_mismatch', {
    detail: `${digest}: ${count === size ? `the content has the digest ${actual}` : `${count} bytes instead of ${size}`}`,
    digest,
  });
}

async function* skip(content: Readable, start: number): AsyncGenerator<Uint8Array> {
  let left = start;
  for await (const chunk of content as AsyncIterable<Buffer>) {
    if (chunk.byteLength > left) yield chunk.subarray(left);
    left = Math.max(0, left - chunk.byteLength);
  }
}
