import { isDeepStrictEqual } from 'node:util';
import type { RecordSignature } from '@airdock/backup-store/record-signature';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { formatName } from '@airdock/core/oci/reference';
import { now } from '@airdock/platform/database';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import type { BackupEntity } from './backup.entity.js';
import type { Backup } from './backup.schema.js';

/** What the row of a backup keeps of its record. */
export const summaryOf = ({ references, totalBytes, settings }: BackupRecord) => ({
  images: references.length,
  sizeBytes: String(totalBytes),
  hasSettings: settings.length > 0,
});

/** What the record of a backup says of its selection; null for everything. */
export const patternsOf = ({ repositories, imageSetId }: BackupEntity): string[] | null =>
  repositories ?? (imageSetId ? [`image set ${imageSetId}`] : null);

/** Whether a record without a signature says what is known of that backup, name by name. */
export function isAsKnown(record: BackupRecord, row: BackupEntity, known: ReadonlyMap<string, string>): boolean {
  const { images, sizeBytes, hasSettings } = summaryOf(record);
  const names = record.references.map((reference) => [formatName(reference), reference.digest] as const);
  return (
    !hasSettings &&
    !row.hasSettings &&
    images === row.images &&
    sizeBytes === row.sizeBytes &&
    (record.description ?? null) === row.description &&
    isDeepStrictEqual(record.repositories ?? null, patternsOf(row)) &&
    new Set(names.map(([name]) => name)).size === names.length &&
    names.every(([name, digest]) => known.get(name) === digest)
  );
}

/** The row of a backup of which nothing is known yet. */
export const emptyRow = (id: string, target: string): BackupEntity => ({
  id,
  target,
  description: null,
  repositories: null,
  imageSetId: null,
  scheduleId: null,
  images: null,
  sizeBytes: null,
  addedBytes: null,
  skipped: null,
  hasSettings: false,
  jobId: null,
  createdAt: now(),
  completedAt: null,
  verifiedAt: null,
  damaged: null,
  signedBy: null,
  isMissing: false,
});

/** Stands for the secret of airdock.backup.signingKeyFile, which has no name. */
const sharedSecret = 'shared secret';

/** The key that the row names as the signer; null without a signature. */
export const signedBy = ({ state, keyId }: RecordSignature): string | null =>
  state === 'unsigned' ? null : (keyId ?? sharedSecret);

/** Whose signature a complete backup has, as far as this service knows the keys now. */
export function signatureOf(
  { completedAt, signedBy: keyId }: BackupEntity,
  { own, trusted }: { own: { keyId: string }; trusted: readonly { keyId: string }[] },
): Backup['signature'] {
  if (completedAt === null) return null;
  if (keyId === null) return { state: 'unsigned', keyId };
  if (keyId === sharedSecret) return { state: 'own', keyId: null };
  if (keyId === own.keyId) return { state: 'own', keyId };
  return { state: trusted.some((key) => key.keyId === keyId) ? 'trusted' : 'unknown', keyId };
}

/** Follows from the row, and while there is no record from its job. */
export function stateOf(
  { completedAt, damaged, isMissing }: BackupEntity,
  job: JobEntity | undefined,
): Backup['state'] {
  if (completedAt && isMissing) return 'missing';
  if (completedAt) return damaged?.length ? 'damaged' : 'complete';
  return job?.state === 'queued' || job?.state === 'running' ? 'running' : 'failed';
}
