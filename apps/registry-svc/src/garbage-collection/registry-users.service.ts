import { everyPage, type PagedList } from '@airdock/clients/every-page';
import {
  forgetBundleLayers,
  listClusters,
  listImageSets,
  listImages,
  listJobs,
} from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import { type Client, ServiceClients } from '@airdock/clients/service-clients';
import { type Digest, isDigest } from '@airdock/core/oci/digest';
import { parseReference, withoutDigest } from '@airdock/core/oci/reference';
import { Injectable } from '@nestjs/common';

/**
 * Jobs that rely on what they have found in the registry. Each asks, once it runs, whether a collection is under way:
 * `requireRegistry`.
 */
const imageJobTypes = ['image.push', 'image.verify', 'image.rebuild-catalogue'];
const backupJobTypes = ['backup.create', 'backup.restore', 'backup.verify'];

/**
 * What other services need of the registry, and which of their jobs use it. Everything throws `dependency_unavailable`
 * while one of them does not answer.
 */
@Injectable()
export class RegistryUsers {
  constructor(private readonly clients: ServiceClients) {}

  /**
   * Digests of the images that image sets name, and of those that were pushed by digest only, with what belongs to
   * them: no tag has to lead there. When a cluster's image set was deleted nobody knows what it needs: then those of
   * the whole catalogue.
   */
  async needed(): Promise<ReadonlySet<Digest>> {
    const [imageSets, clusters, images] = await Promise.all([
      all((query) => listImageSets({ client: this.clients.image, query, throwOnError: true })),
      all((query) => listClusters({ client: this.clients.cluster, query, throwOnError: true })),
      all((query) => listImages({ client: this.clients.image, query, throwOnError: true })),
    ]);
    const known = new Set(imageSets.map(({ id }) => id));
    const isUnclear = clusters.some(({ imageSetId, targetImageSetId }) =>
      [imageSetId, targetImageSetId].some((id) => id !== null && !known.has(id)),
    );
    const references = imageSets.flatMap((imageSet) => imageSet.images);
    const wanted = new Set(references.map(withoutDigest));
    const digests = images
      .filter(
        ({ upstream, localReferences }) =>
          isUnclear || wanted.has(withoutDigest(upstream)) || localReferences.some(hasNoTag),
      )
      .flatMap(({ digest, companions }) => [digest, ...companions])
      .concat(references.map((reference) => parseReference(reference).digest ?? ''));
    return new Set(digests.filter((digest) => isDigest(digest)));
  }

  /** Lets image-svc give back the space of layers that were set aside and that it has compressed. No job may run. */
  async forgetLayers(): Promise<void> {
    await forgetBundleLayers({ client: this.clients.image, throwOnError: true });
  }

  async runningJobs(): Promise<Pick<Job, 'id' | 'type'>[]> {
    const of = (client: Client) => (type: string) =>
      listJobs({ client, query: { state: 'running', type, limit: 100 }, throwOnError: true });
    const pages = await Promise.all([
      ...imageJobTypes.map(of(this.clients.image)),
      ...backupJobTypes.map(of(this.clients.backup)),
    ]);
    return pages.flatMap(({ data }) => data.items.map(({ id, type }) => ({ id, type })));
  }
}

const hasNoTag = (reference: string): boolean => parseReference(reference).tag === undefined;

async function all<T>(list: PagedList<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of everyPage(list)) items.push(item);
  return items;
}
