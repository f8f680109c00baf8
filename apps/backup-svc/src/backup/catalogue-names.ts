import { everyPage } from '@airdock/clients/every-page';
import { getImageSet, listImages } from '@airdock/clients/generated/sdk.gen';
import type { ServiceClients } from '@airdock/clients/service-clients';
import { type Digest, isDigest } from '@airdock/core/oci/digest';
import { formatName, parseReference } from '@airdock/core/oci/reference';

/** What the catalogue of image-svc says the images of the registry are called. */
export class CatalogueNames {
  constructor(private readonly client: ServiceClients['image']) {}

  /** Images that were pushed without a tag: only the catalogue knows of them. */
  async untagged(): Promise<{ repository: string; digest: Digest }[]> {
    const found: { repository: string; digest: Digest }[] = [];
    for await (const { localReferences, digest } of this.images())
      for (const { repository, tag } of localReferences.map(parseReference))
        if (tag === undefined && isDigest(digest)) found.push({ repository, digest });
    return found;
  }

  /** All names with their digests. */
  async digests(): Promise<Map<string, string>> {
    const known = new Map<string, string>();
    for await (const { localReferences, digest } of this.images())
      for (const { repository, tag } of localReferences.map(parseReference))
        known.set(formatName({ repository, tag, digest: digest as Digest }), digest);
    return known;
  }

  /** `repository:tag` of all images of a set. Throws `resource_not_found`. */
  async ofImageSet(id: string): Promise<Set<string>> {
    const { data: set } = await getImageSet({ client: this.client, path: { id }, throwOnError: true });
    const wanted = new Set(set.images);
    const names = new Set<string>();
    for await (const { upstream, localReferences } of this.images()) {
      if (!wanted.has(upstream)) continue;
      for (const { repository, tag } of localReferences.map(parseReference)) names.add(`${repository}:${tag ?? ''}`);
    }
    return names;
  }

  private images() {
    return everyPage((query) => listImages({ client: this.client, query, throwOnError: true }));
  }
}
