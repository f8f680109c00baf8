import { isDeepStrictEqual } from 'node:util';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { formatName } from '@airdock/core/oci/reference';
import type { BackupEntity } from './backup.entity.js';

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
