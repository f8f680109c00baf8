import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import {
  type Descriptor,
  type ImageManifest,
  isIndexMediaType,
  isManifestMediaType,
  mediaTypes,
  type Platform,
  parseImageConfig,
  parseManifest,
} from '@airdock/core/oci/manifest';
import { hasImageTypes, hasZstdLayers, isImageConfig } from '@airdock/core/oci/runs';

const maxDepth = 5;
const maxManifests = 10_000;
/** Of all manifests of an image: they are parsed, and stay in memory. A hundred platforms need less than 1 MB. */
const maxGraphBytes = 64 * 1024 * 1024;

/** Everything that belongs to an image, each digest once. */
export interface ImageGraph {
  /** Manifests and indexes, children before what refers to them; the root is last. */
  manifests: Descriptor[];
  /** Configs and layers. */
  blobs: Descriptor[];
  /** The manifests that can be run: without attestations, which travel with an index too. */
  images: { descriptor: Descriptor; manifest: ImageManifest }[];
}

/**
 * BuildKit's provenance and SBOM documents. Source:
 * https://github.com/moby/buildkit/blob/master/docs/attestations/attestation-storage.md
 */
export const isAttestation = ({ platform, annotations }: Descriptor): boolean =>
  annotations?.['vnd.docker.reference.type'] === 'attestation-manifest' ||
  (platform?.os === 'unknown' && platform.architecture === 'unknown');

/** Layers that stay on the servers of their vendor. */
export const isForeignLayer = ({ mediaType }: Descriptor): boolean =>
  mediaType === mediaTypes.dockerForeignLayer || mediaType.includes('.nondistributable.');

/**
 * The refusal of a layer that its vendor keeps; `urls` says where its vendor has it. They come from the bundle, and
 * nobody here opens them.
 */
export const foreignLayer = ({
  digest,
  urls = [],
}: {
  digest: string;
  urls?: readonly string[] | undefined;
}): AppError =>
  new AppError('layer_foreign', { detail: digest, digest, urls: urls.slice(0, 10).map((url) => url.slice(0, 2000)) });

/**
 * Refuses what no registry takes or no host could run: `layer_encrypted`, `layer_foreign`, `compression_unsupported`,
 * `image_unsupported` for other blobs with urls, and `bundle_corrupt` for blobs that say to be something which cannot
 * be at their place.
 */
export function checkKinds({ images, blobs }: ImageGraph): void {
  for (const blob of [...blobs, ...images.flatMap(({ manifest }) => manifest.layers)]) {
    // The `distribution` registry refuses urls that it was not told to allow, and Docker's foreign layers without any,
    // as if it would do so only now.
    if (blob.mediaType === mediaTypes.dockerForeignLayer) throw foreignLayer(blob);
    if (!blob.urls?.length) continue;
    if (isForeignLayer(blob)) throw foreignLayer(blob);
    throw new AppError('image_unsupported', {
      detail: `${blob.digest} is said to lie elsewhere too, which registries refuse`,
      digest: blob.digest,
    });
  }
  for (const { descriptor, manifest } of images) {
    const corrupt = (blob: Descriptor, role: string) =>
      new AppError('bundle_corrupt', {
        detail: `${descriptor.digest} has a ${role} of type ${blob.mediaType.slice(0, 100)}`,
        digest: blob.digest,
      });
    if (isManifestMediaType(manifest.config.mediaType) || isLayer(manifest.config))
      throw corrupt(manifest.config, 'configuration');
    for (const layer of manifest.layers) {
      const { mediaType, digest } = layer;
      if (isManifestMediaType(mediaType) || isImageConfig(layer)) throw corrupt(layer, 'layer');
      if (mediaType.endsWith('+encrypted'))
        throw new AppError('layer_encrypted', { detail: `${digest} is of type ${mediaType}`, digest });
      const compression = isLayer(layer) ? /\+(.+)$/.exec(mediaType)?.[1] : undefined;
      if (compression && compression !== 'gzip' && compression !== 'zstd')
        throw new AppError('compression_unsupported', {
          detail: `the layer ${digest} is compressed with ${compression.slice(0, 50)}`,
          digest,
        });
    }
  }
}

const isLayer = ({ mediaType }: Descriptor): boolean =>
  /^application\/vnd\.(oci\.image\.layer\.|docker\.image\.rootfs\.)/.test(mediaType);

/**
 * Follows an image down to its blobs. `readManifest` must return verified bytes. Throws `bundle_corrupt` for documents
 * that contradict their descriptors, `bundle_too_large`, `image_unsupported` for children that are no manifests, and
 * what `readManifest` throws.
 */
