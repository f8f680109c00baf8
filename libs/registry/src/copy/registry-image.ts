import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { type Descriptor, formatPlatform } from '@airdock/core/oci/manifest';
import { describeImage, walkImage } from '@airdock/oci/image/image-graph';
import { companionSubject } from '@airdock/oci/image/image-names';
import type { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { type ImagePart, partsOf } from './copy-image.js';

/** An image as a registry has it. */
export interface RegistryImage {
  root: Descriptor;
  parts: ImagePart[];
  platforms: string[];
  zstdPlatforms: string[];
  configDigests: Digest[];
  sizeBytes: number;
}

/**
 * What an image in a registry consists of, with the signatures and lists of referrers beside it (`tags` of its
 * repository). Manifests and configurations are verified by digest; layers are not read. Throws `image_not_found` when
 * something of it is missing, and what the registry client throws.
 */
export async function describeRegistryImage(
  registry: RegistryClient,
  repository: string,
  root: Descriptor,
  tags: readonly string[],
  signal?: AbortSignal,
): Promise<RegistryImage> {
  const readManifest = async (digest: Digest) => {
    const manifest = await registry.getManifest(repository, digest, { signal });
    if (!manifest) throw new AppError('image_not_found', { detail: `${repository} has no manifest ${digest}`, digest });
    return manifest.bytes;
  };
  const graph = await walkImage(root, readManifest);
  const facts = await describeImage(graph, async ({ digest }, maxBytes) => {
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of await registry.getBlob(repository, digest, { signal })) {
      size += (chunk as Buffer).byteLength;
      if (size > maxBytes)
        throw new AppError('image_unsupported', {
          detail: `the configuration ${digest} has more than ${maxBytes} bytes`,
          digest,
        });
      chunks.push(chunk as Buffer);
    }
    return Buffer.concat(chunks);
  });
  const own = new Set<string>(graph.manifests.map(({ digest }) => digest));
  const belongings = [];
  for (const tag of tags.filter((candidate) => own.has(companionSubject(candidate) ?? ''))) {
    const companion = await registry.headManifest(repository, tag, { signal });
    if (companion) belongings.push({ graph: await walkImage(companion, readManifest) });
  }
  const parts = partsOf(graph, belongings);
  return {
    root,
    parts,
    platforms: facts.platforms.map(formatPlatform),
    zstdPlatforms: facts.zstdPlatforms.map(formatPlatform),
    configDigests: facts.configDigests,
    sizeBytes: parts.reduce((sum, { size }) => sum + size, 0),
  };
}
