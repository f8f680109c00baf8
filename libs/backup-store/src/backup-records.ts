/**
 * The records of a backup store: who vouches for them is looked at before anything of them is parsed. Format:
 * docs/design/backup-format.md
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import {
  type BackupRecord,
  isBackupId,
  maxBackupRecordBytes,
  parseBackupRecord,
} from '@airdock/core/oci/backup-record';
import { digestHex, digestOf } from '@airdock/core/oci/digest';
import type { BackupStorage, StoredFile } from './backup-storage.js';
import {
  checkSignature,
  formatSignature,
  isTrusted,
  maxSignatureBytes,
  type RecordKeys,
  type RecordSignature,
} from './record-signature.js';

const maxRecords = 10_000;
const maxCountedSequence = 1_000_000_000;

/** Whose records are read, and who signs new ones. */
export interface RecordOptions {
  /** Signs new records, and says whose are read. Default: none is signed, and all are read. */
  signatures?: RecordKeys | undefined;
  /**
   * The shared secret that records were signed with before there were keys; one that it fits counts as signed by this
   * site.
   */
  hmacKey?: Uint8Array | undefined;
}

/** What is read. */
export interface ReadOptions {
  /** Also what nobody known here has signed. What is signed wrongly is never read. Default false. */
  allowUnsigned?: boolean | undefined;
}

/** A record, and who says so. */
export interface SignedRecord {
  record: BackupRecord;
  signature: RecordSignature;
}

/** What `listRecords` found under one id. */
export type ListedRecord =
  | ({ id: string; error?: undefined } & SignedRecord)
  | { id: string; record?: undefined; error: AppError };

/** Those that lie in a storage now. */
export class BackupRecords {
  constructor(
    readonly storage: BackupStorage,
    private readonly keys: RecordOptions,
  ) {}

  /** As `readSigned`, without who says so. */
  async readRecord(id: string, options: ReadOptions = {}): Promise<BackupRecord> {
    return (await this.readSigned(id, options)).record;
  }

  /**
   * Reads a record, and says who vouches for it, which is looked at before anything of it is parsed. Throws
   * `resource_not_found`, `backup_corrupt`, `backup_format_unsupported`, `backup_signature_wrong`, and without
   * `allowUnsigned` `backup_unsigned` and `backup_signer_unknown`. Blobs are not looked at.
   */
  async readSigned(id: string, { allowUnsigned = false }: ReadOptions = {}): Promise<SignedRecord> {
    const bytes = await this.readBytes(id);
    const signature = await this.signatureOf(id, bytes);
    if (!allowUnsigned) this.expectSigned(id, signature);
    const record = parseBackupRecord(bytes, id);
    const { signatures } = this.keys;
    const { importedFrom } = record;
    if (!signatures || signature.state !== 'own' || importedFrom === undefined || importedFrom === signatures.own.keyId)
      return { record, signature };
    const isStillTrusted = signatures.trusted.some(({ keyId }) => keyId === importedFrom);
    const ofOrigin: RecordSignature = { state: isStillTrusted ? 'trusted' : 'unknown', keyId: importedFrom };
    if (!allowUnsigned) this.expectSigned(id, ofOrigin);
    return { record, signature: ofOrigin };
  }

  /** Those of a record, which have their checksum. */
  private async readBytes(id: string): Promise<Buffer> {
    const name = recordName(id);
    const corrupt = (detail: string) =>
      new AppError('backup_corrupt', { detail: `the record of backup ${id} ${detail}` });
    const file = await this.storage.stat(name);
    if (!file) throw new AppError('resource_not_found', { detail: `the store has no backup ${id}` });
    if (file.size > maxBackupRecordBytes) throw corrupt(`has ${file.size} bytes`);
    const bytes = await readAtMost(this.storage.read(name), maxBackupRecordBytes);
    const checksum = (await readSmall(this.storage, `${name}.sha256`, 1024))?.toString('utf8').slice(0, 64);
    if (checksum !== digestHex(digestOf(bytes))) throw corrupt('does not have its checksum');
    return bytes;
  }

  /** Looks at the signatures of all records, and at nothing else of them. Throws as `readSigned`. */
  async expectSignatures({ allowUnsigned = false }: ReadOptions = {}): Promise<void> {
    for (const id of await this.listIds()) {
      const bytes = await readSmall(this.storage, recordName(id), maxBackupRecordBytes);
      const signature = bytes && (await this.signatureOf(id, bytes));
      if (signature && !allowUnsigned) this.expectSigned(id, signature);
    }
  }

  /**
   * Signs a record that was written before there were keys, if the shared secret of that time or `isOurs` vouches for
   * it: the very bytes that were judged, whatever the store shows a moment later. Returns whether it is signed now.
   * Throws as `readSigned`.
   */
  async signAsOwn(id: string, isOurs: (record: BackupRecord) => boolean): Promise<boolean> {
    const { signatures } = this.keys;
    if (!signatures) return false;
    const bytes = await this.readBytes(id);
    const { state, keyId } = await this.signatureOf(id, bytes);
    if (keyId !== null) return state === 'own';
    if (state !== 'own' && !isOurs(parseBackupRecord(bytes, id))) return false;
    await this.storage.write(`${recordName(id)}.sig`, formatSignature(signatures.own, bytes));
    return true;
  }

