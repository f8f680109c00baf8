import {
  createHostCheck,
  getHost,
  getHostCheck,
  getImageSet,
  getJob,
  getMissingImages,
  listImageSets,
  listTunnels,
} from '@airdock/adapters/api-clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { AppError, fromProblem } from '@airdock/core/errors';
import { parseKubernetesVersion, supportsLocalRegistry } from '@airdock/core/kubernetes-version';
import { formatReference, localReferences, parseReference } from '@airdock/core/oci/reference';
import { isUniqueViolation, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, type Repository } from 'typeorm';
import { ClusterDefaultsService } from '../cluster-defaults/cluster-defaults.service.js';
import { ClusterEntity, ClusterNodeEntity } from './cluster.entity.js';
import type { Cluster, ClusterNode, CreateCluster, Readiness } from './cluster.schema.js';

export const createClusterJobType = 'cluster.create';

/** Clusters that stand up from the local registry alone, and whether they would. */
@Injectable()
export class ClusterService {
  constructor(
    @InjectRepository(ClusterEntity, 'cluster') private readonly clusters: Repository<ClusterEntity>,
    @InjectRepository(ClusterNodeEntity, 'cluster') private readonly clusterNodes: Repository<ClusterNodeEntity>,
    private readonly defaults: ClusterDefaultsService,
    private readonly jobs: JobsService,
    private readonly clients: ServiceClients,
  ) {}

  /**
   * Accepts a cluster that could stand up now.
   * Throws `kubernetes_version_unsupported`, `host_not_configured`, `host_in_cluster`, `image_set_missing`, `images_missing` with the list, `resource_exists`.
   */
  async create(request: JobRequest, { name, kubernetesVersion, nodes, provisioner }: CreateCluster): Promise<Job> {
    // The rules below would refuse the hosts of the cluster that the first request created.
    const first = await this.jobs.findRequested(request.requestKey);
    if (first) return first;
    const version = parseKubernetesVersion(kubernetesVersion);
    const { registryMode, fields } = await this.defaults.get();
    const usesRegistry = registryMode !== 'none';
    if (usesRegistry && !supportsLocalRegistry(version))
      throw new AppError('kubernetes_version_unsupported', { detail: `${kubernetesVersion} is older than 1.20` });
    await this.assertHostsFree(nodes);
    await this.assertHostsConfigured(nodes);
    const imageSetId = usesRegistry ? await this.completeImageSet(kubernetesVersion) : null;
    const id = newId();
    const row = { id, name, kubernetesVersion, imageSetId, registryMode, fields, provisioner, jobId: request.id, createdAt: now() };
    try {
      return await this.jobs.submit({ ...request, type: createClusterJobType, resource: `/v1/clusters/${id}` }, [
        this.clusters.createQueryBuilder().insert().values(row),
        ...nodes.map((node) =>
          this.clusterNodes
            .createQueryBuilder()
            .insert()
            .values({ ...node, clusterId: id }),
        ),
      ]);
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
      await this.assertHostsFree(nodes);
      throw new AppError('resource_exists', { detail: `a cluster named ${name}` });
    }
  }

  private async assertHostsFree(nodes: ClusterNode[]): Promise<void> {
    const taken = await this.clusterNodes.findBy({ hostId: In(nodes.map(({ hostId }) => hostId)) });
    if (taken.length === 0) return;
    const others = await this.clusters.findBy({ id: In(taken.map(({ clusterId }) => clusterId)) });
    throw new AppError('host_in_cluster', {
      detail: `${taken.map(({ hostId }) => hostId).join(', ')} in ${others.map(({ name }) => name).join(', ')}`,
      hostIds: taken.map(({ hostId }) => hostId),
    });
  }

  private async assertHostsConfigured(nodes: ClusterNode[]): Promise<void> {
    for (const { hostId } of nodes) {
      const { data: host } = await getHost({ client: this.clients.host, path: { id: hostId }, throwOnError: true });
      if (!host.configuredAt) throw new AppError('host_not_configured', { detail: host.name, hostId });
    }
  }

  /** The image set of a version, when the registry can serve all of it. Throws `image_set_missing`, `images_missing`. */
  private async completeImageSet(kubernetesVersion: string): Promise<string> {
    const { data } = await listImageSets({ client: this.clients.image, query: { kubernetesVersion }, throwOnError: true });
    const [set] = data.items;
    if (!set) throw new AppError('image_set_missing', { detail: kubernetesVersion });
    const { data: answer } = await getMissingImages({ client: this.clients.image, path: { id: set.id }, throwOnError: true });
    if (answer.missing.length > 0)
      throw new AppError('images_missing', { detail: `${answer.missing.length} of ${set.images.length} images of ${set.name}`, missing: answer.missing });
    return set.id;
  }

