import type { Digest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { type ImageGraph, walkImage } from '@airdock/oci/image/image-graph';
import type { ImageSource } from '@airdock/oci/image/image-source';
import type { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { lookUp } from '@airdock/oci/registry-client/retry';
import pLimit from 'p-limit';
import type { RegistryStorage } from '../folder/registry-storage.js';
import { answeredDigest, type ImageToCopy } from './copy-image.js';

const requestsAtOnce = 8;
const looksAtOnce = 8;

/** What a copy would do with one image. */
export interface PlannedImage {
  /**
   * `present`: every name leads to it, and every repository has all of it. `changed`: a name leads to something else.
   */
  state: 'present' | 'changed' | 'missing';
  /** Of the root; undefined while its layers have never been compressed. */
  digest?: Digest | undefined;
  /**
   * Bytes that the registry lacks; what an earlier image of the plan brings is not counted again. Of layers that have
   * to be compressed first their size before that.
   */
  missingBytes: number;
}

/** What a copy would do. */
export interface CopyPlan {
  /** In the order of the images. */
  images: PlannedImage[];
  missingBytes: number;
}

/** What is compared with what. */
export interface PlanCopyOptions {
  source: ImageSource;
  images: readonly ImageToCopy[];
  registry: RegistryClient;
  storage?: RegistryStorage | undefined;
  /** See CopyImagesOptions. */
  repairs?: RegistryStorage | undefined;
  signal?: AbortSignal | undefined;
}

type Part = Pick<Descriptor, 'digest' | 'size'>;

/** What is known of an image without regard to the others of its plan. */
interface Looked {
  root: ImageToCopy['image']['root'];
  parts: { digest?: Digest | undefined; size: number; isManifest?: boolean }[];
  repositories: string[];
  /** What its names lead to now. */
  digests: (Digest | undefined)[];
  /** All names lead to it, and every repository has all of it. */
  isPresent: boolean;
}

/**
 * What `copyImages` would have to do, without doing it: names and sizes are compared, content is not read. Throws what
 * the registry client throws.
 */
export async function planCopy({
  source,
  images,
  registry,
  storage,
  repairs,
  signal,
}: PlanCopyOptions): Promise<CopyPlan> {
  const requests = pLimit(requestsAtOnce);
  const looks = pLimit(looksAtOnce);
  let hasAnswered = false;
  let failure: unknown;
  let isOver = false;
  const ask = <T>(head: () => Promise<T | undefined>) => {
    const answer = async () => {
      try {
        const found = await head();
        hasAnswered = true;
        return found;
      } catch (error) {
        failure = error;
        throw error;
      }
    };
    return requests(() => lookUp(answer, signal, { attempts: 1 }));
  };
  const digestAt = async (repository: string, reference: string) =>
    (await storage?.resolve(repository, reference)) ??
    ask(() => answeredDigest(registry, repository, reference, signal));
  /** Whatever repository it is in. */
  const isStored = storage && onceEach((blob) => storage.hasBlob(blob));
  const hasBlob = async (repository: string, { digest, size }: Part): Promise<boolean> => {
    if (!storage || !isStored)
      return (
        (await ask(() => registry.headBlob(repository, digest, { signal })))?.size === size &&
        !(await repairs?.isDamaged({ digest, size }))
      );
    return (await Promise.all([isStored({ digest, size }), storage.isLinked(repository, digest)])).every(Boolean);
  };
  // A registry does not show manifests among its blobs.
  const hasManifest = async (repository: string, { digest, size }: Part): Promise<boolean> => {
    if (!storage || !isStored) return (await digestAt(repository, digest)) === digest;
    return (await isStored({ digest, size })) && (await storage.resolve(repository, digest)) === digest;
  };

  const look = async ({ image, names }: ImageToCopy): Promise<Looked> => {
    signal?.throwIfAborted();
    if (isOver) throw failure;
    let root = image.root;
    let parts: Looked['parts'] = [];
    let graphs: ImageGraph[] = [];
    if (!root && source.blobsOf) {
      parts = await source.blobsOf(image);
      // Everything is compressed already: its manifest costs nothing.
      if (parts.every(({ digest }) => digest)) root = await source.prepare(image, { signal });
    }
    if (root) {
      const roots = [root, ...(image.companions ?? []).map((companion) => companion.root)];
      graphs = await Promise.all(roots.map((each) => walkImage(each, (digest) => source.readManifest(digest))));
      parts = graphs.flatMap(({ manifests, blobs }) => [
        ...manifests.map((manifest) => ({ ...manifest, isManifest: true })),
        ...blobs,
      ]);
    }
    const repositories = [...new Set(names.map(({ repository }) => repository))];
    const digests = await Promise.all(
      names.map(async ({ repository, tag }) => {
        const reference = tag ?? root?.digest;
        return reference === undefined ? undefined : digestAt(repository, reference);
      }),
    );
    const isNamed = digests.length > 0 && digests.every((digest) => digest && digest === root?.digest);
    const isPresent = isNamed && root !== undefined && (await isWhole(root, repositories, image, graphs));
    return { root, parts, repositories, digests, isPresent };
  };
  const isWhole = async (
    root: Part,
    repositories: readonly string[],
    { companions = [] }: ImageToCopy['image'],
    graphs: readonly ImageGraph[],
  ) => {
    const blobs = graphs.flatMap((graph) => graph.blobs);
    // The root has a name in each repository; that its bytes are all there only the storage tells.
    const manifests = graphs
      .flatMap((graph) => graph.manifests)
      .filter(({ digest }) => storage || digest !== root.digest);
    const found = repositories.flatMap((repository) => [
      ...blobs.map((blob) => hasBlob(repository, blob)),
      ...manifests.map((manifest) => hasManifest(repository, manifest)),
      ...companions.map(
        async ({ tag, root: { digest } }) => tag === undefined || (await digestAt(repository, tag)) === digest,
      ),
    ]);
    return (await Promise.all(found)).every(Boolean);
  };

  const counted = new Set<Digest>();
  const count = async ({ root, parts, repositories, digests, isPresent }: Looked): Promise<PlannedImage> => {
    const isThere = async (part: Part, isManifest = false) => {
      if (isStored) return isStored(part);
      for (const repository of repositories)
        if (await (isManifest ? hasManifest : hasBlob)(repository, part)) return true;
      return false;
    };
    const fresh = parts.filter(({ digest }) => digest === undefined || !counted.has(digest));
    for (const { digest } of fresh) if (digest) counted.add(digest);
    const there = await Promise.all(
      fresh.map(
        async ({ digest, size, isManifest }) =>
          isPresent || (digest !== undefined && (await isThere({ digest, size }, isManifest))),
      ),
    );
    const missingBytes = fresh.reduce((sum, { size }, index) => sum + (there[index] ? 0 : size), 0);
    const state = isPresent
      ? 'present'
      : digests.some((digest) => digest && digest !== root?.digest)
        ? 'changed'
        : 'missing';
    return { state, digest: root?.digest, missingBytes };
  };

  const looked = images.map((item) => looks(() => look(item)));
  // A look that fails before its turn to be counted must not count as a rejection that nobody handles, which ends the
  // process.
  const all = Promise.allSettled(looked);
  const planned: PlannedImage[] = [];
  try {
    // One after the other: what two images share is counted for the first.
    for (const each of looked) planned.push(await count(await each));
  } catch (error) {
    failure = error;
    isOver = true;
    throw error;
  } finally {
    // After a failure nobody must read on in what the caller closes.
    await all;
  }
  // It could not read anything that it was asked for; a tag that was never given tells whether it reads at all.
  const [repository] =
    failure && !hasAnswered ? images.flatMap(({ names }) => names.map((name) => name.repository)) : [];
  if (repository !== undefined) await registry.headManifest(repository, 'airdock.never-given', { signal });
  return { images: planned, missingBytes: planned.reduce((sum, image) => sum + image.missingBytes, 0) };
}

type HasBlob = RegistryStorage['hasBlob'];

/** Images share blobs, and have several names. */
function onceEach(look: HasBlob): HasBlob {
  const known = new Map<string, Promise<boolean>>();
  return ({ digest, size }) => {
    const key = `${digest} ${size}`;
    const found = known.get(key) ?? look({ digest, size });
    known.set(key, found);
    return found;
  };
}