export async function walkImage(
  root: Descriptor,
  readManifest: (digest: Digest) => Promise<Uint8Array>,
): Promise<ImageGraph> {
  const manifests = new Map<Digest, Descriptor>();
  const blobs = new Map<Digest, Descriptor>();
  const images: ImageGraph['images'] = [];
  let graphBytes = 0;
  const corrupt = (descriptor: Descriptor, detail: string) =>
    new AppError('bundle_corrupt', { detail: `${descriptor.digest}: ${detail}`, digest: descriptor.digest });

  const visit = async (descriptor: Descriptor, depth: number, attestation: boolean): Promise<void> => {
    if (manifests.has(descriptor.digest)) return;
    if (depth > maxDepth || manifests.size >= maxManifests)
      throw corrupt(descriptor, 'indexes are nested too deep, or have too many manifests');
    if (!isManifestMediaType(descriptor.mediaType)) {
      throw new AppError('image_unsupported', {
        detail: `${descriptor.digest} is of type ${descriptor.mediaType.slice(0, 100)}`,
        digest: descriptor.digest,
      });
    }
    const bytes = await readManifest(descriptor.digest);
    if (bytes.byteLength !== descriptor.size)
      throw corrupt(descriptor, `has ${bytes.byteLength} bytes, its descriptor says ${descriptor.size}`);
    graphBytes += bytes.byteLength;
    if (graphBytes > maxGraphBytes)
      throw new AppError('bundle_too_large', {
        detail: `${root.digest} has more than ${maxGraphBytes} bytes of manifests`,
      });
    const document = parseManifest(bytes, descriptor.mediaType);
    // Two readers must never see two different things in one document.
    if (
      document.mediaType !== descriptor.mediaType ||
      isIndexMediaType(descriptor.mediaType) !== (document.kind === 'index')
    ) {
      throw corrupt(descriptor, `is ${document.mediaType.slice(0, 100)}, its descriptor says ${descriptor.mediaType}`);
    }
    if (document.kind === 'index') {
      for (const child of document.manifests) await visit(child, depth + 1, attestation || isAttestation(child));
    } else {
      if (!attestation) images.push({ descriptor, manifest: document });
      for (const blob of [document.config, ...document.layers]) {
        const known = blobs.get(blob.digest);
        if (known && known.size !== blob.size)
          throw corrupt(descriptor, `says ${blob.digest} has ${blob.size} bytes, another manifest says ${known.size}`);
        blobs.set(blob.digest, known ?? blob);
      }
    }
    manifests.set(descriptor.digest, descriptor);
  };
  await visit(root, 0, false);
  return { manifests: [...manifests.values()], blobs: [...blobs.values()], images };
}

const maxConfigBytes = 8 * 1024 * 1024;

/** What of an image decides where it runs, see `runsOn`. */
export interface ImageFacts {
  /** One per image manifest, in the order of the index; empty for what runs nowhere. */
  platforms: Platform[];
  /** Those of them whose layers are compressed with zstd. */
  zstdPlatforms: Platform[];
  sizeBytes: number;
  configDigests: Digest[];
}

/**
 * Platforms, image IDs (of what runs) and size of an image. `readConfig` must return verified bytes, at most
 * `maxBytes`. With `strict` it throws `bundle_corrupt` for configurations that readers understand differently, or that
 * speak of other layers than the manifest: no engine runs such an image.
 */
export async function describeImage(
  { images, manifests, blobs }: ImageGraph,
  readConfig: (config: Descriptor, maxBytes: number) => Promise<Uint8Array>,
  { strict = false } = {},
): Promise<ImageFacts> {
  const platforms: Platform[] = [];
  const zstdPlatforms: Platform[] = [];
  const configDigests: Digest[] = [];
  for (const { manifest } of images) {
    // Charts, signatures and other artifacts have configurations or layers of their own kinds, or a configuration that
    // speaks of no layers or of no platform.
    const config = hasImageTypes(manifest)
      ? parseImageConfig(await readConfig(manifest.config, maxConfigBytes), { strict })
      : undefined;
    if (config?.diffIds) {
      const { platform, diffIds } = config;
      if (strict && diffIds.length !== manifest.layers.length) {
        const detail = `${manifest.config.digest} speaks of ${diffIds.length} layers, its manifest of ${manifest.layers.length}`;
        throw new AppError('bundle_corrupt', { detail, digest: manifest.config.digest });
      }
      if (platform.os === '' || platform.architecture === '') continue;
      platforms.push(platform);
      if (hasZstdLayers(manifest)) zstdPlatforms.push(platform);
      configDigests.push(manifest.config.digest);
    }
  }
  return { platforms, zstdPlatforms, sizeBytes: totalSize([...manifests, ...blobs]), configDigests };
}

/** The sum of sizes, in bytes. */
export const totalSize = (descriptors: Iterable<{ size: number }>): number => {
  let sum = 0;
  for (const { size } of descriptors) sum += size;
  return sum;
};
