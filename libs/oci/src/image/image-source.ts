import type { Readable } from 'node:stream';
import { AppError, type ErrorCode } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import type { Descriptor, Platform } from '@airdock/core/oci/manifest';

/** One blob that can be read as often as needed: a retry opens it again. */
export interface BlobReader {
  /** Bytes. */
  size: number;
  /**
   * The bytes from `start` (default 0) to the end. The caller destroys the stream. Content is not verified here:
   * consumers hash what they move.
   */
  open(range?: { start: number }): Readable;
  /**
   * Where the bytes lie, when they lie in one piece in a file: a copy may read them there without a stream. `verified`
   * is the digest of the whole file when it is ours, was hashed when it was written and never changes.
   */
  file?: { path: string; offset: number; verified?: Digest | undefined } | undefined;
}

/** A signature, attestation or SBOM that is stored beside an image and travels with it. */
export interface Companion {
  root: Descriptor;
  /** The manifest of the image that it speaks of. */
  subject: Digest;
  /**
   * The tag that leads to it, as cosign writes it: `sha256-<hex>.sig`. Undefined for a referrer, which names its
   * subject itself.
   */
  tag?: string | undefined;
}

/** What is known of an image by looking at its metadata only. */
export interface SourceImage {
  /**
   * Full upstream references as `formatReference` writes them, e.g. `k8s.gcr.io/pause:3.2`; of a backup:
   * `repository:tag`, names in the local registry.
   */
  names: string[];
  /**
   * Manifest or index, exactly as the registry will hold it. Undefined while it has to be made: a docker-archive has no
   * manifest before its layers are compressed; `ImageSource.prepare` makes and returns it.
   */
  root?: Descriptor | undefined;
  /** One per image manifest, in the order of the index. */
  platforms: Platform[];
  /** Those of them whose layers are compressed with zstd. */
  zstdPlatforms?: readonly Platform[] | undefined;
  /**
   * Unique blobs and manifests, with those of companions, bytes as they lie in the source: of a docker-archive the
   * uncompressed layers.
   */
  sizeBytes: number;
  /** Image IDs, one per image manifest. Together they identify the image in its source, before `root` is known too. */
  configDigests: Digest[];
  companions?: readonly Companion[] | undefined;
}

/** A list of images that came inside a bundle, e.g. `images.txt`. */
export interface ImageList {
  name: string;
  /** Full upstream references. */
  images: string[];
}

/** How an image is prepared for reading, and who hears of it. */
export interface PrepareOptions {
  signal?: AbortSignal | undefined;
  /** Called with the source bytes processed so far, of `SourceImage.sizeBytes`. */
  onProgress?: ((bytesDone: number) => void) | undefined;
}

/** An entry of a bundle that stays behind, or does not travel as it was, and why. */
export interface UnusableImage {
  /** The upstream reference, or the tag, that the bundle has for it. */
  name: string | null;
  /** Of its manifest or index; of a docker-archive that of its configuration. */
  digest: string | null;
  code: ErrorCode;
  detail: string;
}

/**
 * The entry for what opening an image has thrown. What is no fault of that image alone is thrown again: a file that was
 * cut, or that nobody should trust.
 */
export function unusableImage(error: unknown, { name, digest }: Pick<UnusableImage, 'name' | 'digest'>): UnusableImage {
  if (
    !(error instanceof AppError) ||
    error.family !== 'invalid' ||
    error.code === 'bundle_truncated' ||
    error.code === 'bundle_unsafe'
  )
    throw error;
  const entry = { name, digest, code: error.code, detail: (error.details.detail ?? error.message).slice(0, 500) };
  reasons.set(entry, error);
  return entry;
}

const reasons = new WeakMap<UnusableImage, AppError>();

/**
 * For a bundle that shall not be used in part, or has nothing else: the error of its first unusable image. `unnamed`
 * are what `names` of a request may use as keys.
 */
export function refusalOf(unusable: readonly UnusableImage[]): AppError {
  const [first] = unusable as [UnusableImage];
  const unnamed = unusable.filter(({ code }) => code === 'image_name_missing').map(({ digest }) => digest);
  return new AppError(
    first.code,
    {
      ...(first.digest !== null && { digest: first.digest }),
      ...reasons.get(first)?.details,
      detail: unusable.length > 1 ? `${first.detail}, and ${unusable.length - 1} more` : first.detail,
      ...(first.name !== null && { image: first.name }),
      ...(unnamed.length > 0 && { unnamed: unnamed.slice(0, 1000) }),
      ...(unusable.length > 1 && { unusable: unusable.slice(0, 100) }),
    },
    { cause: reasons.get(first) },
  );
}

/**
 * Where images come from. Disposing it closes files and removes what it unpacked; compressed layers stay in the work
 * folder for the next run.
 */
export interface ImageSource extends AsyncDisposable {
  readonly format: 'docker-archive' | 'oci-archive' | 'oci-layout' | 'zarf-package' | 'backup';
  readonly images: readonly SourceImage[];
  /** What else the bundle has, which is not among `images` as it was made. */
  readonly unusable: readonly UnusableImage[];
  /** Lists of images that came with them. */
  lists?: readonly ImageList[] | undefined;
  /**
   * Does what has to be done before the manifests and blobs of an image can be read, and returns its root. Idempotent;
   * costs nothing where `image.root` is known. Throws `digest_mismatch` naming the damaged layer, `space_insufficient`,
   * and the signal's reason.
   */
  prepare(image: SourceImage, options?: PrepareOptions): Promise<Descriptor>;
  /**
   * The blobs that an image needs, as far as they are known before `prepare`: without a digest is a layer that has to
   * be compressed first, with its size before that. Only a source whose images have no root has this; of the others the
   * manifests tell.
   */
  blobsOf?(image: SourceImage): Promise<{ digest?: Digest | undefined; size: number }[]>;
  /**
   * Bytes of a manifest or index below a prepared root, verified against the digest. Throws `bundle_corrupt` or
   * `backup_corrupt`.
   */
  readManifest(digest: Digest): Promise<Uint8Array>;
  /** A config or layer of a prepared image. */
  blob(descriptor: Descriptor): Promise<BlobReader>;
}
