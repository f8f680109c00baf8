import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { BackupRecord, BackupReference } from '@airdock/core/oci/backup-record';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { type Descriptor, isManifestMediaType, maxManifestBytes, parseManifest } from '@airdock/core/oci/manifest';
import { formatName } from '@airdock/core/oci/reference';
import { type ImageGraph, walkImage } from '@airdock/oci/image/image-graph';
import type { BlobReader } from '@airdock/oci/image/image-source';
import type { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { lookUp, type RetryOptions, withRetry } from '@airdock/oci/registry-client/retry';
import type { RegistryStorage } from '@airdock/registry/folder/registry-storage';
import pLimit, { type LimitFunction } from 'p-limit';
import type { BackupStore, BlobIndex } from './backup-store.js';
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
export interface BackupRegistryOptions {
  registry: RegistryClient;
  /** The registry's folder, when it lies on this machine: what can be read there does not go through the registry. */
  storage?: RegistryStorage | undefined;
  store: BackupStore;
  /** Of the store, held. */
  lock?: StoreLock | undefined;
  /** Of the new record. */
  id: string;
  /** Which names are in the backup; the tag of an image without one is empty. Default all. */
  filter?: ((name: { repository: string; tag: string }) => boolean) | undefined;
  /** Images without a tag, which no list of the registry tells of. */
  untagged?: readonly { repository: string; digest: Digest }[] | undefined;
  /** Documents that are stored with it, by service. */
  settings?: readonly { service: string; bytes: Buffer }[] | undefined;
  /** What the record says beside. */
  about?: Pick<BackupRecord, 'repositories' | 'duVersion' | 'description'> | undefined;
  /** Requests at a time. Default 8. */
  concurrency?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: BackupProgress) => void) | undefined;
  /** Awaited before the record is written: whoever dies after that can still tell what is not in it. */
  beforeRecord?: ((result: Pick<BackupResult, 'skipped' | 'addedBytes'>) => Promise<void>) | undefined;
  retry?: RetryOptions | undefined;
}

/** A name whose image is not complete in the registry; it is no part of the backup. */
export interface SkippedReference {
  name: string;
  /** What is missing or damaged. */
  reason: string;
}

/** What a backup holds when its record is written. */
export interface BackupResult {
  record: BackupRecord;
  skipped: SkippedReference[];
  /** Bytes that the store did not have, before they were encoded. */
  addedBytes: number;
}

