import { createReadStream } from 'node:fs';
import { posix } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf, isDigest } from '@airdock/core/oci/digest';
import { type DockerArchiveImage, parseDockerArchive } from '@airdock/core/oci/docker-archive';
import {
  type Descriptor,
  maxManifestBytes,
  mediaTypes,
  type Platform,
  parseImageConfig,
} from '@airdock/core/oci/manifest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import pLimit from 'p-limit';
import { blockSize } from '../archive/tar-header.js';
import { hashing, type LayerCache } from '../compression/layer-cache.js';
import { bounded, compressionOf } from '../compression/unpack.js';
import { foreignLayer } from '../image/image-graph.js';
import { type GivenNames, givenNames } from '../image/image-names.js';
import {
  type BlobReader,
  type ImageList,
  type ImageSource,
  type PrepareOptions,
  type SourceImage,
  type UnusableImage,
  unusableImage,
} from '../image/image-source.js';
import { type BundleFiles, missingFile, readSmall } from './bundle-files.js';

/**
 * Reads what `docker save` writes. It has no manifests, and layers are not compressed: `prepare` compresses them once
 * and makes the Docker schema 2 manifest, so that the same archive and the same compression program give the same
 * digest.
 */
const maxConfigBytes = 8 * 1024 * 1024;
const checksAtOnce = 4;

interface Layer {
  member: string;
  diffId: Digest;
  reader: BlobReader;
}

interface ArchiveImage {
  config: { digest: Digest; reader: BlobReader; size: number };
  platform: Platform;
  layers: Layer[];
}

/**
 * The digest that a configuration's name promises: `<hex>.json`, `blobs/sha256/<hex>` since Docker 25, or crane's
 * `sha256:<hex>`.
 */
function promisedDigest(member: string): Digest | undefined {
  const text = `sha256:${posix.basename(member).replace(/^sha256:|\.json$/g, '')}`;
  return isDigest(text) ? text : undefined;
}

async function inspectImage(files: BundleFiles, entry: DockerArchiveImage): Promise<ArchiveImage> {
  const configReader = await files.find(entry.config);
  if (!configReader) throw missingFile(files, entry.config);
  const config = await readSmall(entry.config, configReader, maxConfigBytes);
  const digest = digestOf(config);
  const promised = promisedDigest(entry.config);
  if (promised && promised !== digest) {
    throw new AppError('digest_mismatch', {
      detail: `${entry.config} has the digest ${digest}`,
      member: entry.config,
      expected: promised,
      actual: digest,
    });
  }
  const { platform, diffIds = [] } = parseImageConfig(config, { strict: true });
  if (diffIds.length !== entry.layers.length) {
    throw new AppError('bundle_corrupt', {
      detail: `${entry.config} speaks of ${diffIds.length} layers, manifest.json of ${entry.layers.length}`,
      member: entry.config,
    });
  }
  const layers: Layer[] = [];
  for (const [index, member] of entry.layers.entries()) {
    const diffId = diffIds[index];
    const reader = await files.find(member);
    const urls = entry.layerUrls.get(diffId ?? '');
    if (!reader && diffId && urls) throw foreignLayer({ digest: diffId, urls });
    if (!reader) throw missingFile(files, member);
    if (!isDigest(diffId))
      throw new AppError('bundle_corrupt', {
        detail: `${entry.config} has a diff ID that is no digest`,
        member: entry.config,
      });
    layers.push({ member, diffId, reader });
  }
  return { config: { digest, reader: configReader, size: config.byteLength }, platform, layers };
}

const uniqueLayers = (layers: readonly Layer[]): Layer[] => [
  ...new Map(layers.map((layer) => [layer.diffId, layer])).values(),
];

class DockerArchive implements ImageSource {
  readonly format = 'docker-archive';
  readonly images: readonly SourceImage[];
  lists?: readonly ImageList[];
  readonly #roots = new Map<SourceImage, Descriptor>();
  readonly #manifests = new Map<Digest, Uint8Array>();
  readonly #blobs = new Map<Digest, BlobReader>();
  readonly #checks = pLimit(checksAtOnce);

  constructor(
    private readonly layerCache: LayerCache,
    private readonly details: ReadonlyMap<SourceImage, ArchiveImage>,
    readonly unusable: readonly UnusableImage[],
  ) {
    this.images = [...details.keys()];
  }

