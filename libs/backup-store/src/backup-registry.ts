import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { BackupRecord, BackupReference } from '@airdock/core/oci/backup-record';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { formatName } from '@airdock/core/oci/reference';
import { withRetry } from '@airdock/oci/registry-client/retry';
import pLimit, { type LimitFunction } from 'p-limit';
import type { BackupStore, BlobIndex } from './backup-store.js';
import {
  all,
  damageOf,
  openRegistryBlob,
  type RegistryContentOptions,
  type Root,
  readNames,
  readRoots,
  type SkippedReference,
} from './registry-content.js';
import type { StoreLock } from './store-lock.js';

/**
 * A copy keeps a disk busy by itself: it reads, hashes and writes at the same time. More would cost memory, and the
 * hosts their pulls.
 */
const copiesAtOnce = 1;

/** How far a backup is. */
export interface BackupProgress {
  phase: 'reading names' | 'reading manifests' | 'copying blobs';
  /** Bytes that are in the store, also those that were there. Never less than before. */
  bytesDone: number;
  /** 0 until all manifests are read. */
  bytesTotal: number;
  /** Blobs and manifests. */
  itemsDone: number;
  itemsTotal: number;
}

/** What a backup reads, where it goes, and what of the registry it takes. */
export interface BackupRegistryOptions extends RegistryContentOptions {
  store: BackupStore;
  /** Of the store, held. */
  lock?: StoreLock | undefined;
  /** Of the new record. */
  id: string;
  /** Documents that are stored with it, by service. */
  settings?: readonly { service: string; bytes: Buffer }[] | undefined;
  /** What the record says beside. */
  about?: Pick<BackupRecord, 'repositories' | 'duVersion' | 'description'> | undefined;
  /** Requests at a time. Default 8. */
  concurrency?: number | undefined;
  onProgress?: ((progress: BackupProgress) => void) | undefined;
  /** Awaited before the record is written: whoever dies after that can still tell what is not in it. */
  beforeRecord?: ((result: Pick<BackupResult, 'skipped' | 'addedBytes'>) => Promise<void>) | undefined;
}

/** What a backup holds when its record is written. */
export interface BackupResult {
  record: BackupRecord;
  skipped: SkippedReference[];
  /** Bytes that the store did not have, before they were encoded. */
  addedBytes: number;
}

/**
 * Backs up all names of a registry. The names are read first and only digests are followed from then on, so the backup
 * is of one moment while pushes go on; garbage collection has to wait. The record is written last: a run that dies
 * leaves no backup, and the next one finds the blobs. What is not complete in the registry is skipped and named, and
 * stops nothing. Throws `space_insufficient` before anything is copied, `registry_unavailable`, `resource_exists`,
 * `backup_target_unavailable`, and the signal's reason.
 */
export async function backupRegistry(options: BackupRegistryOptions): Promise<BackupResult> {
  const { store, id, settings = [], about, concurrency = 8 } = options;
  const limit = pLimit(concurrency);
  const meter = new BackupMeter(options.onProgress);
  const createdAt = new Date().toISOString();
  const [{ references, lost }, index, sequence] = await Promise.all([
    readNames(options, limit),
    store.index(),
    store.nextSequence(),
  ]);
  meter.advance({ phase: 'reading manifests' });
  const damage = new Map<Digest, string>();
  const roots = await readRoots(options, references, limit, damage);
  const addedBytes = await copyMissing(options, { roots, index, limit, damage, meter });
  const stored = await Promise.all(settings.map((setting) => storeSettings(options, index, setting)));
  const complete = roots.filter((root) => damageOfRoot(root, damage) === undefined);
  const skipped = skippedOf(references, roots, complete, damage)
    .concat(lost)
    .sort((a, b) => a.name.localeCompare(b.name));
  await options.beforeRecord?.({ skipped, addedBytes });
  const blobs = new Map<Digest, { digest: Digest; size: number }>();
  for (const { digest, size } of stored) blobs.set(digest, { digest, size });
  for (const [digest, { descriptor }] of blobsOf(complete)) blobs.set(digest, descriptor);
  const record = await store.writeRecord(
    {
      ...about,
      id,
      createdAt,
      sequence,
      references: complete.flatMap((root) => root.references),
      settings: stored,
      blobs: [...blobs.values()],
    },
    { index, lock: options.lock },
  );
  return { record, skipped, addedBytes };
}

/** What is told while a backup is made. */
class BackupMeter {
  readonly progress: BackupProgress = {
    phase: 'reading names',
    bytesDone: 0,
    bytesTotal: 0,
    itemsDone: 0,
    itemsTotal: 0,
  };

  constructor(private readonly onProgress: BackupRegistryOptions['onProgress']) {
    this.advance({});
  }

  advance(change: Partial<BackupProgress>): void {
    Object.assign(this.progress, change);
    this.onProgress?.({ ...this.progress });
  }

