import { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { getBundle, getBundleDockerArchive, listImages } from '@airdock/clients/generated/sdk.gen';
import type { Registry } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { type RunsWhere, runsOn } from '@airdock/core/oci/runs';
import type { BundledImage, ImageBundle } from '@airdock/host/configuration/images-step';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { describeRegistryImage } from '@airdock/registry/copy/registry-image';
import { Injectable } from '@nestjs/common';
import pLimit from 'p-limit';

/**
 * Names travel in the URL, so only so many images are asked for by name; of more the whole bundle comes, and the
 * runtime skips the layers that it has.
 */
const maxNamed = 50;
const requestsAtOnce = 8;
/** When one image cannot be pulled, another may prove that the host pulls. */
const maxCandidates = 10;
/** Of one bundle, as long as other bundles have candidates: whoever pushed a bad image may have pushed more. */
const maxOfBundle = 2;
const maxPages = 10;

/** The images that image-svc and the registry have for hosts. */
@Injectable()
export class HostImageService {
  constructor(private readonly clients: ServiceClients) {}

  /** A bundle whose images a host is to have. Throws `resource_not_found`. */
  async getBundle(id: string, registry: Registry): Promise<ImageBundle> {
    const { data } = await getBundle({ client: this.clients.image, path: { id }, throwOnError: true });
    return {
      name: data.name,
      images: data.images,
      inRegistry: (images, signal) => findInRegistry(registry, images, signal),
      archive: async (images, { platform, names, signal }) => {
        const image = images.flatMap((one) => one.names.slice(0, 1));
        const { data: archive } = await getBundleDockerArchive({
          client: this.clients.image,
          path: { id },
          query: { platform, names, ...(images.length <= maxNamed ? { image } : {}) },
          parseAs: 'stream',
          signal,
          throwOnError: true,
        });
        return Readable.fromWeb(archive as unknown as ReadableStream);
      },
    };
  }

  /**
   * The local references, by digest, of small images of the catalogue that surely run there, the smallest first, of
   * several bundles.
   */
  async listSmallest(where: RunsWhere): Promise<string[]> {
    const [found, spare] = [new Set<string>(), new Set<string>()];
    const ofBundle = new Map<string, number>();
    let cursor: string | undefined;
    for (let page = 0; page < maxPages && found.size < maxCandidates; page++) {
      const query = { sort: 'smallest' as const, platform: where.platform, limit: 100, ...(cursor ? { cursor } : {}) };
      const { data } = await listImages({ client: this.clients.image, query, throwOnError: true });
      for (const { localReferences, digest, bundleId, ...image } of data.items) {
        const [local] = localReferences;
        if (!local || !runsOn(image, where)) continue;
        const { registry, repository } = parseReference(local);
        const count = (ofBundle.get(bundleId ?? '') ?? 0) + 1;
        ofBundle.set(bundleId ?? '', count);
        (count > maxOfBundle && bundleId ? spare : found).add(
          formatReference({ registry, repository, digest: digest as Digest }),
        );
      }
      cursor = data.nextCursor;
      if (!cursor) break;
    }
    return [...found, ...spare].slice(0, maxCandidates);
  }
}

async function findInRegistry(
  { url, sockets, address }: Registry,
  images: readonly BundledImage[],
  signal: AbortSignal,
): Promise<Map<BundledImage, string>> {
  const found = new Map<BundledImage, string>();
  if (!url) return found;
  await using client = new RegistryClient(sockets?.readOnly ?? address ?? url);
  const limit = pLimit(requestsAtOnce);
  const find = async (image: BundledImage) => {
    const [reference] = image.localReferences;
    const { repository, tag, digest } = parseReference(reference ?? '');
    const root = await client.headManifest(repository, digest ?? tag ?? 'latest', { signal });
    if (!root || !reference) return;
    const described = await describeRegistryImage(client, repository, root, [], signal).catch((error: unknown) => {
      // An image that lacks a part cannot be pulled.
      if (!(error instanceof AppError) || error.code !== 'image_not_found') throw error;
    });
    if (described?.configDigests.some((id) => image.imageIds.includes(id))) found.set(image, reference);
  };
  await Promise.all(images.map((image) => limit(() => find(image))));
  return found;
}
