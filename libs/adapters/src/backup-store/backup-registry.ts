import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { BackupRecord, BackupReference } from '@airdock/core/oci/backup-record';
import type { Digest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import pLimit, { type LimitFunction } from 'p-limit';
import { walkImage } from '../oci-client/image-graph.js';
import type { RegistryClient } from '../oci-client/registry-client.js';
import { type RetryOptions, withRetry } from '../oci-client/retry.js';
import type { BackupStore } from './backup-store.js';

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

export interface BackupRegistryOptions {
  registry: RegistryClient;
  store: BackupStore;
  /** Of the new record. */
  id: string;
  /** Which names are in the backup. Default all. */
  filter?: ((name: { repository: string; tag: string }) => boolean) | undefined;
  /** Requests at a time. Default 4. */
  concurrency?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: BackupProgress) => void) | undefined;
  retry?: RetryOptions | undefined;
}

/** A blob of the registry, with a repository that it can be got from. */
interface Wanted {
  descriptor: Descriptor;
  repository: string;
  /** Known for manifests, which were read to find the rest. */
  bytes?: Buffer | undefined;
}

/**
 * Backs up all names of a registry. The names are read first and only digests are followed from then on, so the backup is of one moment while pushes go on; garbage
 * collection has to wait. The record is written last: a run that dies leaves no backup, and the next one finds the blobs. Throws `space_insufficient`
 * before anything is copied, `backup_incomplete` naming what the registry lacks, `digest_mismatch`, `image_unsupported`, `registry_unavailable`,
 * `resource_exists`, and the signal's reason.
 */
export async function backupRegistry(options: BackupRegistryOptions): Promise<BackupRecord> {
  const { store, id, signal, concurrency = 4 } = options;
  const limit = pLimit(concurrency);
  const progress: BackupProgress = { phase: 'reading names', bytesDone: 0, bytesTotal: 0, itemsDone: 0, itemsTotal: 0 };
  const report = () => options.onProgress?.({ ...progress });
  report();
  const createdAt = new Date().toISOString();
  const references = await readNames(options, limit);
  progress.phase = 'reading manifests';
  report();
  const wanted = await readManifests(options, references, limit);
  await checkSpace(store, wanted);
  progress.phase = 'copying blobs';
  progress.bytesTotal = [...wanted.values()].reduce((sum, { descriptor }) => sum + descriptor.size, 0);
  progress.itemsTotal = wanted.size;
  report();
  await all([...wanted.values()], limit, signal, async (blob) => {
    let counted = 0;
    const advance = (bytesDone: number) => {
      progress.bytesDone += Math.max(0, bytesDone - counted);
      counted = Math.max(counted, bytesDone);
      report();
    };
    await copyBlob(options, blob, advance);
    progress.itemsDone += 1;
    advance(blob.descriptor.size);
  });
  return store.writeRecord({ id, createdAt, references, blobs: [...wanted.values()].map(({ descriptor }) => descriptor) });
}

/** Runs all work, stops at the first error, and returns only when nothing is running any more. */
async function all<T>(items: readonly T[], limit: LimitFunction, signal: AbortSignal | undefined, work: (item: T) => Promise<void>): Promise<void> {
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

async function readNames({ registry, filter = () => true, signal, retry }: BackupRegistryOptions, limit: LimitFunction): Promise<BackupReference[]> {
  const call = <T>(work: () => Promise<T>) => withRetry(work, signal, retry);
  const names: { repository: string; tag: string }[] = [];
  const repositories = await call(() => registry.listRepositories({ signal }));
  await all(repositories, limit, signal, async (repository) => {
    for (const tag of await call(() => registry.listTags(repository, { signal }))) if (filter({ repository, tag })) names.push({ repository, tag });
  });
  const references: BackupReference[] = [];
  await all(names, limit, signal, async ({ repository, tag }) => {
    const found = await call(() => registry.headManifest(repository, tag, { signal }));
    // A tag that went between the two requests is no part of this moment.
    if (found) references.push({ repository, tag, ...found });
  });
  return references;
}

/** Everything that the references need, by digest. */
async function readManifests(
  { registry, signal, retry }: BackupRegistryOptions,
  references: readonly BackupReference[],
  limit: LimitFunction,
): Promise<Map<Digest, Wanted>> {
  const wanted = new Map<Digest, Wanted>();
  const documents = new Map<Digest, Buffer>();
  const roots = [...new Map(references.map((reference) => [reference.digest, reference])).values()];
  await all(roots, limit, signal, async ({ repository, tag, digest, mediaType, size }) => {
    const read = async (wantedDigest: Digest) => {
      const known = documents.get(wantedDigest);
      if (known) return known;
      const manifest = await withRetry(() => registry.getManifest(repository, wantedDigest, { signal }), signal, retry);
      if (!manifest) throw lacking(`${repository}:${tag}`, wantedDigest);
      documents.set(wantedDigest, manifest.bytes);
      return manifest.bytes;
    };
    const graph = await walkImage({ digest, mediaType, size }, read).catch((error: unknown) => {
      // The words are about bundles; here it is the registry that holds something damaged.
      if (error instanceof AppError && (error.code === 'bundle_corrupt' || error.code === 'digest_unsupported'))
        throw new AppError('backup_incomplete', { detail: `${repository}:${tag} is damaged in the registry: ${error.message}` }, { cause: error });
      throw error;
    });
    for (const descriptor of graph.manifests) wanted.set(descriptor.digest, { descriptor, repository, bytes: documents.get(descriptor.digest) });
    for (const descriptor of graph.blobs) if (!wanted.has(descriptor.digest)) wanted.set(descriptor.digest, { descriptor, repository });
  });
  return wanted;
}

const lacking = (name: string, digest: Digest, cause?: unknown) =>
  new AppError('backup_incomplete', { detail: `the registry lacks ${digest}, which ${name} needs; push or delete that image`, digest }, { cause });

async function checkSpace(store: BackupStore, wanted: ReadonlyMap<Digest, Wanted>): Promise<void> {
  let neededBytes = 0;
  for (const { descriptor } of wanted.values()) if (!(await store.hasBlob(descriptor))) neededBytes += descriptor.size;
  const freeBytes = await store.freeBytes();
  if (neededBytes > freeBytes) {
    throw new AppError('space_insufficient', {
      detail: `the backup needs ${neededBytes} bytes, and ${freeBytes} are free in ${store.dir}`,
      neededBytes,
      freeBytes,
    });
  }
}

async function copyBlob(
  { registry, store, signal, retry }: BackupRegistryOptions,
  { descriptor, repository, bytes }: Wanted,
  onBytes: (bytesDone: number) => void,
): Promise<void> {
  const { digest } = descriptor;
  if (await store.hasBlob(descriptor)) return;
  await withRetry(
    async () => {
      if (bytes) {
        await store.putBlob(descriptor, Readable.from([bytes], { objectMode: false }), signal);
        return;
      }
      const content = await registry.getBlob(repository, digest, { signal }).catch((error: unknown) => {
        throw error instanceof AppError && error.code === 'image_not_found' ? lacking(repository, digest, error) : error;
      });
      await store.putBlob(descriptor, Readable.from(counted(content, onBytes), { objectMode: false }), signal);
    },
    signal,
    retry,
  );
}

async function* counted(content: Readable, onBytes: (bytesDone: number) => void): AsyncGenerator<Uint8Array> {
  let bytesDone = 0;
  for await (const chunk of content as AsyncIterable<Uint8Array>) {
    bytesDone += chunk.byteLength;
    onBytes(bytesDone);
    yield chunk;
  }
}
