import { everyPage } from '@airdock/clients/every-page';
import { assertSucceeded, followJob } from '@airdock/clients/follow-job';
import {
  createHostCheck,
  createPush,
  getHost,
  getHostCheck,
  getImageSet,
  getMissingImages,
  listImageSets,
  listTunnels,
} from '@airdock/clients/generated/sdk.gen';
import type { Host, HostCheckResult, ImageSet, SetImage, Tunnel } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { formatReference, localReferences, parseReference, withoutDigest } from '@airdock/core/oci/reference';
import { CONFIG, type Config } from '@airdock/platform/config';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { idOfResource } from '@airdock/platform/jobs/job-resource';
import { Inject, Injectable } from '@nestjs/common';
import pLimit from 'p-limit';

const requestsAtOnce = 16;

/** What the other services know of the hosts and images of a cluster, and what they do for it. */
@Injectable()
export class ClusterFacts {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly clients: ServiceClients,
  ) {}

  /** In the order of the ids. Throws `resource_not_found`. */
  async hosts(ids: readonly string[]): Promise<Host[]> {
    const limit = pLimit(requestsAtOnce);
    return Promise.all(
      ids.map((id) =>
        limit(async () => (await getHost({ client: this.clients.host, path: { id }, throwOnError: true })).data),
      ),
    );
  }

  /** By the id of the host. */
  async tunnels(hostIds: readonly string[]): Promise<Map<string, Tunnel>> {
    const wanted = new Set(hostIds);
    const found = new Map<string, Tunnel>();
    const client = this.clients.host;
    for await (const tunnel of everyPage((query) => listTunnels({ client, query, throwOnError: true }))) {
      if (wanted.has(tunnel.hostId)) found.set(tunnel.hostId, tunnel);
      if (found.size === wanted.size) break;
    }
    return found;
  }

  /** The set with this id, or the newest one of a version. */
  async imageSetOf(kubernetesVersion: string, id?: string | null): Promise<ImageSet | undefined> {
    if (id) return (await getImageSet({ client: this.clients.image, path: { id }, throwOnError: true })).data;
    const { data } = await listImageSets({
      client: this.clients.image,
      query: { kubernetesVersion },
      throwOnError: true,
    });
    return data.items[0];
  }

  /** The images of a set, as the registry has them now. */
  async imagesOf(imageSetId: string): Promise<SetImage[]> {
    return (await getMissingImages({ client: this.clients.image, path: { id: imageSetId }, throwOnError: true })).data
      .images;
  }

  /**
   * What the images of a set are called on hosts whose registry is `host`, in their order; what was not pushed yet, as
   * a push would call it.
   */
  references(images: readonly SetImage[], host: string): string[] {
    return images.map(({ upstream, localReference }) => {
      if (localReference) return formatReference({ ...parseReference(localReference), registry: host });
      const [first] = localReferences(parseReference(withoutDigest(upstream)), host, this.config.naming);
      return first ? formatReference(first) : upstream;
    });
  }

  /**
   * Every host pulls every reference with its own runtime. Asking again with the same key, after a crash, finds the
   * first check.
   */
  async pull(
    key: string,
    hostIds: readonly string[],
    references: readonly string[],
    { signal, progress }: Pick<JobContext, 'signal' | 'progress'>,
  ): Promise<HostCheckResult[]> {
    const { data: started } = await createHostCheck({
      client: this.clients.host,
      headers: { 'Idempotency-Key': key },
      body: { hostIds: [...hostIds], pull: [...references] },
      throwOnError: true,
    });
    const job = await followJob(this.clients.host, started.id, signal, ({ progress: done }) =>
      progress({ itemsDone: done.itemsDone * references.length }),
    );
    // A host that could not be checked is told with its result.
    if (typeof job.error?.host !== 'string') assertSucceeded(job);
    const { data } = await getHostCheck({
      client: this.clients.host,
      path: { id: idOfResource(started) },
      throwOnError: true,
    });
    return data.results ?? [];
  }

  /** Pushes images of a bundle, and waits for it. */
  async push(key: string, bundleId: string, images: readonly string[], signal: AbortSignal): Promise<void> {
    const headers = { 'Idempotency-Key': key };
    const { data } = await createPush({
      client: this.clients.image,
      headers,
      body: { bundleId, images: [...images] },
      throwOnError: true,
    });
    assertSucceeded(await followJob(this.clients.image, data.id, signal));
  }
}

/**
 * A chart, a file, a signature: needed in the registry, and pulled by no host. What was not pushed yet is what bundles
 * say that it is.
 */
export const isArtifact = ({ state, platforms, bundles }: Pick<SetImage, 'state' | 'platforms' | 'bundles'>): boolean =>
  platforms.length === 0 &&
  (state !== 'missing' || (bundles.length > 0 && bundles.every((bundle) => bundle.platforms.length === 0)));
