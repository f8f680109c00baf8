import { AppError, fromProblem, isTransient } from '@airdock/core/errors';
import { type JobContext, phaseOf } from '@airdock/platform/jobs/job-processor';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Injectable } from '@nestjs/common';
import { ClusterFacts, isArtifact } from '../cluster-facts/cluster-facts.service.js';
import type { Target } from '../provisioner/provisioner.schema.js';
import { ProvisionerService } from '../provisioner/provisioner.service.js';
import type { Cluster } from './cluster.schema.js';
import { ClusterService, createClusterJobType } from './cluster.service.js';

/** What a cluster should be made into; of an upgrade what it leads to. */
type Wanted = Pick<Cluster, 'kubernetesVersion' | 'imageSetId' | 'fields' | 'packages'>;

/** Makes clusters: every image on every node first, then the provisioner. */
@Injectable()
export class CreateClusterService {
  constructor(
    private readonly clusters: ClusterService,
    private readonly facts: ClusterFacts,
    private readonly provisioners: ProvisionerService,
  ) {}

  /** The job of a cluster's creation. */
  @RunsJob(createClusterJobType, { concurrency: 4 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const cluster = await this.clusters.get(context.resourceId);
    const { id, kubernetesVersion, imageSetId, fields, registryMode } = cluster;
    const provisioner = this.provisioners.get(cluster.provisioner);
    if (await this.clusters.isExisting(id)) return this.register(cluster, context);
    const target = await this.targetOf(cluster, cluster);
    const imagesPerHost = await this.pullImages(
      cluster,
      imageSetId,
      `cluster-create-${context.jobId}-${context.attempt}`,
      phaseOf(context, 0, 40),
    );
    const provisioning = phaseOf(context, 40, 99);
    provisioning.progress({ phase: 'provision' });
    await provisioner.create(target, provisioning, (provisionerId) => this.clusters.update(id, { provisionerId }));
    await this.clusters.setNodes(id, kubernetesVersion);
    return { registryMode: registryMode.effective, fields, hosts: target.nodes.length, imagesPerHost };
  }

  /** A cluster that runs already is as its provisioner says. */
  private async register(cluster: Cluster, { signal }: JobContext): Promise<Record<string, unknown>> {
    const found = await this.provisioners.get(cluster.provisioner).find(cluster, signal);
    if (found.kubernetesVersion !== cluster.kubernetesVersion)
      throw new AppError('cluster_diverged', {
        detail: `${cluster.name} runs ${found.kubernetesVersion}, and was registered with ${cluster.kubernetesVersion}`,
      });
    const { fields, provisionerId } = found;
    await this.clusters.update(cluster.id, { provisionerId, ...(fields ? { fields } : {}) });
    await this.clusters.setNodes(cluster.id, cluster.kubernetesVersion);
    return { hosts: cluster.nodes.length };
  }

  /** The cluster as its provisioner should make it. */
  async targetOf(
    { nodes, ...cluster }: Cluster,
    { kubernetesVersion, imageSetId, fields, packages }: Wanted,
  ): Promise<Target> {
    const hosts = await this.facts.hosts(nodes.map(({ hostId }) => hostId));
    const images = imageSetId ? await this.facts.imagesOf(imageSetId) : [];
    const pause = images.filter(({ upstream }) => /\/pause:/.test(upstream)).slice(0, 1);
    return {
      ...cluster,
      ...{ kubernetesVersion, fields, packages },
      nodes: nodes.map((node, index) => ({ ...node, host: hosts[index] as Target['nodes'][number]['host'] })),
      pauseImage: this.facts.references(pause, fields.k8sPrivateRegistry)[0],
    };
  }

  /**
   * Every node pulls every image of the set that runs on nodes by its local name: afterwards an installer needs no
   * network but the tunnel. Returns how many. Throws `host_pull_failed` with all failures, and what keeps a host from
   * being asked.
   */
  async pullImages(
    { nodes, fields }: Pick<Cluster, 'nodes' | 'fields'>,
    imageSetId: string | null,
    key: string,
    context: JobContext,
  ): Promise<number> {
    if (!imageSetId) return 0;
    const images = (await this.facts.imagesOf(imageSetId)).filter((image) => !isArtifact(image));
    const references = this.facts.references(images, fields.k8sPrivateRegistry);
    context.progress({ phase: 'pull', itemsTotal: nodes.length * references.length });
    const hostIds = nodes.map(({ hostId }) => hostId);
    const pullAll = async (round: number) =>
      (await this.facts.pull(`${key}-${round}`, hostIds, references, context)).flatMap(({ hostName, pulls, error }) => [
        ...(error ? [{ what: hostName, error }] : []),
        ...pulls.flatMap((one) => (one.error ? [{ what: `${hostName}: ${one.reference}`, error: one.error }] : [])),
      ]);
    let problems = await pullAll(1);
    // A runtime does not say whether the registry went away in the middle. What a host has costs nothing the second
    // time.
    if (problems.length > 0) problems = await pullAll(2);
    if (problems.length === 0) return references.length;
    // What may pass, such as a registry that is away, is tried again by the job.
    const passing = problems.map(({ error }) => fromProblem(error)).find(isTransient);
    if (passing) throw passing;
    const failures = problems.map(({ what, error }) => `${what}: ${error.detail ?? error.title}`);
    throw new AppError('host_pull_failed', {
      detail: failures.slice(0, 20).join('; '),
      failures: failures.slice(0, 200),
    });
  }
}
