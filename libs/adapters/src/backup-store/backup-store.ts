/**
 * A store for backups of the registry: content-addressed files in a folder, and one record per backup. It knows neither the registry nor
 * schedules; `backupRegistry` fills it, `openBackup` reads it as an image source. Format: docs/design/backup-format.md
 */

import { createHmac, timingSafeEqual } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, readdir, readFile, rm, stat, statfs, unlink, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { type BackupRecord, formatBackupRecord, isBackupId, maxBackupRecordBytes, parseBackupRecord } from '@airdock/core/oci/backup-record';
import { createDigest, type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { syncFolder, writeDurably } from '../oci-client/durable-file.js';
import type { BlobReader } from '../oci-client/image-source.js';

const version = 'airdock-backup 1\n';
/** Younger blobs may belong to a backup that is still running. */
const pruneAgeMs = 24 * 60 * 60 * 1000;

export interface BackupBlob {
  digest: Digest;
  /** Bytes. */
  size: number;
}

export interface BackupStoreOptions {
  /** Signs new records, and requires the signature of those that are read. Default: neither. */
  hmacKey?: Uint8Array | undefined;
}

/** What `listRecords` found under one id. */
export type ListedRecord = { id: string; record: BackupRecord; error?: undefined } | { id: string; record?: undefined; error: AppError };

const isMissing = (error: unknown): boolean => error instanceof Error && 'code' in error && error.code === 'ENOENT';

async function readOrUndefined(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** Several processes may use one store at a time. */
export class BackupStore {
  private constructor(
    /** The store's folder. */
    readonly dir: string,
    private readonly options: BackupStoreOptions,
  ) {}

  /**
   * Opens a store; an empty or missing folder becomes one. Throws `backup_format_unsupported` for a folder with other content, and for a
   * store of a later version.
   */
  static async open(dir: string, options: BackupStoreOptions = {}): Promise<BackupStore> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const path = join(dir, 'VERSION');
    const found = await readOrUndefined(path);
    if (found === undefined) {
      // `lost+found` is what a new file system has; the others are of a process that is at this point now, or was killed here.
      const others = (await readdir(dir)).filter((name) => !['lost+found', 'blobs', 'backups', 'tmp'].includes(name));
      if (others.length > 0) throw new AppError('backup_format_unsupported', { detail: `${dir} is no backup store, and it is not empty` });
      for (const folder of ['blobs/sha256', 'backups', 'tmp']) await mkdir(join(dir, folder), { recursive: true });
      await writeDurably(path, Buffer.from(version), { tmpDir: join(dir, 'tmp') });
    } else if (found.toString('utf8') !== version) {
      throw new AppError('backup_format_unsupported', { detail: `${dir} says ${JSON.stringify(found.toString('utf8').slice(0, 60))}` });
    }
    return new BackupStore(dir, options);
  }

  #blobPath(digest: Digest): string {
    const hex = digestHex(digest);
    return join(this.dir, 'blobs', 'sha256', hex.slice(0, 2), hex);
  }

  #recordPath(id: string): string {
    if (!isBackupId(id)) throw new AppError('resource_not_found', { detail: 'this is no backup id' });
    return join(this.dir, 'backups', `${id}.json`);
  }

  /** True when the blob is there with its size; then it is safe from `prune` for a day. Its content is not read. */
  async hasBlob({ digest, size }: BackupBlob): Promise<boolean> {
    const path = this.#blobPath(digest);
    const status = await stat(path).catch(() => undefined);
    if (status?.size !== size) return false;
    const now = new Date();
    await utimes(path, now, now);
    return true;
  }

  /**
   * Stores a blob, unless it is there. The stream is destroyed in any case. Only bytes with the right digest get a name: `digest_mismatch`.
   * Throws `space_insufficient`, what the stream throws, and the signal's reason.
   */
  async putBlob(blob: BackupBlob, content: Readable, signal?: AbortSignal): Promise<'stored' | 'present'> {
    try {
      if (await this.hasBlob(blob)) return 'present';
      const verified = Readable.from(verifiedChunks(blob, content), { objectMode: false });
      await writeDurably(this.#blobPath(blob.digest), verified, { signal, tmpDir: join(this.dir, 'tmp') });
      return 'stored';
    } finally {
      content.destroy();
    }
  }

  /** A blob for reading; its content is verified by the consumer. Throws `backup_incomplete`. */
  async openBlob(blob: BackupBlob): Promise<BlobReader> {
    const path = this.#blobPath(blob.digest);
    const status = await stat(path).catch(() => undefined);
    if (status?.size !== blob.size) throw incomplete(blob, status?.size);
    return { size: status.size, open: ({ start } = { start: 0 }) => createReadStream(path, { start, highWaterMark: 1024 * 1024 }) };
  }

  /** A small blob in memory, verified. Throws `backup_incomplete` and `backup_corrupt`. */
  async readBlob(digest: Digest, maxBytes: number): Promise<Buffer> {
    const path = this.#blobPath(digest);
    const status = await stat(path).catch(() => undefined);
    if (!status) throw incomplete({ digest });
    if (status.size > maxBytes) throw corruptBlob(digest, `${status.size} bytes`);
    const bytes = await readFile(path);
    const actual = digestOf(bytes);
    if (actual !== digest) throw corruptBlob(digest, `the digest ${actual}`);
    return bytes;
  }

  /** Reads a blob to its end. Throws `backup_incomplete` when it is missing, `backup_corrupt` when it is damaged. */
  async verifyBlob(blob: BackupBlob, signal?: AbortSignal): Promise<void> {
    const digest = createDigest();
    for await (const chunk of (await this.openBlob(blob)).open()) {
      signal?.throwIfAborted();
      digest.update(chunk as Buffer);
    }
    const actual = digest.value();
    if (actual !== blob.digest) throw corruptBlob(blob.digest, `the digest ${actual}`);
  }

  /** Bytes that can still be written. */
  async freeBytes(): Promise<number> {
    const { bavail, bsize } = await statfs(this.dir);
    return bavail * bsize;
  }

  /**
   * Makes a backup exist, after looking that all of its blobs are there: `backup_incomplete`. Writing the same record again does nothing; another
   * one under the same id is refused with `resource_exists`.
   */
  async writeRecord(content: Omit<BackupRecord, 'formatVersion' | 'totalBytes'>): Promise<BackupRecord> {
    const path = this.#recordPath(content.id);
    const bytes = formatBackupRecord(content);
    const record = parseBackupRecord(bytes, content.id);
    for (const blob of record.blobs) if (!(await this.hasBlob(blob))) throw incomplete(blob);
    const existing = await readOrUndefined(path);
    if (existing?.equals(bytes)) return record;
    if (existing) throw new AppError('resource_exists', { detail: `there is a backup ${content.id}` });
    const options = { tmpDir: join(this.dir, 'tmp') };
    if (this.options.hmacKey) await writeDurably(`${path}.hmac`, Buffer.from(`${this.#sign(bytes, this.options.hmacKey)}\n`), options);
    await writeDurably(`${path}.sha256`, Buffer.from(`${digestHex(digestOf(bytes))}  ${content.id}.json\n`), options);
    await writeDurably(path, bytes, options);
    return record;
  }

  #sign(bytes: Uint8Array, key: Uint8Array): string {
    return createHmac('sha256', key).update(bytes).digest('hex');
  }

  /** Throws `resource_not_found`, `backup_corrupt`, `backup_format_unsupported`. Blobs are not looked at. */
  async readRecord(id: string): Promise<BackupRecord> {
    const path = this.#recordPath(id);
    const size = await stat(path).then(
      (status) => status.size,
      (cause: unknown) => {
        throw new AppError('resource_not_found', { detail: `the store has no backup ${id}` }, { cause });
      },
    );
    const corrupt = (detail: string) => new AppError('backup_corrupt', { detail: `the record of backup ${id} ${detail}` });
    if (size > maxBackupRecordBytes) throw corrupt(`has ${size} bytes`);
    const bytes = await readFile(path);
    const checksum = (await readOrUndefined(`${path}.sha256`))?.toString('utf8').slice(0, 64);
    if (checksum !== digestHex(digestOf(bytes))) throw corrupt('does not have its checksum');
    if (this.options.hmacKey) {
      const signature = (await readOrUndefined(`${path}.hmac`))?.toString('utf8').trim() ?? '';
      const expected = this.#sign(bytes, this.options.hmacKey);
      if (signature.length !== expected.length || !timingSafeEqual(Buffer.from(signature), Buffer.from(expected))) throw corrupt('is not signed with the key');
    }
    return parseBackupRecord(bytes, id);
  }

  /** All backups by id; one that cannot be read does not hide the others. */
  async listRecords(): Promise<ListedRecord[]> {
    const names = await readdir(join(this.dir, 'backups'));
    const ids = names.filter((name) => name.endsWith('.json')).map((name) => name.slice(0, -'.json'.length));
    return Promise.all(
      ids
        .filter(isBackupId)
        .sort()
        .map((id) =>
          this.readRecord(id).then(
            (record): ListedRecord => ({ id, record }),
            (error: unknown): ListedRecord => ({ id, error: error instanceof AppError ? error : new AppError('internal_error', {}, { cause: error }) }),
          ),
        ),
    );
  }

  /** Removes a backup, not its blobs. False when there is none. */
  async deleteRecord(id: string): Promise<boolean> {
    const path = this.#recordPath(id);
    const existed = await unlink(path).then(
      () => true,
      (error: unknown) => {
        if (isMissing(error)) return false;
        throw error;
      },
    );
    for (const companion of ['.sha256', '.hmac']) await rm(`${path}${companion}`, { force: true });
    await syncFolder(join(this.dir, 'backups'));
    return existed;
  }

  /**
   * Removes blobs that no backup needs, and what killed writers left, when older than `minAgeMs` (default a day). Throws the error of any record that
   * cannot be read, and removes nothing then.
   */
  async prune({ minAgeMs = pruneAgeMs, signal }: { minAgeMs?: number; signal?: AbortSignal | undefined } = {}): Promise<{ blobs: number; bytes: number }> {
    const needed = new Set<string>();
    for (const { record, error } of await this.listRecords()) {
      if (error) throw error;
      for (const { digest } of record.blobs) needed.add(digestHex(digest));
    }
    const newest = Date.now() - minAgeMs;
    const removed = { blobs: 0, bytes: 0 };
    const root = join(this.dir, 'blobs', 'sha256');
    for (const folder of [...(await readdir(root)).map((name) => join(root, name)), join(this.dir, 'tmp')]) {
      for (const name of await readdir(folder)) {
        signal?.throwIfAborted();
        if (needed.has(name)) continue;
        const status = await stat(join(folder, name)).catch(() => undefined);
        if (!status?.isFile() || status.mtimeMs > newest) continue;
        await rm(join(folder, name), { force: true });
        removed.blobs += 1;
        removed.bytes += status.size;
      }
    }
    return removed;
  }
}

const incomplete = ({ digest, size }: { digest: Digest; size?: number }, found?: number) =>
  new AppError('backup_incomplete', { detail: `blob ${digest} ${found === undefined ? 'is missing' : `has ${found} bytes instead of ${size}`}`, digest });
const corruptBlob = (digest: Digest, found: string) => new AppError('backup_corrupt', { detail: `blob ${digest} has ${found}`, digest });

/** Fails instead of ending when the bytes are not those of the digest. */
async function* verifiedChunks({ digest, size }: BackupBlob, content: Readable): AsyncGenerator<Uint8Array> {
  const running = createDigest();
  let count = 0;
  for await (const chunk of content as AsyncIterable<Uint8Array>) {
    running.update(chunk);
    count += chunk.byteLength;
    if (count > size) break;
    yield chunk;
  }
  const actual = running.value();
  if (count === size && actual === digest) return;
  throw new AppError('digest_mismatch', {
    detail: `${digest}: ${count === size ? `the content has the digest ${actual}` : `${count} bytes instead of ${size}`}`,
    digest,
  });
}