/** An image, or an index, with what it consists of. */
interface Root {
  references: BackupReference[];
  graph: ImageGraph;
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

/**
 * Why an image of the registry cannot be backed up, when that is the image's own fault and not the registry's or the
 * store's.
 */
function damageOf(error: unknown): string | undefined {
  if (!(error instanceof AppError)) return undefined;
  const codes = [
    'image_not_found',
    'digest_mismatch',
    'bundle_corrupt',
    'bundle_too_large',
    'digest_unsupported',
    'image_unsupported',
  ];
  return codes.includes(error.code) ? (error.details.detail ?? error.message) : undefined;
}

/** Runs all work, stops at the first error, and returns only when nothing is running any more. */
async function all<T>(
  items: readonly T[],
  limit: LimitFunction,
  signal: AbortSignal | undefined,
  work: (item: T) => Promise<void>,
): Promise<void> {
  let failed = false;
  const results = await Promise.allSettled(
    items.map((item) =>
      limit(async () => {
        if (failed) return;
        signal?.throwIfAborted();
        await work(item).catch((error: unknown) => {
          failed = true;
          throw error;
        });
      }),
    ),
  );
  signal?.throwIfAborted();
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

async function readNames(
  { registry, storage, filter = () => true, untagged = [], signal, retry }: BackupRegistryOptions,
  limit: LimitFunction,
): Promise<{ references: BackupReference[]; lost: SkippedReference[] }> {
  const call = <T>(work: () => Promise<T>) => withRetry(work, signal, retry);
  let names = (await storage?.listNames()) ?? [];
  if (!storage) {
    const repositories = await call(() => registry.listRepositories({ signal }));
    await all(repositories, limit, signal, async (repository) => {
      for (const tag of await call(() => registry.listTags(repository, { signal }))) names.push({ repository, tag });
    });
  }
  names = names.filter(filter);
  const references: BackupReference[] = [];
  const lost: SkippedReference[] = [];
  const find = async (repository: string, reference: string) => {
    const seen = await storage?.resolve(repository, reference);
    const bytes = seen && (await readStored(storage, seen));
    return bytes
      ? describe(bytes)
      : lookUp(() => registry.headManifest(repository, reference, { signal }), signal, retry);
  };
  await all(names, limit, signal, async ({ repository, tag }) => {
    const found = await find(repository, tag);
    // A tag that went between the two requests is no part of this moment; one that stays has lost its manifest.
    if (!found && (await call(() => registry.listTags(repository, { signal }))).includes(tag))
      lost.push({ name: `${repository}:${tag}`, reason: 'its manifest is missing' });
    if (found) references.push({ repository, tag, digest: found.digest, mediaType: found.mediaType, size: found.size });
  });
  await all(
    untagged.filter(({ repository }) => filter({ repository, tag: '' })),
    limit,
    signal,
    async ({ repository, digest }) => {
      const found = await find(repository, digest);
      if (found) references.push({ repository, digest, mediaType: found.mediaType, size: found.size });
      else lost.push({ name: formatName({ repository, digest }), reason: 'its manifest is missing' });
    },
  );
  return { references, lost };
}

/** Undefined for what is no manifest: the registry says what it takes it for. */
function describe(bytes: Buffer): Descriptor | undefined {
  try {
    return { digest: digestOf(bytes), mediaType: parseManifest(bytes).mediaType, size: bytes.byteLength };
  } catch {
    return undefined;
  }
}

/** A manifest in the registry's folder; undefined when it cannot be had there as it should be. */
async function readStored(storage: RegistryStorage | undefined, digest: Digest): Promise<Buffer | undefined> {
  if (!storage) return undefined;
  const path = storage.blobFile(digest);
  try {
    if ((await stat(path)).size > maxManifestBytes) return undefined;
    const bytes = await readFile(path);
    return digestOf(bytes) === digest ? bytes : undefined;
  } catch {
    return undefined;
  }
}

/** What the references lead to. Those that are damaged are left out, and `damage` says why. */
async function readRoots(
  { registry, storage, signal, retry }: BackupRegistryOptions,
  references: readonly BackupReference[],
  limit: LimitFunction,
  damage: Map<Digest, string>,
): Promise<Root[]> {
  const byDigest = new Map<Digest, BackupReference[]>();
  for (const reference of references)
    byDigest.set(reference.digest, [...(byDigest.get(reference.digest) ?? []), reference]);
  const roots: Root[] = [];
  await all([...byDigest.entries()], limit, signal, async ([digest, [first, ...others]]) => {
    if (!first) return;
    const read = async (wanted: Digest) => {
      const stored = await readStored(storage, wanted);
      if (stored) return stored;
      const manifest = await withRetry(() => registry.getManifest(first.repository, wanted, { signal }), signal, retry);
      if (!manifest) throw new AppError('image_not_found', { detail: `the registry lacks ${wanted}` });
      return manifest.bytes;
    };
    try {
      roots.push({
        references: [first, ...others],
        graph: await walkImage({ digest, mediaType: first.mediaType, size: first.size }, read),
      });
    } catch (error) {
      const reason = damageOf(error);
      if (!reason) throw error;
      damage.set(digest, reason);
    }
  });
  return roots;
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

/**
 * A blob of a registry, from its folder where it lies there with its size. A manifest has to come in its own way.
 * Content is not verified.
 */
export async function openRegistryBlob(
  { registry, storage, signal }: Pick<BackupRegistryOptions, 'registry' | 'storage' | 'signal'>,
  repository: string,
  { digest, mediaType, size }: Descriptor,
): Promise<BlobReader> {
  if (storage && (await storage.hasBlob({ digest, size }))) {
    const path = storage.blobFile(digest);
    return {
      size,
      file: { path, offset: 0 },
      open: ({ start } = { start: 0 }) => createReadStream(path, { start, highWaterMark: 1024 * 1024 }),
    };
  }
  const open: BlobReader['open'] = ({ start } = { start: 0 }) =>
    Readable.from(
      (async function* () {
        if (isManifestMediaType(mediaType)) {
          const manifest = await registry.getManifest(repository, digest, { signal });
          if (!manifest) throw new AppError('image_not_found', { detail: `the registry lacks ${digest}` });
          yield manifest.bytes.subarray(start);
        } else yield* await registry.getBlob(repository, digest, { start, signal });
      })(),
      { objectMode: false },
    );
  return { size, open };
}
