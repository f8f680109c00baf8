/**
 * Copies images from any source into a registry. Nothing half-visible: blobs, then manifests by digest, children first, then everything is
 * looked at in the registry, then the tags. Whatever point a run dies at, the next one finds what is there and continues.
 */
import { AppError, isTransient } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { formatName } from '@airdock/core/oci/reference';
import pLimit, { type LimitFunction } from 'p-limit';
import { BlobCopier } from './blob-copier.js';
import { type ImageGraph, totalSize, walkImage } from './image-graph.js';
import type { ImageSource, SourceImage } from './image-source.js';
import type { RegistryClient } from './registry-client.js';
import type { RegistryStorage } from './registry-storage.js';
import { type RetryOptions, withRetry } from './retry.js';

const imagesAtOnce = 64;

/** A name inside the registry. Without a tag the image is there by digest only. */
export interface LocalName {
  repository: string;
  tag?: string | undefined;
}

export interface ImageToCopy {
  /** One of `source.images`. */
  image: SourceImage;
  /** The first repository gets the bytes, the others mounts of them. */
  names: readonly LocalName[];
}

export interface CopyProgress {
  /** Bytes of the source that need no more work, also because they were there. Never less than before in one run. */
  bytesDone: number;
  /** The sum of `sizeBytes` of all images: what two images share counts for both. */
  bytesTotal: number;
  /** Images that are finished, also those that failed. */
  itemsDone: number;
  itemsTotal: number;
}

export interface CopiedImage {
  image: SourceImage;
  /** Of the root; undefined when it failed before that was known. */
  digest?: Digest | undefined;
  /** `repository:tag`, complete in the registry. Empty when it failed. */
  names: string[];
  error?: AppError | undefined;
}

export interface CopyImagesOptions {
  source: ImageSource;
  images: readonly ImageToCopy[];
  registry: RegistryClient;
  /** See BlobCopierOptions. */
  storage?: RegistryStorage | undefined;
  /** Images at a time, and requests at a time. Default 4. */
  concurrency?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Called often, at least for each chunk of data. */
  onProgress?: ((progress: CopyProgress) => void) | undefined;
  /** Called once for each image, as soon as its fate is known. */
  onImage?: ((copied: CopiedImage) => void) | undefined;
  retry?: RetryOptions | undefined;
}

/**
 * Copies images; the result is in the order of `images`. An image that fails does not stop the others: its `error` says why, and no tag of it was
 * touched, except when a tag itself was refused. Throws only the signal's reason, within a second of its abort.
 */
export async function copyImages(options: CopyImagesOptions): Promise<CopiedImage[]> {
  const { images, signal, concurrency = 4 } = options;
  const requests = pLimit(concurrency);
  const preparing = pLimit(concurrency);
  const copier = new BlobCopier({ ...options, limit: requests });
  const progress = new Progress(images, options.onProgress);
  // Placed images wait for the disk more than they work, and share that wait.
  const limit = pLimit(options.storage ? imagesAtOnce : concurrency);
  const results = await Promise.allSettled(
    images.map((item) =>
      limit(async () => {
        signal?.throwIfAborted();
        const copied = await new ImageCopy(options, copier, preparing, item, progress).run();
        progress.finish(item);
        options.onImage?.(copied);
        return copied;
      }),
    ),
  );
  signal?.throwIfAborted();
  return results.map((result) => {
    if (result.status === 'rejected') throw result.reason;
    return result.value;
  });
}

/** The way of one image into the registry. */
class ImageCopy {
  readonly #repositories: string[];

  constructor(
    private readonly options: CopyImagesOptions,
    private readonly copier: BlobCopier,
    private readonly preparing: LimitFunction,
    private readonly item: ImageToCopy,
    private readonly progress: Progress,
  ) {
    this.#repositories = [...new Set(item.names.map(({ repository }) => repository))];
  }

  async run(): Promise<CopiedImage> {
    const { image, names } = this.item;
    const { source, signal } = this.options;
    let root: Descriptor | undefined = image.root;
    try {
      const [first, ...others] = this.#repositories;
      if (first === undefined) throw new AppError('image_name_missing', { detail: 'no local name was given' });
      root = await this.preparing(() => source.prepare(image, { signal, onProgress: (bytes) => this.progress.prepared(this.item, bytes) }));
      const graph = await walkImage(root, (digest) => source.readManifest(digest));
      if (!(await this.#isThere(root, graph))) {
        await this.#copyTo(first, graph, (descriptor, bytes) => this.progress.copied(this.item, totalSize(graph.blobs), descriptor.digest, bytes));
        for (const repository of others) await this.#copyTo(repository, graph);
        for (const repository of this.#repositories) await this.#verify(repository, graph);
        await this.options.storage?.flush();
        for (const { repository, tag } of names) await this.#put(repository, tag ?? root.digest, root);
      }
      const { digest } = root;
      return { image, digest, names: names.map(({ repository, tag }) => formatName(tag === undefined ? { repository, digest } : { repository, tag })) };
    } catch (error) {
      signal?.throwIfAborted();
      return { image, digest: root?.digest, names: [], error: error instanceof AppError ? error : new AppError('internal_error', {}, { cause: error }) };
    }
  }

  /** True when every name already leads to this image, and all of it is really there. */
  async #isThere(root: Descriptor, graph: ImageGraph): Promise<boolean> {
    for (const { repository, tag } of this.item.names) {
      const current = await this.#call((registry, signal) => registry.headManifest(repository, tag ?? root.digest, { signal }));
      if (current?.digest !== root.digest) return false;
    }
    try {
      for (const repository of this.#repositories) await this.#verify(repository, graph);
      return true;
    } catch (error) {
      if (error instanceof AppError && error.code === 'registry_rejected') return false;
      throw error;
    }
  }

  /** Blobs and all manifests but the root, which comes with the tag. */
  async #copyTo(repository: string, graph: ImageGraph, onBytes?: (descriptor: Descriptor, bytesDone: number) => void): Promise<void> {
    await allOrFirstError(graph.blobs.map((blob) => this.copier.ensure(repository, blob, (bytes) => onBytes?.(blob, bytes))));
    for (const manifest of childrenOf(graph)) {
      if (await this.#call((registry, signal) => registry.headManifest(repository, manifest.digest, { signal }))) continue;
      await this.#put(repository, manifest.digest, manifest);
    }
  }

  /** Rule: nothing is reported stored that the registry does not say it has, or that does not lie in its folder. */
  async #verify(repository: string, graph: ImageGraph): Promise<void> {
    await allOrFirstError(graph.blobs.map((blob) => this.copier.verify(repository, blob)));
    for (const manifest of childrenOf(graph)) await this.#expect(repository, manifest.digest, manifest);
  }

  /** The registry checks that all children are there, and answers with the digest of what it stored. */
  async #put(repository: string, reference: string, { digest, mediaType }: Descriptor): Promise<void> {
    const bytes = await this.options.source.readManifest(digest);
    await this.#call((registry, signal) => registry.putManifest(repository, reference, bytes, mediaType, { signal }));
  }

