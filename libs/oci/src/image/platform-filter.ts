import { AppError } from '@airdock/core/errors';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import {
  type Descriptor,
  filterIndex,
  formatPlatform,
  isIndexMediaType,
  type Platform,
  parseManifest,
} from '@airdock/core/oci/manifest';
import { isPlatformWanted } from '@airdock/core/oci/runs';
import { describeImage, isAttestation, totalSize, walkImage } from './image-graph.js';
import type { ImageSource, SourceImage } from './image-source.js';

const attestationOf = 'vnd.docker.reference.digest';

/**
 * The same source with only these platforms (`linux/amd64`; without a variant any). An image that has all that is left
 * of it keeps its digest; of others one manifest becomes the image, or a new index of several. Images without any of
 * the platforms are left out; what runs nowhere, such as charts, stays. Disposing the result disposes the source.
 * Throws `image_not_found` when nothing is left.
 */
export async function filterPlatforms(source: ImageSource, wanted: readonly string[]): Promise<ImageSource> {
  const made = new Map<Digest, Buffer>();
  const originals = new Map<SourceImage, SourceImage>();
  const readManifest = async (digest: Digest) => made.get(digest) ?? (await source.readManifest(digest));
  const isWanted = (platform: Platform) => wanted.some((text) => isPlatformWanted(formatPlatform(platform), text));
  for (const image of source.images) {
    if (image.platforms.every(isWanted)) originals.set(image, image);
    else if (image.platforms.some(isWanted) && image.root && isIndexMediaType(image.root.mediaType)) {
      const root = await restrict(image.root);
      originals.set(await describe(image, root), image);
    }
  }
  if (originals.size === 0)
    throw new AppError('image_not_found', { detail: `no image of the bundle is for ${wanted.join(', ')}` });

  async function restrict(root: Descriptor): Promise<Descriptor> {
    const bytes = Buffer.from(await readManifest(root.digest));
    const index = parseManifest(bytes, root.mediaType);
    if (index.kind !== 'index') return root;
    const kept = new Set<string>();
    for (const child of index.manifests) if (await matches(child)) kept.add(child.digest);
    for (const child of index.manifests) if (kept.has(child.annotations?.[attestationOf] ?? '')) kept.add(child.digest);
    const [only] = index.manifests.filter(({ digest }) => kept.has(digest));
    if (only && kept.size === 1) return { mediaType: only.mediaType, digest: only.digest, size: only.size };
    const filtered = filterIndex(bytes, (digest) => kept.has(digest));
    const digest = digestOf(filtered);
    made.set(digest, filtered);
    return { mediaType: root.mediaType, digest, size: filtered.byteLength };
  }

  /**
   * By the platform that the index says, else by that of the configuration. What runs nowhere is for all platforms;
   * what speaks of a sibling goes with that.
   */
  async function matches(child: Descriptor): Promise<boolean> {
    if (isAttestation(child) || child.annotations?.[attestationOf]) return false;
    if (child.platform?.os) return isWanted(child.platform);
    const { platforms } = await factsOf(child);
    return platforms.length === 0 || platforms.some(isWanted);
  }

  async function factsOf(root: Descriptor) {
    const { images } = await walkImage(root, readManifest);
    return describeImage({ images, manifests: [], blobs: [] }, async (config) => readBlob(config));
  }

  async function readBlob(descriptor: Descriptor): Promise<Buffer> {
    const chunks: Buffer[] = [];
    for await (const chunk of (await source.blob(descriptor)).open()) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks);
  }

  /** Signatures of what is left still hold; those of the whole do not. */
  async function describe(image: SourceImage, root: Descriptor): Promise<SourceImage> {
    const graph = await walkImage(root, readManifest);
    const there = new Set<string>(graph.manifests.map(({ digest }) => digest));
    const companions = (image.companions ?? []).filter(({ subject }) => there.has(subject));
    const graphs = [
      graph,
      ...(await Promise.all(companions.map((companion) => walkImage(companion.root, readManifest)))),
    ];
    const parts = new Map(
      graphs.flatMap(({ manifests, blobs }) => [...manifests, ...blobs]).map((part) => [part.digest, part]),
    );
    return { ...image, root, companions, ...(await factsOf(root)), sizeBytes: totalSize(parts.values()) };
  }

  return {
    format: source.format,
    lists: source.lists,
    unusable: source.unusable,
    images: [...originals.keys()],
    prepare: async (image, options) =>
      image.root ? image.root : source.prepare(originals.get(image) ?? image, options),
    readManifest,
    blob: (descriptor) => source.blob(descriptor),
    ...(source.blobsOf
      ? { blobsOf: (image: SourceImage) => source.blobsOf?.(originals.get(image) ?? image) ?? Promise.resolve([]) }
      : {}),
    [Symbol.asyncDispose]: () => source[Symbol.asyncDispose](),
  };
}
