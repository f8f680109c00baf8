import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { createDigest, type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import {
  type Descriptor,
  formatPlatform,
  type ImageManifest,
  mediaTypes,
  type Platform,
  parseImageConfig,
} from '@airdock/core/oci/manifest';
import { hasImageTypes, matchesPlatform } from '@airdock/core/oci/runs';
import { type Pack, pack } from 'tar-stream';
import { walkImage } from '../image/image-graph.js';
import type { ImageSource, SourceImage } from '../image/image-source.js';

/** One image of a docker-archive that is written. */
export interface ImageToLoad {
  /** One of `source.images`. */
  image: SourceImage;
  /** Names that `docker load` gives it, e.g. `localhost:5100/pause:3.2`. */
  repoTags: readonly string[];
}

interface Plan {
  config: Buffer;
  configDigest: Digest;
  layers: Descriptor[];
  repoTags: string[];
}

const maxConfigBytes = 8 * 1024 * 1024;
const layerMember = ({ digest }: Descriptor): string => `${digestHex(digest)}/layer.tar`;

/**
 * Makes a docker-archive for `docker load` (20.10 and later) while it is read: nothing is kept on disk, layers stay
 * compressed, and a layer of several images is written once. Of a multi-platform image the manifest for `platform` is
 * taken. The caller destroys the stream. It fails with `image_not_found` when there is no such platform,
 * `image_unsupported` for what Docker cannot load, `digest_mismatch`, and the signal's reason.
 */
export function writeDockerArchive(
  source: ImageSource,
  images: readonly ImageToLoad[],
  platform: Platform,
  signal?: AbortSignal,
): Readable {
  async function* chunks(): AsyncGenerator<Buffer> {
    const tar = pack();
    const filled = fill(tar, source, images, platform, signal).catch((error: unknown) =>
      tar.destroy(error instanceof Error ? error : new Error(String(error))),
    );
    try {
      yield* tar as AsyncIterable<Buffer>;
    } finally {
      tar.destroy();
      await filled;
    }
  }
  return Readable.from(chunks(), { objectMode: false });
}

async function fill(
  tar: Pack,
  source: ImageSource,
  images: readonly ImageToLoad[],
  platform: Platform,
  signal?: AbortSignal,
): Promise<void> {
  const plans = new Map<Digest, Plan>();
  for (const item of images) {
    const plan = await planImage(source, item, platform, signal);
    const known = plans.get(plan.configDigest);
    if (known) known.repoTags.push(...plan.repoTags);
    else plans.set(plan.configDigest, plan);
  }
  const configMember = (digest: Digest) => `${digestHex(digest)}.json`;
  const listing = [...plans.values()].map(({ configDigest, repoTags, layers }) => ({
    Config: configMember(configDigest),
    RepoTags: repoTags,
    Layers: layers.map(layerMember),
  }));
  // First, so that whoever reads it as a stream knows what comes.
  tar.entry({ name: 'manifest.json', mtime: new Date(0) }, Buffer.from(JSON.stringify(listing)));
  const closed = new Promise<void>((resolve) => tar.once('close', () => resolve()));
  const written = new Set<Digest>();
  for (const { config, configDigest, layers } of plans.values()) {
    tar.entry({ name: configMember(configDigest), mtime: new Date(0) }, config);
    for (const layer of layers) {
      if (written.has(layer.digest)) continue;
      written.add(layer.digest);
      await writeLayer(tar, closed, source, layer, signal);
    }
  }
  tar.finalize();
}

async function planImage(
  source: ImageSource,
  { image, repoTags }: ImageToLoad,
  platform: Platform,
  signal?: AbortSignal,
): Promise<Plan> {
  const root = await source.prepare(image, { signal });
  const graph = await walkImage(root, (digest) => source.readManifest(digest));
  for (const { manifest } of graph.images) {
    if (!hasImageTypes(manifest)) continue;
    const config = await readConfig(source, manifest.config);
    if (!matchesPlatform(formatPlatform(parseImageConfig(config).platform), formatPlatform(platform))) continue;
    refuseUnloadable(manifest);
    return { config, configDigest: manifest.config.digest, layers: manifest.layers, repoTags: [...repoTags] };
  }
  throw new AppError('image_not_found', {
    detail: `${image.names[0] ?? root.digest} is not there for ${formatPlatform(platform)}`,
    digest: root.digest,
  });
}

/** Docker learnt zstd after 20.10. */
function refuseUnloadable({ layers }: ImageManifest): void {
  const loadable: string[] = [mediaTypes.ociLayer, mediaTypes.ociLayerGzip, mediaTypes.dockerLayerGzip];
  const strange = layers.find(({ mediaType }) => !loadable.includes(mediaType));
  if (strange)
    throw new AppError('image_unsupported', {
      detail: `docker load may not understand layers of type ${strange.mediaType.slice(0, 100)}`,
      digest: strange.digest,
    });
}

const mismatch = ({ digest }: Descriptor, actual: string) =>
  new AppError('digest_mismatch', { detail: `${digest} has ${actual}`, digest });

async function readConfig(source: ImageSource, descriptor: Descriptor): Promise<Buffer> {
  const reader = await source.blob(descriptor);
  if (reader.size !== descriptor.size || reader.size > maxConfigBytes)
    throw mismatch(descriptor, `${reader.size} bytes`);
  const chunks: Buffer[] = [];
  for await (const chunk of reader.open()) chunks.push(chunk as Buffer);
  const bytes = Buffer.concat(chunks);
  if (digestOf(bytes) !== descriptor.digest) throw mismatch(descriptor, `the digest ${digestOf(bytes)}`);
  return bytes;
}

async function writeLayer(
  tar: Pack,
  closed: Promise<void>,
  source: ImageSource,
  layer: Descriptor,
  signal?: AbortSignal,
): Promise<void> {
  const reader = await source.blob(layer);
  if (reader.size !== layer.size) throw mismatch(layer, `${reader.size} bytes`);
  const entry = tar.entry({ name: layerMember(layer), size: layer.size, mtime: new Date(0) });
  // It fails with the archive, whose reader hears of it.
  entry.on('error', () => {});
  const digest = createDigest();
  const content = reader.open();
  try {
    for await (const chunk of content as AsyncIterable<Buffer>) {
      signal?.throwIfAborted();
      digest.update(chunk);
      // The archive of a reader that went away never drains.
      if (!entry.write(chunk))
        await Promise.race([new Promise<void>((resolve) => entry.once('drain', () => resolve())), closed]);
      if (tar.destroying) return;
    }
  } finally {
    content.destroy();
  }
  const actual = digest.value();
  if (actual !== layer.digest) throw mismatch(layer, `the digest ${actual}`);
  entry.end(null);
}
