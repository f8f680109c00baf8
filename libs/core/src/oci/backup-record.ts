import { z } from 'zod';
import { parseBoundedJson } from '../bounded-json.js';
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
  /** 2 says that a signature belongs to it; those of 1 are from before that. */
  formatVersion: 1 | 2;
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
  /** The key of the site that it was imported from; whoever stops trusting that key trusts the copy no more. */
  importedFrom?: string | undefined;
}

/** The state of one service in a backup. */
export interface BackupSettings {
  service: string;
  digest: Digest;
  size: number;
}

/** What a record says beside what follows from it. */
export type BackupContent = Omit<BackupRecord, 'formatVersion' | 'totalBytes'>;

/** A record that is larger is refused before it is parsed. */
export const maxBackupRecordBytes = 40 * 1024 * 1024;
/** Several times what a registry of a large site has. */
const maxReferences = 50_000;
const maxBlobs = 200_000;
const maxSettings = 20;
const maxValues = 1_200_000;

/** Ids are file names, so they have no dots and no slashes. */
export const isBackupId = (text: string): boolean => /^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$/.test(text);

const digest = z.custom<Digest>(isDigest, 'not a sha256 digest');
const size = z.number().int().nonnegative();
/** Larger ones would let nobody come after them. */
const maxSequence = 1_000_000_000_000;
const text = (length: number) => z.string().max(length).refine(isPlainText, 'has control characters');

/** No control characters: it is shown to people, and kept in databases, one of which takes no NUL. */
function isPlainText(value: string): boolean {
  return !/[\p{Cc}\p{Cs}]/u.test(value.replaceAll(/[\n\t]/g, ''));
}

const referenceSchema = z.object({
  repository: z.string().max(255).refine(isRepository),
  tag: z.string().max(128).refine(isTag).optional(),
  digest,
  mediaType: z.string().max(255).refine(isManifestMediaType),
  size,
});
const settingsSchema = z.object({ service: z.string().regex(/^[a-z]{1,40}$/), digest, size });
const blobSchema = z.object({ digest, size });

/** All but the lists, which are looked at element by element, up to the first that is wrong. */
const headSchema = z.object({
  formatVersion: z.union([z.literal(1), z.literal(2)]),
  id: z.string().max(128).refine(isBackupId),
  createdAt: z.iso.datetime().max(40),
  sequence: size.max(maxSequence).default(0),
  totalBytes: size,
  repositories: z.array(text(300)).max(1_000).optional(),
  duVersion: text(100).optional(),
  description: text(2_000).optional(),
  importedFrom: z
    .string()
    .regex(/^SHA256:[A-Za-z0-9+/]{43}$/)
    .optional(),
});

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** The bytes of a record: the same content gives the same bytes. */
export function formatBackupRecord(
  { id, createdAt, sequence, references, settings, blobs, ...about }: BackupContent,
  formatVersion: 1 | 2 = 1,
): Buffer {
  const { repositories, duVersion, description, importedFrom } = about;
  const record: BackupRecord = {
    formatVersion,
    id,
    createdAt,
    sequence,
    description,
    duVersion,
    importedFrom,
    repositories,
    references: references
      .map(({ repository, tag, digest, mediaType, size }) => ({ repository, tag, digest, mediaType, size }))
      .sort(
        (a, b) => order(a.repository, b.repository) || order(a.tag ?? '', b.tag ?? '') || order(a.digest, b.digest),
      ),
    settings: settings
      .map(({ service, digest, size }) => ({ service, digest, size }))
      .sort((a, b) => order(a.service, b.service)),
    blobs: blobs.map(({ digest, size }) => ({ digest, size })).sort((a, b) => order(a.digest, b.digest)),
    totalBytes: blobs.reduce((sum, blob) => sum + blob.size, 0),
  };
  return Buffer.from(`${JSON.stringify(record, null, 2)}\n`);
}

/** Reads a record that has its checksum already checked. Throws `backup_format_unsupported` and `backup_corrupt`. */
export function parseBackupRecord(bytes: Uint8Array, id: string): BackupRecord {
  const corrupt = (detail: string) =>
    new AppError('backup_corrupt', { detail: `the record of backup ${id} ${detail}` });
  let json: unknown;
  try {
    json = parseBoundedJson(bytes, { maxBytes: maxBackupRecordBytes, maxValues, maxDepth: 8 });
  } catch (cause) {
    throw corrupt(`is not JSON that can be read: ${String(cause).slice(0, 200)}`);
  }
  if (typeof json !== 'object' || json === null) throw corrupt('is no object');
  const { references: names, settings: states = [], blobs: contents, ...head } = json as Record<string, unknown>;
  if (typeof head.formatVersion === 'number' && ![1, 2].includes(head.formatVersion))
    throw new AppError('backup_format_unsupported', {
      detail: `backup ${id} has format version ${head.formatVersion}`,
    });
  /** Says what is wrong first, and looks no further: of a million wrong elements each would cost a description. */
  const check = <T>(schema: z.ZodType<T>, value: unknown, where: string): T => {
    const parsed = schema.safeParse(value);
    if (parsed.success) return parsed.data;
    const [issue] = parsed.error.issues;
    throw corrupt(
      `is not valid: ${[where, ...(issue?.path ?? []).map(String)].join('.').slice(0, 100)} ${issue?.message ?? ''}`.slice(
        0,
        300,
      ),
    );
  };
  const list = <T>(schema: z.ZodType<T>, value: unknown, where: string, max: number): T[] => {
    if (!Array.isArray(value)) throw corrupt(`has no ${where}`);
    if (value.length > max) throw corrupt(`has ${value.length} ${where}; at most ${max} are read`);
    return value.map((one, index) => check(schema, one, `${where}.${index}`));
  };
  const record: BackupRecord = {
    ...check(headSchema, head, ''),
    references: list(referenceSchema, names, 'references', maxReferences),
    settings: list(settingsSchema, states, 'settings', maxSettings),
    blobs: list(blobSchema, contents, 'blobs', maxBlobs),
  };
  if (record.id !== id) throw corrupt(`says it is ${record.id}`);
  const sizes = new Map(record.blobs.map((blob) => [blob.digest, blob.size]));
  if (sizes.size !== record.blobs.length) throw corrupt('lists a blob twice');
  if (record.blobs.reduce((sum, blob) => sum + blob.size, 0) !== record.totalBytes)
    throw corrupt('does not have the bytes that it says');
  if (!Number.isSafeInteger(record.totalBytes)) throw corrupt('speaks of more bytes than there are');
  const stray = record.references.find((reference) => sizes.get(reference.digest) !== reference.size);
  if (stray) throw corrupt(`does not list ${stray.digest}, which ${stray.repository} names`);
  if (record.settings.some((one) => sizes.get(one.digest) !== one.size)) throw corrupt('does not list its settings');
  if (new Set(record.settings.map(({ service }) => service)).size !== record.settings.length)
    throw corrupt('has two states of one service');
  return record;
}
