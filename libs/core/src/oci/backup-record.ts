import { z } from 'zod';
import { AppError } from '../errors.js';
import { type Digest, isDigest } from './digest.js';
import { isManifestMediaType } from './manifest.js';
import { isRepository, isTag } from './reference.js';

/** One name, and what it pointed at. */
export interface BackupReference {
  repository: string;
  /** Undefined for an image that is in its repository by digest only. */
  tag?: string | undefined;
  digest: Digest;
  mediaType: string;
  /** Bytes of the manifest or index. */
  size: number;
}

/** What one backup consists of. Format: docs/design/backup-format.md */
export interface BackupRecord {
  formatVersion: 1;
  id: string;
  /** RFC 3339, UTC. */
  createdAt: string;
  /** One more than the largest in the store before: the order of backups, whatever the clock said. */
  sequence: number;
  references: BackupReference[];
  /** Airdock's own state, one document of each service; among `blobs` too. */
  settings: BackupSettings[];
  /** Manifests, configurations, layers and settings; each digest once. */
  blobs: { digest: Digest; size: number }[];
  totalBytes: number;
  /** Which repositories were taken, as patterns; all without it. */
  repositories?: string[] | undefined;
  /** Of the DU that it was made on. */
  duVersion?: string | undefined;
  description?: string | undefined;
}

export interface BackupSettings {
  service: string;
  digest: Digest;
  size: number;
}

/** What a record says beside what follows from it. */
export type BackupContent = Omit<BackupRecord, 'formatVersion' | 'totalBytes'>;

export const maxBackupRecordBytes = 64 * 1024 * 1024;

/** Ids are file names, so they have no dots and no slashes. */
export const isBackupId = (text: string): boolean => /^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$/.test(text);

const digest = z.custom<Digest>(isDigest, 'not a sha256 digest');
const size = z.number().int().nonnegative();
const recordSchema = z.object({
  formatVersion: z.literal(1),
  id: z.string().refine(isBackupId),
  createdAt: z.iso.datetime(),
  sequence: size.default(0),
  references: z.array(
    z.object({
      repository: z.string().refine(isRepository),
      tag: z.string().refine(isTag).optional(),
      digest,
      mediaType: z.string().refine(isManifestMediaType),
      size,
    }),
  ),
  settings: z.array(z.object({ service: z.string().regex(/^[a-z]{1,40}$/), digest, size })).default([]),
  blobs: z.array(z.object({ digest, size })),
  totalBytes: size,
  repositories: z.array(z.string()).optional(),
  duVersion: z.string().optional(),
  description: z.string().optional(),
});

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** The bytes of a record: the same content gives the same bytes. */
export function formatBackupRecord({ id, createdAt, sequence, references, settings, blobs, repositories, duVersion, description }: BackupContent): Buffer {
  const record: BackupRecord = {
    formatVersion: 1,
    id,
    createdAt,
    sequence,
    description,
    duVersion,
    repositories,
    references: references
      .map(({ repository, tag, digest, mediaType, size }) => ({ repository, tag, digest, mediaType, size }))
      .sort((a, b) => order(a.repository, b.repository) || order(a.tag ?? '', b.tag ?? '') || order(a.digest, b.digest)),
    settings: settings.map(({ service, digest, size }) => ({ service, digest, size })).sort((a, b) => order(a.service, b.service)),
    blobs: blobs.map(({ digest, size }) => ({ digest, size })).sort((a, b) => order(a.digest, b.digest)),
    totalBytes: blobs.reduce((sum, blob) => sum + blob.size, 0),
  };
  return Buffer.from(`${JSON.stringify(record, null, 2)}\n`);
}

/** Reads a record that has its checksum already checked. Throws `backup_format_unsupported` and `backup_corrupt`. */
export function parseBackupRecord(bytes: Uint8Array, id: string): BackupRecord {
  const corrupt = (detail: string, cause?: unknown) => new AppError('backup_corrupt', { detail: `the record of backup ${id} ${detail}` }, { cause });
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw corrupt('is not JSON', cause);
  }
  const version = typeof json === 'object' && json !== null && 'formatVersion' in json ? json.formatVersion : undefined;
  if (typeof version === 'number' && version !== 1) throw new AppError('backup_format_unsupported', { detail: `backup ${id} has format version ${version}` });
  const parsed = recordSchema.safeParse(json);
  if (!parsed.success) throw corrupt(`is not valid: ${z.prettifyError(parsed.error).slice(0, 500)}`);
  const record = parsed.data;
  if (record.id !== id) throw corrupt(`says it is ${record.id}`);
  const sizes = new Map(record.blobs.map((blob) => [blob.digest, blob.size]));
  if (sizes.size !== record.blobs.length) throw corrupt('lists a blob twice');
  const stray = record.references.find((reference) => sizes.get(reference.digest) !== reference.size);
  if (stray) throw corrupt(`does not list ${stray.digest}, which ${stray.repository} names`);
  if (record.settings.some((one) => sizes.get(one.digest) !== one.size)) throw corrupt('does not list its settings');
  return record;
}