  /** Throws `backup_signature_wrong`. */
  private async signatureOf(id: string, bytes: Buffer): Promise<RecordSignature> {
    const name = recordName(id);
    const { signatures, hmacKey } = this.keys;
    const stored = await readSmall(this.storage, `${name}.sig`, maxSignatureBytes);
    if (stored && signatures) return checkSignature(signatures, id, bytes, stored);
    const former = hmacKey && (await readSmall(this.storage, `${name}.hmac`, 1024))?.toString('utf8').trim();
    if (hmacKey && former !== undefined) {
      const expected = hmacOf(bytes, hmacKey);
      if (former.length === expected.length && timingSafeEqual(Buffer.from(former), Buffer.from(expected)))
        return { state: 'own', keyId: null };
      throw new AppError('backup_signature_wrong', {
        detail: `the signature of backup ${id} was not made with the key of airdock.backup.signingKeyFile`,
        backupId: id,
      });
    }
    return { state: 'unsigned', keyId: null };
  }

  private expectSigned(id: string, signature: RecordSignature): void {
    if (!this.keys.signatures || isTrusted(signature)) return;
    if (signature.state === 'unsigned') throw new AppError('backup_unsigned', { detail: `backup ${id}`, backupId: id });
    throw new AppError('backup_signer_unknown', {
      detail: `backup ${id} is signed by ${signature.keyId}`,
      backupId: id,
      keyId: signature.keyId,
    });
  }

  /** Where a record lies, how large and how old it is; undefined when there is none. */
  recordFile(id: string): Promise<StoredFile | undefined> {
    return this.storage.stat(recordName(id));
  }

  /** The ids of all backups, in order. Throws `backup_store_unsafe` for more than anybody has. */
  async listIds(): Promise<string[]> {
    const ids: string[] = [];
    for await (const { name } of this.storage.list('backups')) {
      const [, id] = /^backups\/([^/]+)\.json$/.exec(name) ?? [];
      if (id && isBackupId(id)) ids.push(id);
      if (ids.length > maxRecords)
        throw new AppError('backup_store_unsafe', {
          detail: `${this.storage.location} has more than ${maxRecords} records`,
        });
    }
    return ids.sort();
  }

  /** All backups by id; one that cannot be read does not hide the others. */
  async listRecords(options: ReadOptions = {}): Promise<ListedRecord[]> {
    const records: ListedRecord[] = [];
    for (const id of await this.listIds()) {
      try {
        records.push({ id, ...(await this.readSigned(id, options)) });
      } catch (error) {
        // One that was deleted meanwhile is none.
        if (!(await this.storage.stat(recordName(id)))) continue;
        if (!(error instanceof AppError) || error.family === 'unavailable') throw error;
        records.push({ id, error });
      }
    }
    return records;
  }

  /** For the next backup. Two that end at once may get the same. */
  async nextSequence(): Promise<number> {
    const sequences = await Promise.all(
      (await this.listIds()).map(async (id) => {
        // It is among the first lines.
        const start = await readStart(this.storage, recordName(id), 2048);
        const sequence = Number(/"sequence": (\d{1,13}),/.exec(start)?.[1] ?? 0);
        // Nobody has made so many: a record that says so would take the room of those that come after it.
        return sequence > maxCountedSequence ? 0 : sequence;
      }),
    );
    return Math.max(0, ...sequences) + 1;
  }

  /** Removes a backup, not its blobs. False when there is none. */
  async deleteRecord(id: string): Promise<boolean> {
    const name = recordName(id);
    const existed = (await this.storage.stat(name)) !== undefined;
    for (const suffix of ['', '.sha256', ...signatureFiles]) await this.storage.remove(`${name}${suffix}`);
    return existed;
  }
}

/** Throws `resource_not_found` for what is no id. */
export function recordName(id: string): string {
  if (!isBackupId(id)) throw new AppError('resource_not_found', { detail: 'this is no backup id' });
  return `backups/${id}.json`;
}

/** Beside a record; of the two there is one at most that counts. */
export const signatureFiles: readonly string[] = ['.sig', '.hmac'];

const hmacOf = (bytes: Uint8Array, key: Uint8Array): string => createHmac('sha256', key).update(bytes).digest('hex');

/** A small file; undefined when it is not there. */
export async function readSmall(storage: BackupStorage, name: string, maxBytes: number): Promise<Buffer | undefined> {
  return (await storage.stat(name)) && readAtMost(storage.read(name), maxBytes);
}

/** The first bytes of a file, at least so many where it has them; empty when it is not there any more. */
async function readStart(storage: BackupStorage, name: string, bytes: number): Promise<string> {
  const content = storage.read(name);
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of content) {
      chunks.push(chunk as Buffer);
      if (Buffer.concat(chunks).byteLength >= bytes) break;
    }
  } catch (error) {
    if (await storage.stat(name)) throw error;
  } finally {
    content.destroy();
  }
  return Buffer.concat(chunks).toString('utf8');
}

/** All bytes of a stream. Throws `backup_corrupt` when there are more. */
export async function readAtMost(content: Readable, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of content) {
    size += (chunk as Buffer).byteLength;
    if (size > maxBytes)
      throw new AppError('backup_corrupt', { detail: `a file of the store has more than ${maxBytes} bytes` });
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks);
}