  async prepare(image: SourceImage, { signal, onProgress }: PrepareOptions = {}): Promise<Descriptor> {
    const known = this.#roots.get(image);
    if (known) return known;
    const details = this.details.get(image);
    if (!details) throw new TypeError('the image is of another source');
    let bytesDone = details.config.size;
    const onBytes = (count: number) => {
      bytesDone += count;
      onProgress?.(Math.min(bytesDone, image.sizeBytes));
    };
    const compressed = new Map<Digest, Descriptor>();
    const prepared = await Promise.allSettled(
      uniqueLayers(details.layers).map(async (layer) =>
        compressed.set(layer.diffId, await this.#prepareLayer(layer, signal, onBytes)),
      ),
    );
    for (const result of prepared) if (result.status === 'rejected') throw result.reason;
    this.#blobs.set(details.config.digest, details.config.reader);
    const describe = ({ digest, size, mediaType }: Descriptor) => ({ mediaType, size, digest });
    // The order of keys is part of the digest.
    const manifest = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: mediaTypes.dockerManifest,
        config: { mediaType: mediaTypes.dockerConfig, size: details.config.size, digest: details.config.digest },
        layers: details.layers.map(({ diffId }) => describe(compressed.get(diffId) as Descriptor)),
      }),
    );
    if (manifest.byteLength > maxManifestBytes)
      throw new AppError('image_unsupported', { detail: 'the manifest would be larger than registries take' });
    const digest = digestOf(manifest);
    this.#manifests.set(digest, manifest);
    const root = { mediaType: mediaTypes.dockerManifest, digest, size: manifest.byteLength };
    this.#roots.set(image, root);
    return root;
  }

  async #prepareLayer(
    { diffId, member, reader }: Layer,
    signal: AbortSignal | undefined,
    onBytes: (count: number) => void,
  ): Promise<Descriptor> {
    const compression = compressionOf(await firstBytes(reader, blockSize));
    // Docker's own manifests have no word for zstd either.
    if (compression && compression !== 'gzip')
      throw new AppError('compression_unsupported', { detail: `${member} is compressed with ${compression}`, member });
    if (compression === 'gzip') {
      const { digest, size } = await this.#checks(() => checkGzip(diffId, member, reader, signal, onBytes));
      this.#blobs.set(digest, reader);
      return { mediaType: mediaTypes.dockerLayerGzip, digest, size };
    }
    const { path, digest, size } = await this.layerCache.get(diffId, member, reader, { signal, onBytes });
    this.#blobs.set(digest, {
      size,
      file: { path, offset: 0, verified: digest },
      open: ({ start } = { start: 0 }) => createReadStream(path, { start, highWaterMark: 1024 * 1024 }),
    });
    return { mediaType: mediaTypes.dockerLayerGzip, digest, size };
  }

  async blobsOf(image: SourceImage): Promise<{ digest?: Digest | undefined; size: number }[]> {
    const { config, layers } = this.details.get(image) as ArchiveImage;
    const known = uniqueLayers(layers).map(
      async ({ diffId, reader }) => (await this.layerCache.find(diffId)) ?? { size: reader.size },
    );
    return [config, ...(await Promise.all(known))];
  }

  async readManifest(digest: Digest): Promise<Uint8Array> {
    const bytes = this.#manifests.get(digest);
    if (!bytes) throw new AppError('bundle_corrupt', { detail: `${digest} is no manifest of a prepared image` });
    return bytes;
  }

  async blob({ digest }: Descriptor): Promise<BlobReader> {
    const reader = this.#blobs.get(digest);
    if (!reader) throw new AppError('bundle_corrupt', { detail: `${digest} is no blob of a prepared image` });
    return reader;
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/**
 * The digest of a layer that came compressed; it travels as it is. Its content must still be what the configuration
 * says.
 */
async function checkGzip(
  diffId: Digest,
  member: string,
  reader: BlobReader,
  signal: AbortSignal | undefined,
  onBytes: (count: number) => void,
) {
  const compressed = hashing(onBytes);
  const plain = hashing();
  const gunzip = createGunzip({ chunkSize: 1024 * 1024 });
  try {
    await pipeline(
      reader.open(),
      compressed.through,
      gunzip,
      bounded(reader.size, member),
      plain.through.resume(),
      signal ? { signal } : {},
    );
    // Zeros behind the end, which Go's gzip and so every container engine refuses.
    if (gunzip.bytesWritten !== reader.size) throw new Error('bytes after the end');
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof AppError) throw cause;
    throw new AppError('bundle_corrupt', { detail: `${member} is damaged gzip`, member }, { cause });
  }
  const actual = plain.digest();
  if (actual !== diffId)
    throw new AppError('digest_mismatch', {
      detail: `${member} has the digest ${actual}, its image says ${diffId}`,
      member,
      expected: diffId,
      actual,
    });
  return { digest: compressed.digest(), size: compressed.size() };
}

