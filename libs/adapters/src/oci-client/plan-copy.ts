import type { Digest } from '@airdock/core/oci/digest';
import pLimit from 'p-limit';
import type { ImageToCopy } from './copy-image.js';
import { type ImageGraph, walkImage } from './image-graph.js';
import type { ImageSource } from './image-source.js';
import type { RegistryClient } from './registry-client.js';
import type { RegistryStorage } from './registry-storage.js';
import { lookUp } from './retry.js';

const requestsAtOnce = 8;
const looksAtOnce = 8;
const tries = 2;

export interface PlannedImage {
  /** `present`: every name leads to it, and every repository has all of it. `changed`: a name leads to something else. */
  state: 'present' | 'changed' | 'missing';
  /** Of the root; undefined while its layers have never been compressed. */
  digest?: Digest | undefined;
  /** Bytes that the registry lacks; what an earlier image of the plan brings is not counted again. Of layers that have to be compressed first their size before that. */
  missingBytes: number;
}

export interface CopyPlan {
  /** In the order of the images. */
  images: PlannedImage[];
  missingBytes: number;
}

export interface PlanCopyOptions {
  source: ImageSource;
  images: readonly ImageToCopy[];
  registry: RegistryClient;
  storage?: RegistryStorage | undefined;
  signal?: AbortSignal | undefined;
}

/** What is known of an image without regard to the others of its plan. */
interface Looked {
  root: ImageToCopy['image']['root'];
  parts: { digest?: Digest | undefined; size: number; isManifest?: boolean }[];
  repositories: string[];
  /** What its names lead to now. */
  digests: (Digest | undefined)[];
  /** Every repository has its own links to all blobs and manifests; over HTTP the copy finds out. */
  isLinked: boolean;
}

/** What `copyImages` would have to do, without doing it: names and sizes are compared, content is not read. Throws what the registry client throws. */
export async function planCopy({ source, images, registry, storage, signal }: PlanCopyOptions): Promise<CopyPlan> {
  const requests = pLimit(requestsAtOnce);
  const ask = <T>(head: () => Promise<T | undefined>) => requests(() => lookUp(head, signal, { attempts: tries }));
  const looks = pLimit(looksAtOnce);
  const look = async ({ image, names }: ImageToCopy): Promise<Looked> => {
    signal?.throwIfAborted();
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
      parts = graphs.flatMap(({ manifests, blobs }) => [...manifests.map((manifest) => ({ ...manifest, isManifest: true })), ...blobs]);
    }
    const repositories = [...new Set(names.map(({ repository }) => repository))];
    const digests = await Promise.all(
      names.map(async ({ repository, tag }) => {
        const reference = tag ?? root?.digest;
        if (reference === undefined) return undefined;
        return (await storage?.resolve(repository, reference)) ?? (await ask(() => registry.headManifest(repository, reference, { signal })))?.digest;
      }),
    );
    const isNamed = root !== undefined && digests.every((digest) => digest === root.digest);
    return { root, parts, repositories, digests, isLinked: isNamed && storage !== undefined && (await isLinked(storage, repositories, image, graphs)) };
  };

  const counted = new Set<Digest>();
  const count = async ({ root, parts, repositories, digests, isLinked }: Looked): Promise<PlannedImage> => {
    const isThere = async (digest: Digest, size: number, isManifest = false) => {
      if (storage) return storage.hasBlob({ digest, size });
      // A registry does not show manifests among its blobs.
      const head = (repository: string) =>
        isManifest ? registry.headManifest(repository, digest, { signal }) : registry.headBlob(repository, digest, { signal });
      for (const repository of repositories) if ((await ask(() => head(repository)))?.size === size) return true;
      return false;
    };
    const fresh = parts.filter(({ digest }) => digest === undefined || !counted.has(digest));
    for (const { digest } of fresh) if (digest) counted.add(digest);
    // What has links in its repositories was looked at.
    const there = await Promise.all(
      fresh.map(async ({ digest, size, isManifest }) => isLinked || (digest !== undefined && (await isThere(digest, size, isManifest)))),
    );
    const missingBytes = fresh.reduce((sum, { size }, index) => sum + (there[index] ? 0 : size), 0);
    const state = isLinked ? 'present' : digests.some((digest) => digest && digest !== root?.digest) ? 'changed' : 'missing';
    return { state, digest: root?.digest, missingBytes };
  };

  const looked = images.map((item) => looks(() => look(item)));
  // A look that fails before its turn to be counted must not count as a rejection that nobody handles, which ends the process.
  const all = Promise.allSettled(looked);
  const planned: PlannedImage[] = [];
  try {
    // One after the other: what two images share is counted for the first.
    for (const each of looked) planned.push(await count(await each));
  } finally {
    // After a failure nobody must read on in what the caller closes.
    await all;
  }
  return { images: planned, missingBytes: planned.reduce((sum, image) => sum + image.missingBytes, 0) };
}

async function isLinked(
  storage: RegistryStorage,
  repositories: readonly string[],
  image: ImageToCopy['image'],
  graphs: readonly ImageGraph[],
): Promise<boolean> {
  const manifests = graphs.flatMap((graph) => graph.manifests).map((manifest) => storage.hasBlob(manifest));
  const links = repositories.flatMap((repository) => [
    ...graphs.flatMap(({ blobs, manifests }) => [
      ...blobs.map((blob) => storage.has(repository, blob)),
      ...manifests.map(async ({ digest }) => (await storage.resolve(repository, digest)) === digest),
    ]),
    ...(image.companions ?? []).map(async ({ tag, root: { digest } }) => tag === undefined || (await storage.resolve(repository, tag)) === digest),
  ]);
  return (await Promise.all([...manifests, ...links])).every(Boolean);
}
