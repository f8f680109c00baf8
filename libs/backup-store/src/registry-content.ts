import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { BackupReference } from '@airdock/core/oci/backup-record';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { type Descriptor, isManifestMediaType, maxManifestBytes, parseManifest } from '@airdock/core/oci/manifest';
import { formatName } from '@airdock/core/oci/reference';
import { type ImageGraph, walkImage } from '@airdock/oci/image/image-graph';
import type { BlobReader } from '@airdock/oci/image/image-source';
import type { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { lookUp, type RetryOptions, withRetry } from '@airdock/oci/registry-client/retry';
import type { RegistryStorage } from '@airdock/registry/folder/registry-storage';
import type { LimitFunction } from 'p-limit';

/** A registry that is read, and which of its names. */
export interface RegistryContentOptions {
  registry: RegistryClient;
  /** The registry's folder, when it lies on this machine: what can be read there does not go through the registry. */
  storage?: RegistryStorage | undefined;
  /** Which names are in the backup; the tag of an image without one is empty. Default all. */
  filter?: ((name: { repository: string; tag: string }) => boolean) | undefined;
  /** Images without a tag, which no list of the registry tells of. */
  untagged?: readonly { repository: string; digest: Digest }[] | undefined;
  signal?: AbortSignal | undefined;
  retry?: RetryOptions | undefined;
}

/** A name whose image is not complete in the registry; it is no part of the backup. */
export interface SkippedReference {
  name: string;
  /** What is missing or damaged. */
  reason: string;
}

/** An image, or an index, with what it consists of. */
export interface Root {
  references: BackupReference[];
  graph: ImageGraph;
}

/** The names of the registry with their digests; `lost` are those whose manifests are missing. */
export async function readNames(
  { registry, storage, filter = () => true, untagged = [], signal, retry }: RegistryContentOptions,
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
export async function readRoots(
  { registry, storage, signal, retry }: RegistryContentOptions,
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

/**
 * Why an image of the registry cannot be backed up, when that is the image's own fault and not the registry's or the
 * store's.
 */
export function damageOf(error: unknown): string | undefined {
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
export async function all<T>(
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

/**
 * A blob of a registry, from its folder where it lies there with its size. A manifest has to come in its own way.
 * Content is not verified.
 */
export async function openRegistryBlob(
  { registry, storage, signal }: Pick<RegistryContentOptions, 'registry' | 'storage' | 'signal'>,
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