  async #expect(repository: string, reference: string, { digest }: Descriptor): Promise<void> {
    const found = await this.#call((registry, signal) => registry.headManifest(repository, reference, { signal }));
    if (found?.digest === digest) return;
    throw new AppError('registry_rejected', { detail: `the registry answers ${repository}, ${reference} with ${found?.digest ?? 'nothing'}`, digest });
  }

  #call<T>(work: (registry: RegistryClient, signal: AbortSignal | undefined) => Promise<T>): Promise<T> {
    const { registry, signal, retry } = this.options;
    return withRetry(() => work(registry, signal), signal, retry);
  }
}

/** The root is last. */
const childrenOf = ({ manifests }: ImageGraph): Descriptor[] => manifests.slice(0, -1);

/** Like `Promise.all`, but nothing is still running when it rejects: the caller may then close what the work uses. */
async function allOrFirstError(work: Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find((result) => result.status === 'rejected');
  if (failed) throw failed.reason;
}

interface Part {
  prepared: number;
  copied: Map<Digest, number>;
  copiedTotal: number;
  finished: boolean;
}

/**
 * Bytes done over all images. An image that has to be prepared counts half for being compressed and half for being sent; compressed sizes are
 * stretched to those of the source, which are the only ones known from the beginning.
 */
class Progress {
  readonly #parts = new Map<ImageToCopy, Part>();
  readonly #bytesTotal: number;
  #bytesDone = 0;
  #itemsDone = 0;

  constructor(
    images: readonly ImageToCopy[],
    private readonly report: ((progress: CopyProgress) => void) | undefined,
  ) {
    this.#bytesTotal = images.reduce((sum, { image }) => sum + image.sizeBytes, 0);
    for (const item of images) this.#parts.set(item, { prepared: 0, copied: new Map(), copiedTotal: 0, finished: false });
    this.#report();
  }

  prepared(item: ImageToCopy, bytes: number): void {
    this.#update(item, (part) => {
      part.prepared = bytes;
    });
  }

  copied(item: ImageToCopy, total: number, digest: Digest, bytes: number): void {
    this.#update(item, (part) => {
      part.copiedTotal = total;
      part.copied.set(digest, bytes);
    });
  }

  finish(item: ImageToCopy): void {
    this.#itemsDone += 1;
    this.#update(item, (part) => {
      part.finished = true;
    });
  }

  #update(item: ImageToCopy, change: (part: Part) => void): void {
    const part = this.#parts.get(item);
    if (!part) return;
    const before = bytesOf(item.image, part);
    change(part);
    this.#bytesDone += Math.max(0, bytesOf(item.image, part) - before);
    this.#report();
  }

  #report(): void {
    this.report?.({
      bytesDone: Math.min(Math.round(this.#bytesDone), this.#bytesTotal),
      bytesTotal: this.#bytesTotal,
      itemsDone: this.#itemsDone,
      itemsTotal: this.#parts.size,
    });
  }
}

function bytesOf(image: SourceImage, { prepared, copied, copiedTotal, finished }: Part): number {
  if (finished) return image.sizeBytes;
  const sent = [...copied.values()].reduce((sum, bytes) => sum + bytes, 0) / Math.max(copiedTotal, 1);
  const share = image.root ? sent : (prepared / Math.max(image.sizeBytes, 1) + sent) / 2;
  return image.sizeBytes * Math.min(share, 1);
}

/**
 * The failures of a copy as one error, or undefined: the first that waiting would not cure, else the first. Its detail says how many images failed, and
 * `images` names them.
 */
export function failureOf(copied: readonly CopiedImage[]): AppError | undefined {
  const failed = copied.filter(({ error }) => error);
  const first = failed.find(({ error }) => !isTransient(error)) ?? failed[0];
  if (!first?.error) return undefined;
  const { code, details, message } = first.error;
  const detail = `${failed.length} of ${copied.length} images failed, first ${first.image.names[0]}: ${details.detail ?? message}`;
  return new AppError(code, { ...details, detail, images: failed.flatMap(({ image }) => image.names).slice(0, 100) }, { cause: first.error });
}
