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
export async function planCopy(options: PlanCopyOptions): Promise<CopyPlan> {
  return new CopyPlanner(options).plan();
}

/** Looks at several images beside each other, and counts them one after the other. */
class CopyPlanner {
  readonly #requests = pLimit(requestsAtOnce);
  readonly #looks = pLimit(looksAtOnce);
  /** Whatever repository it is in; undefined where only the registry can be asked. */
  readonly #isStored: HasBlob | undefined;
  readonly #counted = new Set<Digest>();
  #hasAnswered = false;
  #failure: unknown;
  #isOver = false;

  constructor(private readonly options: PlanCopyOptions) {
    const { storage } = options;
    this.#isStored = storage && onceEach((blob) => storage.hasBlob(blob));
  }

  async plan(): Promise<CopyPlan> {
    const looked = this.options.images.map((item) => this.#looks(() => this.#look(item)));
    // A look that fails before its turn to be counted must not count as a rejection that nobody handles, which ends the
    // process.
    const all = Promise.allSettled(looked);
    const images: PlannedImage[] = [];
    try {
      // One after the other: what two images share is counted for the first.
      for (const each of looked) images.push(await this.#count(await each));
    } catch (error) {
      this.#failure = error;
      this.#isOver = true;
      throw error;
    } finally {
      // After a failure nobody must read on in what the caller closes.
      await all;
    }
    await this.#assertReadable();
    return { images, missingBytes: images.reduce((sum, image) => sum + image.missingBytes, 0) };
  }

  /** It could not read anything that it was asked for; a tag that was never given tells whether it reads at all. */
  async #assertReadable(): Promise<void> {
    if (!this.#failure || this.#hasAnswered) return;
    const { images, registry, signal } = this.options;
    const [repository] = images.flatMap(({ names }) => names.map((name) => name.repository));
    if (repository !== undefined) await registry.headManifest(repository, 'airdock.never-given', { signal });
  }

  async #look({ image, names }: ImageToCopy): Promise<Looked> {
    this.options.signal?.throwIfAborted();
    if (this.#isOver) throw this.#failure;
    const { root, graphs, parts } = await this.#contentOf(image);
    const repositories = [...new Set(names.map(({ repository }) => repository))];
    const digests = await Promise.all(
      names.map(async ({ repository, tag }) => {
        const reference = tag ?? root?.digest;
        return reference === undefined ? undefined : this.#digestAt(repository, reference);
      }),
    );
    const isNamed = digests.length > 0 && digests.every((digest) => digest && digest === root?.digest);
    const isPresent = isNamed && root !== undefined && (await this.#isWhole(root, repositories, image, graphs));
    return { root, parts, repositories, digests, isPresent };
  }

  async #contentOf(image: ImageToCopy['image']): Promise<Pick<Looked, 'root' | 'parts'> & { graphs: ImageGraph[] }> {
    const { source, signal } = this.options;
    let root = image.root;
    let parts: Looked['parts'] = [];
    if (!root && source.blobsOf) {
      parts = await source.blobsOf(image);
      // Everything is compressed already: its manifest costs nothing.
      if (parts.every(({ digest }) => digest)) root = await source.prepare(image, { signal });
    }
    if (!root) return { root, parts, graphs: [] };
    const roots = [root, ...(image.companions ?? []).map((companion) => companion.root)];
    const graphs = await Promise.all(roots.map((each) => walkImage(each, (digest) => source.readManifest(digest))));
    const all = graphs.flatMap(({ manifests, blobs }) => [
      ...manifests.map((manifest) => ({ ...manifest, isManifest: true })),
      ...blobs,
    ]);
    return { root, parts: all, graphs };
  }

  async #isWhole(
    root: Part,
    repositories: readonly string[],
    { companions = [] }: ImageToCopy['image'],
    graphs: readonly ImageGraph[],
  ): Promise<boolean> {
    const blobs = graphs.flatMap((graph) => graph.blobs);
    // The root has a name in each repository; that its bytes are all there only the storage tells.
    const manifests = graphs
      .flatMap((graph) => graph.manifests)
      .filter(({ digest }) => this.options.storage || digest !== root.digest);
    const found = repositories.flatMap((repository) => [
      ...blobs.map((blob) => this.#hasBlob(repository, blob)),
      ...manifests.map((manifest) => this.#hasManifest(repository, manifest)),
      ...companions.map(
        async ({ tag, root: { digest } }) => tag === undefined || (await this.#digestAt(repository, tag)) === digest,
      ),
    ]);
    return (await Promise.all(found)).every(Boolean);
  }

  async #count({ root, parts, repositories, digests, isPresent }: Looked): Promise<PlannedImage> {
    const fresh = parts.filter(({ digest }) => digest === undefined || !this.#counted.has(digest));
    for (const { digest } of fresh) if (digest) this.#counted.add(digest);
    const there = await Promise.all(
      fresh.map(
        async ({ digest, size, isManifest = false }) =>
          isPresent || (digest !== undefined && (await this.#isThere(repositories, { digest, size }, isManifest))),
      ),
    );
    const missingBytes = fresh.reduce((sum, { size }, index) => sum + (there[index] ? 0 : size), 0);
    const isChanged = digests.some((digest) => digest && digest !== root?.digest);
    return { state: isPresent ? 'present' : isChanged ? 'changed' : 'missing', digest: root?.digest, missingBytes };
  }

  async #isThere(repositories: readonly string[], part: Part, isManifest: boolean): Promise<boolean> {
    if (this.#isStored) return this.#isStored(part);
    for (const repository of repositories)
      if (await (isManifest ? this.#hasManifest(repository, part) : this.#hasBlob(repository, part))) return true;
    return false;
  }

  async #hasBlob(repository: string, { digest, size }: Part): Promise<boolean> {
    const { storage, repairs, registry, signal } = this.options;
    if (!storage || !this.#isStored)
      return (
        (await this.#ask(() => registry.headBlob(repository, digest, { signal })))?.size === size &&
        !(await repairs?.isDamaged({ digest, size }))
      );
    return (await Promise.all([this.#isStored({ digest, size }), storage.isLinked(repository, digest)])).every(Boolean);
  }

  /** A registry does not show manifests among its blobs. */
  async #hasManifest(repository: string, { digest, size }: Part): Promise<boolean> {
    const { storage } = this.options;
    if (!storage || !this.#isStored) return (await this.#digestAt(repository, digest)) === digest;
    return (await this.#isStored({ digest, size })) && (await storage.resolve(repository, digest)) === digest;
  }

  async #digestAt(repository: string, reference: string): Promise<Digest | undefined> {
    const { storage, registry, signal } = this.options;
    return (
      (await storage?.resolve(repository, reference)) ??
      this.#ask(() => answeredDigest(registry, repository, reference, signal))
    );
  }

  #ask<T>(head: () => Promise<T | undefined>): Promise<T | undefined> {
    const answer = async () => {
      try {
        const found = await head();
        this.#hasAnswered = true;
        return found;
      } catch (error) {
        this.#failure = error;
        throw error;
      }
    };
    return this.#requests(() => lookUp(answer, this.options.signal, { attempts: 1 }));
  }
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
