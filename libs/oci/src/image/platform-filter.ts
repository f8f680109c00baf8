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
  const filter = new PlatformFilter(source, wanted);
  const originals = await filter.originals();
  if (originals.size === 0)
    throw new AppError('image_not_found', { detail: `no image of the bundle is for ${wanted.join(', ')}` });
  return {
    format: source.format,
    lists: source.lists,
    unusable: source.unusable,
    images: [...originals.keys()],
    prepare: async (image, options) =>
      image.root ? image.root : source.prepare(originals.get(image) ?? image, options),
    readManifest: (digest) => filter.readManifest(digest),
    blob: (descriptor) => source.blob(descriptor),
    ...(source.blobsOf
      ? { blobsOf: (image: SourceImage) => source.blobsOf?.(originals.get(image) ?? image) ?? Promise.resolve([]) }
      : {}),
    [Symbol.asyncDispose]: () => source[Symbol.asyncDispose](),
  };
}

class PlatformFilter {
  /** Indexes that are in no bundle. */
  readonly #made = new Map<Digest, Buffer>();

  constructor(
    private readonly source: ImageSource,
    private readonly wanted: readonly string[],
  ) {}

  /** What is left, and what it was in the source. */
  async originals(): Promise<Map<SourceImage, SourceImage>> {
    const originals = new Map<SourceImage, SourceImage>();
    for (const image of this.source.images) {
      if (image.platforms.every((platform) => this.#isWanted(platform))) originals.set(image, image);
      else if (
        image.platforms.some((platform) => this.#isWanted(platform)) &&
        image.root &&
        isIndexMediaType(image.root.mediaType)
      )
        originals.set(await this.#describe(image, await this.#restrict(image.root)), image);
    }
    return originals;
  }

  async readManifest(digest: Digest): Promise<Buffer | Uint8Array> {
    return this.#made.get(digest) ?? (await this.source.readManifest(digest));
  }

  #isWanted(platform: Platform): boolean {
    return this.wanted.some((text) => isPlatformWanted(formatPlatform(platform), text));
  }

  async #restrict(root: Descriptor): Promise<Descriptor> {
    const bytes = Buffer.from(await this.readManifest(root.digest));
    const index = parseManifest(bytes, root.mediaType);
    if (index.kind !== 'index') return root;
    const kept = new Set<string>();
    for (const child of index.manifests) if (await this.#matches(child)) kept.add(child.digest);
    for (const child of index.manifests) if (kept.has(child.annotations?.[attestationOf] ?? '')) kept.add(child.digest);
    const [only] = index.manifests.filter(({ digest }) => kept.has(digest));
    if (only && kept.size === 1) return { mediaType: only.mediaType, digest: only.digest, size: only.size };
    const filtered = filterIndex(bytes, (digest) => kept.has(digest));
    const digest = digestOf(filtered);
    this.#made.set(digest, filtered);
    return { mediaType: root.mediaType, digest, size: filtered.byteLength };
  }

  /**
   * By the platform that the index says, else by that of the configuration. What runs nowhere is for all platforms;
   * what speaks of a sibling goes with that.
   */
  async #matches(child: Descriptor): Promise<boolean> {
    if (isAttestation(child) || child.annotations?.[attestationOf]) return false;
    if (child.platform?.os) return this.#isWanted(child.platform);
    const { platforms } = await this.#factsOf(child);
    return platforms.length === 0 || platforms.some((platform) => this.#isWanted(platform));
  }

  async #factsOf(root: Descriptor) {
    const { images } = await this.#walk(root);
    return describeImage({ images, manifests: [], blobs: [] }, async (config) => this.#readBlob(config));
  }

  #walk(root: Descriptor) {
    return walkImage(root, (digest) => this.readManifest(digest));
  }

  async #readBlob(descriptor: Descriptor): Promise<Buffer> {
    const chunks: Buffer[] = [];
    for await (const chunk of (await this.source.blob(descriptor)).open()) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks);
  }

  /** Signatures of what is left still hold; those of the whole do not. */
  async #describe(image: SourceImage, root: Descriptor): Promise<SourceImage> {
    const graph = await this.#walk(root);
    const there = new Set<string>(graph.manifests.map(({ digest }) => digest));
    const companions = (image.companions ?? []).filter(({ subject }) => there.has(subject));
    const graphs = [graph, ...(await Promise.all(companions.map((companion) => this.#walk(companion.root))))];
    const parts = new Map(
      graphs.flatMap(({ manifests, blobs }) => [...manifests, ...blobs]).map((part) => [part.digest, part]),
    );
    return { ...image, root, companions, ...(await this.#factsOf(root)), sizeBytes: totalSize(parts.values()) };
  }
}