/** The start of a file, padded with zeros. */
export async function firstBytes(reader: BlobReader, count: number): Promise<Buffer> {
  const start = Buffer.alloc(count);
  let filled = 0;
  for await (const chunk of reader.open()) {
    filled += (chunk as Buffer).copy(start, filled);
    if (filled >= count) break;
  }
  return start;
}

/**
 * Names with tags. containerd writes IDs too, and names by the digest of the manifest or index which the archive was
 * made from, and does not have.
 */
function tagsOf(
  { repoTags }: Pick<DockerArchiveImage, 'repoTags'>,
  onError: (error: unknown, tag: string) => void,
): string[] {
  return repoTags.flatMap((text) => {
    try {
      const reference = parseReference(text);
      return reference.tag && !isDigest(text) ? [formatReference({ ...reference, digest: undefined })] : [];
    } catch (error) {
      onError(error, text);
      return [];
    }
  });
}

async function readListing(files: BundleFiles): Promise<ReturnType<typeof parseDockerArchive>> {
  const listing = await files.find('manifest.json');
  if (!listing) throw missingFile(files, 'manifest.json');
  return parseDockerArchive(await readSmall('manifest.json', listing, maxManifestBytes));
}

/**
 * The names that a docker-archive has for its images, by the digests that the names of their configurations promise.
 * What is no reference is left out.
 */
export async function namesByConfig(files: BundleFiles): Promise<Map<Digest, string[]>> {
  const names = new Map<Digest, string[]>();
  for (const { config, repoTags } of (await readListing(files)).images) {
    const digest = promisedDigest(config);
    // What is no reference is named by whoever opens the archive.
    const references = tagsOf({ repoTags }, () => undefined);
    if (digest) names.set(digest, [...new Set([...(names.get(digest) ?? []), ...references])]);
  }
  return names;
}

/**
 * Opens a docker-archive. Reads metadata only; images that are not whole are in `unusable`. Throws what is wrong with
 * the list itself: `bundle_corrupt`, `bundle_truncated`, `bundle_too_large`.
 */
export async function openDockerArchive(
  files: BundleFiles,
  layerCache: LayerCache,
  { names: given = {}, signal }: { names?: GivenNames | undefined; signal?: AbortSignal | undefined } = {},
): Promise<ImageSource> {
  const byConfig = new Map<Digest, { source: SourceImage; details: ArchiveImage }>();
  const listing = await readListing(files);
  const unusable = listing.odd.map(({ error, ...entry }) => unusableImage(error, entry));
  for (const entry of listing.images) {
    signal?.throwIfAborted();
    const leaveOut = (error: unknown, name: string | null) =>
      unusable.push(unusableImage(error, { name, digest: promisedDigest(entry.config) ?? null }));
    let details: ArchiveImage;
    try {
      details = await inspectImage(files, entry);
    } catch (error) {
      for (const name of entry.repoTags.length > 0 ? entry.repoTags : [null]) leaveOut(error, name);
      continue;
    }
    const { digest } = details.config;
    const names = tagsOf(entry, leaveOut);
    const known = byConfig.get(digest);
    if (known) known.source.names = [...new Set([...known.source.names, ...names])];
    else {
      const sizeBytes =
        details.config.size + uniqueLayers(details.layers).reduce((sum, { reader }) => sum + reader.size, 0);
      byConfig.set(digest, {
        details,
        source: { names: [...new Set(names)], platforms: [details.platform], sizeBytes, configDigests: [digest] },
      });
    }
  }
  for (const [digest, { source }] of byConfig) {
    if (source.names.length === 0) source.names = givenNames(given, [digest]);
    if (source.names.length > 0) continue;
    const detail = `the image ${digestHex(digest).slice(0, 12)} was saved without its name`;
    unusable.push({ name: null, digest, code: 'image_name_missing', detail });
  }
  const named = [...byConfig.values()].filter(({ source }) => source.names.length > 0);
  return new DockerArchive(layerCache, new Map(named.map(({ source, details }) => [source, details])), unusable);
}
