/** What somebody with a stick in the hand does to a backup store: no key is needed for any of it. */
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import type { ServiceState } from '@airdock/clients/generated/types.gen';
import type { BackupRecord } from '@airdock/core/oci/backup-record';

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Writes the bytes of a record, with the checksum that they have. */
export async function putRecord(store: string, id: string, bytes: Uint8Array): Promise<void> {
  const file = join(store, 'backups', `${id}.json`);
  await writeFile(`${file}.sha256`, `${sha256(bytes)}  ${id}.json\n`);
  await writeFile(file, bytes);
}

/** Changes a record. What signs it is taken away, or left to be wrong. */
export async function changeRecord(
  store: string,
  id: string,
  change: (record: BackupRecord) => void,
  { keepsSignature = false } = {},
): Promise<void> {
  const file = join(store, 'backups', `${id}.json`);
  const record = JSON.parse(await readFile(file, 'utf8')) as BackupRecord;
  change(record);
  if (!keepsSignature) await rm(`${file}.sig`, { force: true });
  await putRecord(
    store,
    id,
    Buffer.from(JSON.stringify({ ...record, ...(!keepsSignature && { formatVersion: 1 }) }, null, 2)),
  );
}

/** Puts a blob into the store, as zstd where that is asked for, and into the record in place of a service's state. */
export async function putState(
  store: string,
  id: string,
  service: string,
  bytes: Buffer,
  { compressed = false, ...options } = {},
): Promise<void> {
  const hex = sha256(bytes);
  const path = join(store, 'blobs/sha256', hex.slice(0, 2), `${hex}${compressed ? '.zst' : ''}`);
  await mkdir(join(path, '..'), { recursive: true });
  await writeFile(path, compressed ? zstdCompressSync(bytes) : bytes);
  await changeRecord(
    store,
    id,
    (record) => {
      const blob = { digest: `sha256:${hex}` as const, size: bytes.byteLength };
      record.settings = [...record.settings.filter((one) => one.service !== service), { service, ...blob }];
      record.blobs = [...record.blobs.filter(({ digest }) => digest !== blob.digest), blob];
      record.totalBytes = record.blobs.reduce((sum, { size }) => sum + size, 0);
    },
    options,
  );
}

/** Changes what a backup holds of a service. */
export async function changeState(
  store: string,
  id: string,
  service: string,
  change: (state: ServiceState) => void,
  options = {},
): Promise<void> {
  const record = JSON.parse(await readFile(join(store, 'backups', `${id}.json`), 'utf8')) as BackupRecord;
  const digest = record.settings.find((one) => one.service === service)?.digest.slice('sha256:'.length) ?? '';
  const folder = join(store, 'blobs/sha256', digest.slice(0, 2));
  const name = (await readdir(folder)).find((found) => found.startsWith(digest)) ?? '';
  const stored = await readFile(join(folder, name));
  const state = JSON.parse(
    (name.endsWith('.zst') ? zstdDecompressSync(stored) : stored).toString('utf8'),
  ) as ServiceState;
  change(state);
  await putState(store, id, service, Buffer.from(JSON.stringify(state)), options);
}

/** The rows of a table in a state, to be changed in place. */
export function rowsOf(state: ServiceState, table: string): Record<string, unknown>[] {
  const found = state.tables.find(({ name }) => name === table);
  if (!found) throw new Error(`the state of ${state.service} has no ${table}`);
  return found.rows;
}
