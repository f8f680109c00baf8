/**
 * Copies images from any source into a registry. Nothing half-visible: blobs, then manifests by digest, children first,
 * then everything is looked at in the registry, then the tags. Whatever point a run dies at, the next one finds what is
 * there and continues.
 */
import { AppError, isTransient } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { type Descriptor, formatPlatform } from '@airdock/core/oci/manifest';
import { formatName } from '@airdock/core/oci/reference';
import { type ImageGraph, walkImage } from '@airdock/oci/image/image-graph';
import { companionTag } from '@airdock/oci/image/image-names';
import type { Companion, ImageSource, SourceImage } from '@airdock/oci/image/image-source';
import type { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { type Ask, lookUp, type RetryOptions, withRetry } from '@airdock/oci/registry-client/retry';
import type { UploadSessions } from '@airdock/oci/registry-client/upload-sessions';
import pLimit, { type LimitFunction } from 'p-limit';
import type { RegistryStorage } from '../folder/registry-storage.js';
import { BlobCopier } from './blob-copier.js';
import { CopyMeter, type CopyProgress } from './copy-progress.js';

const imagesAtOnce = 64;
const bringTries = 3;

/** A name inside the registry. Without a tag the image is there by digest only. */
export interface TargetName {
  repository: string;
  tag?: string | undefined;
}

/** An image, and the names that it gets. */
export interface ImageToCopy {
  /** One of `source.images`. */
  image: SourceImage;
  /** The first repository gets the bytes, the others mounts of them. */
  names: readonly TargetName[];
}

/** A manifest or blob of an image. */
export interface ImagePart {
  digest: Digest;
  /** Bytes. */
  size: number;
  kind: 'manifest' | 'config' | 'layer' | 'companion';
  /** Of a layer, e.g. `linux/arm64`. */
  platform?: string | undefined;
}

/** What became of one image. */
export interface CopiedImage {
  image: SourceImage;
  /** Of the root; undefined when it failed before that was known. */
  digest?: Digest | undefined;
  mediaType?: string | undefined;
  /** Everything that it consists of, the root first, its companions last; empty when it failed. */
  parts: ImagePart[];
  /** `repository:tag`, complete in the registry. Empty when it failed. */
  names: string[];
  error?: AppError | undefined;
}

/** What is copied where, and who hears of it. */
export interface CopyImagesOptions {
  source: ImageSource;
  images: readonly ImageToCopy[];
  registry: RegistryClient;
  /** See BlobCopierOptions. */
  storage?: RegistryStorage | undefined;
  /** Its folder, where nothing is placed but what is damaged may be set aside. Default `storage`. */
  repairs?: RegistryStorage | undefined;
  sessions?: UploadSessions | undefined;
  /** Images that `planCopy` has just found present: they are not looked at again. */
  present?: ReadonlySet<ImageToCopy> | undefined;
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
 * Copies images; the result is in the order of `images`. An image that fails does not stop the others: its `error` says
 * why, and no tag of it was touched, except when a tag itself was refused. Throws only the signal's reason, within a
 * second of its abort.
 *
 * @example
 * ```ts
 * const images = source.images.map((image) => ({ image, names: [{ repository: 'pause', tag: '3.2' }] }));
 * const copied = await copyImages({ source, images, registry, storage, signal });
 * const failed = copied.filter(({ error }) => error);
 * ```
 */
export async function copyImages(options: CopyImagesOptions): Promise<CopiedImage[]> {
  const { images, signal, concurrency = 4 } = options;
  const requests = pLimit(concurrency);
  const preparing = pLimit(concurrency);
  const copier = new BlobCopier({ ...options, limit: requests });
  const progress = new CopyMeter(images, options.onProgress);
  // Placed images wait for the disk more than they work, and share that wait.
  const limit = pLimit(options.storage ? imagesAtOnce : concurrency);
  // On a full disk nothing more is begun; what is complete stays.
  let full: AppError | undefined;
  const results = await Promise.allSettled(
    images.map((item) =>
      limit(async () => {
        signal?.throwIfAborted();
        progress.start(item);
        const copied = full
          ? failed(item, full)
          : await new ImageCopy(options, copier, preparing, item, progress).run();
        if (copied.error?.code === 'space_insufficient') full = copied.error;
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

const failed = ({ image }: ImageToCopy, error: AppError): CopiedImage => ({
  image,
  digest: image.root?.digest,
  parts: [],
  names: [],
  error,
});

/** A companion with what it consists of. */
interface Belonging {
  companion: Companion;
  graph: ImageGraph;
}

/** The way of one image into the registry. */
class ImageCopy {
  readonly #repositories: string[];

  constructor(
    private readonly options: CopyImagesOptions,
    private readonly copier: BlobCopier,
    private readonly preparing: LimitFunction,
    private readonly item: ImageToCopy,
    private readonly progress: CopyMeter<ImageToCopy>,
  ) {
    this.#repositories = [...new Set(item.names.map(({ repository }) => repository))];
  }

  async run(): Promise<CopiedImage> {
    const { image, names } = this.item;
    const { source, signal } = this.options;
    let root: Descriptor | undefined = image.root;
    try {
      if (names.length === 0) throw new AppError('image_name_missing', { detail: 'no local name was given' });
      root = await this.preparing(() =>
        source.prepare(image, { signal, onProgress: (bytes) => this.progress.prepared(this.item, bytes) }),
      );
      const readManifest = (digest: Digest) => source.readManifest(digest);
      const graph = await walkImage(root, readManifest);
      const belongings = await Promise.all(
        (image.companions ?? []).map(async (companion) => ({
          companion,
          graph: await walkImage(companion.root, readManifest),
        })),
      );
      const isThere = this.options.present?.has(this.item) || (await this.#isThere(root, graph, belongings));
      if (!isThere) await this.#bringAll(root, graph, belongings);
      const { digest, mediaType } = root;
      const parts = partsOf(graph, belongings);
      return {
        image,
        digest,
        mediaType,
        parts,
        names: names.map(({ repository, tag }) => formatName({ repository, tag, digest })),
      };
    } catch (error) {
      signal?.throwIfAborted();
      const cause = error instanceof AppError ? error : new AppError('internal_error', {}, { cause: error });
      return { ...failed(this.item, cause), digest: root?.digest };
    }
  }

  /**
   * A garbage collection of the registry may take something between the look that found it and the manifest that needs
   * it: then it is sent once more.
   */
  async #bringAll(root: Descriptor, graph: ImageGraph, belongings: readonly Belonging[]): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#bring(root, graph, belongings);
      } catch (error) {
        if (attempt === bringTries || !isPartMissing(error)) throw error;
        this.copier.forget(contentOf([graph, ...belongings.map((belonging) => belonging.graph)]).blobs);
      }
    }
  }

  async #bring(root: Descriptor, graph: ImageGraph, belongings: readonly Belonging[]): Promise<void> {
    const { blobs, children } = contentOf([graph, ...belongings.map((belonging) => belonging.graph)]);
    this.progress.planned(this.item, blobs);
    const [first, ...others] = this.#repositories;
    if (first !== undefined)
      await this.#copyTo(first, blobs, children, ({ digest }, bytes) => this.progress.copied(this.item, digest, bytes));
    for (const repository of others) await this.#copyTo(repository, blobs, children);
    for (const repository of this.#repositories) await this.#verify(repository, blobs, children);
    await this.options.storage?.flush();
    // Whoever sees the image can verify its signature.
    for (const { companion } of belongings)
      for (const repository of this.#repositories) await this.#putCompanion(repository, companion);
    for (const { repository, tag } of this.item.names) await this.#put(repository, tag ?? root.digest, root);
  }

  /** True when every name already leads to this image, and all of it is really there. */
  async #isThere(root: Descriptor, graph: ImageGraph, belongings: readonly Belonging[]): Promise<boolean> {
    const wanted = this.item.names.map(({ repository, tag }) => ({
      repository,
      reference: tag ?? root.digest,
      digest: root.digest,
    }));
    for (const { companion } of belongings)
      for (const repository of this.#repositories)
        wanted.push({ repository, reference: companion.tag ?? companion.root.digest, digest: companion.root.digest });
    for (const { repository, reference, digest } of wanted)
      if ((await this.#digestAt(repository, reference)) !== digest) return false;
    const { blobs, children } = contentOf([graph, ...belongings.map((belonging) => belonging.graph)]);
    try {
      for (const repository of this.#repositories) await this.#verify(repository, blobs, children, lookUp);
      return true;
    } catch (error) {
      if (error instanceof AppError && error.code === 'registry_rejected') return false;
      throw error;
    }
  }

  /** Blobs and all manifests but the roots, which come with their tags. */
  async #copyTo(
    repository: string,
    blobs: readonly Descriptor[],
    children: readonly Descriptor[],
    onBytes?: (descriptor: Descriptor, bytesDone: number) => void,
  ): Promise<void> {
    await allOrFirstError(blobs.map((blob) => this.copier.ensure(repository, blob, (bytes) => onBytes?.(blob, bytes))));
    for (const manifest of children)
      if ((await this.#digestAt(repository, manifest.digest)) === undefined)
        await this.#put(repository, manifest.digest, manifest);
  }

  /** Rule: nothing is reported stored that the registry does not say it has, or that does not lie in its folder. */
  async #verify(
    repository: string,
    blobs: readonly Descriptor[],
    children: readonly Descriptor[],
    ask: Ask = withRetry,
  ): Promise<void> {
    await allOrFirstError(blobs.map((blob) => this.copier.verify(repository, blob, ask)));
    for (const manifest of children) await this.#expect(repository, manifest.digest, manifest, ask);
  }

  /**
   * The registry checks that all children are there, and answers with the digest of what it stored; what it then gives
   * to whoever pulls is asked for.
   */
  async #put(repository: string, reference: string, { digest, mediaType }: Descriptor): Promise<void> {
    const bytes = await this.#manifestToPut(digest);
    await this.#call((registry, signal) => registry.putManifest(repository, reference, bytes, mediaType, { signal }));
    await this.#prove(repository, reference, digest);
  }

  async #manifestToPut(digest: Digest): Promise<Uint8Array> {
    const bytes = await this.options.source.readManifest(digest);
    await (this.options.storage ?? this.options.repairs)?.setAsideDamaged({ digest, size: bytes.byteLength });
    return bytes;
  }

  /** Throws `images_damaged` unless a pull gets the bytes of the manifest. */
  async #prove(repository: string, reference: string, digest: Digest): Promise<void> {
    const found = await this.#digestAt(repository, reference);
    if (found === digest) return;
    throw new AppError('images_damaged', {
      detail: `the registry has taken ${repository}, ${reference}, and answers with ${found ?? 'nothing that is this manifest'}: its file ${digest} is damaged`,
      digest,
    });
  }

  /**
   * By its tag, or as a referrer, which a registry without the referrers API finds by the list under
   * `sha256-<subject>`.
   */
  async #putCompanion(repository: string, { root, subject, tag }: Companion): Promise<void> {
    if (tag !== undefined) return this.#put(repository, tag, root);
    const bytes = await this.#manifestToPut(root.digest);
    await this.#call((registry, signal) =>
      registry.putReferrer(repository, companionTag(subject), bytes, root.mediaType, { signal }),
    );
    await this.#prove(repository, root.digest, root.digest);
  }

  /** What a tag or digest leads to: in the registry's folder, where that is ours to see, or asked of the registry. */
  async #digestAt(repository: string, reference: string, ask: Ask = lookUp): Promise<Digest | undefined> {
    const { registry, storage, signal, retry } = this.options;
    const found = await storage?.resolve(repository, reference);
    return found ?? ask(() => answeredDigest(registry, repository, reference, signal), signal, retry);
  }

  async #expect(repository: string, reference: string, { digest }: Descriptor, ask: Ask = withRetry): Promise<void> {
    const found = await this.#digestAt(repository, reference, ask);
    if (found === digest) return;
    throw new AppError('registry_rejected', {
      detail: `the registry answers ${repository}, ${reference} with ${found ?? 'nothing'}`,
      digest,
      ...(found ? {} : { registryCode: 'MANIFEST_UNKNOWN' }),
    });
  }

  #call<T>(work: (registry: RegistryClient, signal: AbortSignal | undefined) => Promise<T>): Promise<T> {
    const { registry, signal, retry } = this.options;
    return withRetry(() => work(registry, signal), signal, retry);
  }
}

/**
 * Of the manifest that a registry really answers with; undefined when there is none, or when its bytes are others than
 * it says: HEAD would not tell.
 */
export async function answeredDigest(
  registry: RegistryClient,
  repository: string,
  reference: string,
  signal?: AbortSignal,
): Promise<Digest | undefined> {
  try {
    return (await registry.getManifest(repository, reference, { signal }))?.digest;
  } catch (error) {
    if (error instanceof AppError && ['digest_mismatch', 'bundle_corrupt', 'image_unsupported'].includes(error.code))
      return undefined;
    throw error;
  }
}

/**
 * The registry says that it does not have what an image needs. Source:
 * https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes
 */
const isPartMissing = (error: unknown): boolean =>
  error instanceof AppError &&
  error.code === 'registry_rejected' &&
  ['BLOB_UNKNOWN', 'MANIFEST_UNKNOWN', 'MANIFEST_BLOB_UNKNOWN'].includes(String(error.details.registryCode));

/** The root is last. */
const childrenOf = ({ manifests }: ImageGraph): Descriptor[] => manifests.slice(0, -1);

/** Like `Promise.all`, but nothing is still running when it rejects: the caller may then close what the work uses. */
async function allOrFirstError(work: Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find((result) => result.status === 'rejected');
  if (failed) throw failed.reason;
}

/** What has to be in a repository before the roots: blobs, each once, and all other manifests. */
const contentOf = (graphs: readonly ImageGraph[]): { blobs: Descriptor[]; children: Descriptor[] } => ({
  blobs: [...new Map(graphs.flatMap(({ blobs }) => blobs).map((blob) => [blob.digest, blob])).values()],
  children: graphs.flatMap(childrenOf),
});

/** Everything that an image consists of, each digest once: its root first, what belongs to it last. */
export function partsOf(
  { manifests, images, blobs }: ImageGraph,
  belongings: readonly Pick<Belonging, 'graph'>[],
): ImagePart[] {
  const parts = new Map<Digest, ImagePart>();
  const add = ({ digest, size }: Descriptor, kind: ImagePart['kind'], platform?: string) => {
    if (!parts.has(digest)) parts.set(digest, platform ? { digest, size, kind, platform } : { digest, size, kind });
  };
  for (const manifest of manifests.toReversed()) add(manifest, 'manifest');
  for (const { descriptor, manifest } of images) {
    add(manifest.config, 'config');
    for (const layer of manifest.layers)
      add(layer, 'layer', descriptor.platform && formatPlatform(descriptor.platform));
  }
  // What is left are attestations inside of the index.
  for (const blob of [...blobs, ...belongings.flatMap(({ graph }) => [...graph.manifests, ...graph.blobs])])
    add(blob, 'companion');
  return [...parts.values()];
}

/**
 * The failures of a copy as one error, or undefined: the first that waiting would not cure, else the first. Its detail
 * says how many images failed, and `images` names them.
 */
export function failureOf(copied: readonly CopiedImage[]): AppError | undefined {
  const failed = copied.filter(({ error }) => error);
  const first = failed.find(({ error }) => !isTransient(error)) ?? failed[0];
  if (!first?.error) return undefined;
  const { code, details, message } = first.error;
  const detail = `${failed.length} of ${copied.length} images failed, first ${first.image.names[0]}: ${details.detail ?? message}`;
  return new AppError(
    code,
    { ...details, detail, images: failed.flatMap(({ image }) => image.names).slice(0, 100) },
    { cause: first.error },
  );
}