  async list(query: PageQuery): Promise<Page<Cluster>> {
    const { items, nextCursor } = await findPage(this.clusters, query);
    return { items: await this.toResources(items), nextCursor };
  }

  async get(id: string): Promise<Cluster> {
    const [cluster] = await this.toResources([await getRow(this.clusters, id)]);
    return cluster as Cluster;
  }

  /** Forgets a cluster; what runs on its hosts is not touched. */
  async remove(id: string): Promise<void> {
    await getRow(this.clusters, id);
    // A cluster without nodes can be deleted again; nodes without a cluster would keep their hosts for ever.
    await this.clusterNodes.delete({ clusterId: id });
    await this.clusters.delete({ id });
  }

  /** Would this cluster stand up, with no network, now? */
  async readiness(id: string): Promise<Readiness> {
    const { nodes, imageSetId } = await this.get(id);
    const missingImages = imageSetId ? (await getMissingImages({ client: this.clients.image, path: { id: imageSetId }, throwOnError: true })).data.missing : [];
    const hosts = await Promise.all(
      nodes.map(async ({ hostId }) => {
        const { data: host } = await getHost({ client: this.clients.host, path: { id: hostId }, throwOnError: true });
        const { data: tunnels } = await listTunnels({ client: this.clients.host, query: { hostId }, throwOnError: true });
        return { hostId, name: host.name, configured: host.configuredAt !== null, tunnelUp: tunnels.items.some(({ state }) => state === 'up') };
      }),
    );
    return { ready: missingImages.length === 0 && hosts.every(({ configured, tunnelUp }) => configured && tunnelUp), missingImages, hosts };
  }

  /** Every node pulls every image of the set by its local name: afterwards the installer needs no network but the tunnel. */
  async run({ jobId, attempt, resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const { nodes, imageSetId, registryMode, fields } = await this.get(resourceId);
    if (!imageSetId) return { fields };
    const { data: set } = await getImageSet({ client: this.clients.image, path: { id: imageSetId }, throwOnError: true });
    const host = fields.k8sPrivateRegistry;
    const pull = set.images.flatMap((upstream) => localReferences(parseReference(upstream), host).slice(0, 1)).map(formatReference);
    progress({ phase: 'pull', itemsTotal: nodes.length * pull.length });
    const { data: started } = await createHostCheck({
      client: this.clients.host,
      headers: { 'Idempotency-Key': `cluster-create-${jobId}-${attempt}` },
      body: { hostIds: nodes.map(({ hostId }) => hostId), pull },
      throwOnError: true,
    });
    const checkJob = await this.follow(started.id, signal, (done) => progress({ itemsDone: done * pull.length }));
    if (checkJob.error) throw fromProblem(checkJob.error);
    const { data: check } = await getHostCheck({ client: this.clients.host, path: { id: started.resource.split('/').at(-1) ?? '' }, throwOnError: true });
    const failures = (check.results ?? []).flatMap(({ hostName, pulls }) =>
      pulls.filter(({ error }) => error).map(({ reference }) => `${hostName}: ${reference}`),
    );
    if (failures.length > 0) throw new AppError('host_pull_failed', { detail: failures.slice(0, 20).join('; '), failures });
    return { registryMode, fields, hosts: nodes.length, imagesPerHost: pull.length };
  }

  /** Waits for another service's job by long-polls. */
  private async follow(id: string, signal: AbortSignal, onProgress: (itemsDone: number) => void) {
    for (;;) {
      const { data } = await getJob({ client: this.clients.host, path: { id }, query: { waitSeconds: 5 }, signal, throwOnError: true });
      onProgress(data.progress.itemsDone);
      if (data.finishedAt) return data;
    }
  }

  private async toResources(rows: ClusterEntity[]): Promise<Cluster[]> {
    const ids = rows.map(({ id }) => id);
    const nodes = ids.length > 0 ? await this.clusterNodes.findBy({ clusterId: In(ids) }) : [];
    const jobs = await this.jobs.byIds(rows.map(({ jobId }) => jobId));
    return rows.map((row) => ({
      ...row,
      nodes: nodes.filter(({ clusterId }) => clusterId === row.id).map(({ hostId, role }) => ({ hostId, role })),
      state: stateOf(jobs.get(row.jobId)),
    }));
  }
}

const stateOf = (job: JobEntity | undefined): Cluster['state'] => {
  if (job?.state === 'succeeded') return 'ready';
  return job?.state === 'queued' || job?.state === 'running' ? 'creating' : 'failed';
};