  /** For one blob: never more than its size is counted, however often it is read. */
  ofBlob(size: number): (count: number) => void {
    let counted = 0;
    return (count) => {
      const more = Math.max(0, Math.min(count, size - counted));
      counted += more;
      this.advance({ bytesDone: this.progress.bytesDone + more });
    };
  }
}

interface Copying {
  roots: readonly Root[];
  index: BlobIndex;
  limit: LimitFunction;
  /** Gets what cannot be copied, and why. */
  damage: Map<Digest, string>;
  meter: BackupMeter;
}

/** Copies the blobs that the store lacks. Returns how many bytes these have. */
async function copyMissing(
  options: BackupRegistryOptions,
  { roots, index, limit, damage, meter }: Copying,
): Promise<number> {
  const wanted = blobsOf(roots);
  const missing = [...wanted.values()].filter(({ descriptor }) => !index.has(descriptor));
  const addedBytes = sizeOf(missing);
  await checkSpace(options.store, addedBytes);
  const bytesTotal = sizeOf([...wanted.values()]);
  const [bytesDone, itemsDone] = [bytesTotal - addedBytes, wanted.size - missing.length];
  meter.advance({ phase: 'copying blobs', bytesTotal, bytesDone, itemsTotal: wanted.size, itemsDone });
  // Large ones first: the last one to end is then a small one.
  missing.sort((a, b) => b.descriptor.size - a.descriptor.size);
  const copying = pLimit(copiesAtOnce);
  await all(missing, limit, options.signal, async ({ descriptor, repository }) => {
    const advance = meter.ofBlob(descriptor.size);
    try {
      await copyBlob(options, index, descriptor, repository, copying, advance);
    } catch (error) {
      const reason = damageOf(error);
      if (!reason) throw error;
      damage.set(descriptor.digest, reason);
    }
    meter.progress.itemsDone += 1;
    advance(descriptor.size);
  });
  return addedBytes;
}

const sizeOf = (blobs: readonly { descriptor: Descriptor }[]): number =>
  blobs.reduce((sum, { descriptor }) => sum + descriptor.size, 0);

async function storeSettings(
  { store, signal }: BackupRegistryOptions,
  index: BlobIndex,
  { service, bytes }: { service: string; bytes: Buffer },
) {
  const blob = { digest: digestOf(bytes), size: bytes.byteLength };
  const reader = { size: blob.size, open: () => Readable.from([bytes], { objectMode: false }) };
  await store.putBlob(index, blob, async () => reader, { signal });
  return { service, ...blob };
}

const damageOfRoot = ({ graph }: Root, damage: ReadonlyMap<Digest, string>): string | undefined =>
  [...graph.manifests, ...graph.blobs].map(({ digest }) => damage.get(digest)).find(Boolean);

/** The names whose images are not complete, and why. */
function skippedOf(
  references: readonly BackupReference[],
  roots: readonly Root[],
  complete: readonly Root[],
  damage: ReadonlyMap<Digest, string>,
): SkippedReference[] {
  const taken = new Set(complete.flatMap((root) => root.references));
  const reasons = new Map(roots.map((root) => [root.references[0]?.digest, damageOfRoot(root, damage)]));
  return references
    .filter((reference) => !taken.has(reference))
    .map(({ repository, tag, digest }) => ({
      name: formatName({ repository, tag, digest }),
      reason: damage.get(digest) ?? reasons.get(digest) ?? 'it is not complete',
    }));
}

/** Everything that images need, each digest once, with a repository that it can be got from. */
function blobsOf(roots: readonly Root[]): Map<Digest, { descriptor: Descriptor; repository: string }> {
  const blobs = new Map<Digest, { descriptor: Descriptor; repository: string }>();
  for (const { references, graph } of roots)
    for (const descriptor of [...graph.manifests, ...graph.blobs])
      blobs.set(descriptor.digest, { descriptor, repository: references[0]?.repository ?? '' });
  return blobs;
}

/** Throws `space_insufficient`. */
async function checkSpace(store: BackupStore, neededBytes: number): Promise<void> {
  const freeBytes = await store.storage.freeBytes();
  if (freeBytes === undefined || neededBytes <= freeBytes) return;
  throw new AppError('space_insufficient', {
    detail: `the backup needs ${neededBytes} bytes, and ${freeBytes} are free in ${store.storage.location}: delete backups and prune, or make room there otherwise`,
    neededBytes,
    freeBytes,
  });
}

async function copyBlob(
  options: Pick<BackupRegistryOptions, 'registry' | 'storage' | 'store' | 'signal' | 'retry'>,
  index: BlobIndex,
  descriptor: Descriptor,
  repository: string,
  limit: LimitFunction,
  onBytes: (count: number) => void,
): Promise<void> {
  const { store, signal, retry } = options;
  await withRetry(
    () =>
      store.putBlob(index, descriptor, () => openRegistryBlob(options, repository, descriptor), {
        signal,
        onBytes,
        limit,
        // What says that it is compressed needs no look.
        mayCompress: !/gzip|zstd/.test(descriptor.mediaType),
      }),
    signal,
    retry,
  );
}
