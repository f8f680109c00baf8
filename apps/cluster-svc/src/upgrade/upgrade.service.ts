import { AppError, type Problem } from '@airdock/core/errors';
import { upgradeKind } from '@airdock/core/kubernetes-version';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job, JobState } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import type { Cluster } from '../cluster/cluster.schema.js';
import { ClusterService, notReady } from '../cluster/cluster.service.js';
import { ClusterDefaultsService } from '../cluster-defaults/cluster-defaults.service.js';
import { ClusterFacts, isArtifact } from '../cluster-facts/cluster-facts.service.js';
import { ProvisionerService } from '../provisioner/provisioner.service.js';
import type { Readiness } from '../readiness/readiness.schema.js';
import { ReadinessService } from '../readiness/readiness.service.js';
import { UpgradeEntity } from './upgrade.entity.js';
import type { CreateUpgrade, Upgrade, UpgradedNode, UpgradePlan } from './upgrade.schema.js';

export const upgradeJobType = 'cluster.upgrade';
/** Of its own, so that nobody is told of an upgrade that was only planned. */
export const planUpgradeJobType = 'cluster.plan-upgrade';

/** Upgrades of clusters: the plan, the rules, and what became of each node; UpgradeCluster does them. */
@Injectable()
export class UpgradeService {
  constructor(
    @InjectRepository(UpgradeEntity, 'cluster') private readonly upgrades: Repository<UpgradeEntity>,
    private readonly clusters: ClusterService,
    private readonly defaults: ClusterDefaultsService,
    private readonly provisioners: ProvisionerService,
    private readonly readiness: ReadinessService,
    private readonly facts: ClusterFacts,
    private readonly jobs: JobsService,
  ) {}

  /**
   * Accepts an upgrade that could be begun now. Throws `upgrade_refused`, `kubernetes_version_unsupported`,
   * `du_version_unsupported`, `cluster_busy`, and what is in the way as `ClusterService.create` does; with `dryRun`
   * that is told by the plan.
   */
  async create(clusterId: string, request: JobRequest, wanted: CreateUpgrade): Promise<Job> {
    const first = await this.jobs.findRequested(request.requestKey);
    if (first) return first;
    const { kubernetesVersion: to, batch, registryMode, dryRun } = wanted;
    const cluster = await this.clusters.get(clusterId);
    const last = dryRun ? undefined : await this.assertFree(cluster, to);
    const { plan, nodes, imageSetId, settings } = await this.plan(cluster, wanted);
    if (!dryRun && plan.problems.length > 0) throw notReady({ problems: plan.problems as Problem[] });
    // Where the last one to this version stopped: a node that is half way comes first, whichever upgrade began it.
    const reached = new Map(last?.to === to ? last.nodes.map((node) => [node.hostId, node]) : []);
    const id = newId();
    const row: UpgradeEntity = {
      ...settings,
      id,
      clusterId,
      from: cluster.kubernetesVersion,
      to,
      dryRun,
      batch,
      wantedMode: registryMode ?? null,
      plan,
      imageSetId,
      pulledAt: null,
      jobId: request.id,
      createdAt: now(),
      nodes: nodes.map((node) => reached.get(node.hostId) ?? { ...node, state: 'waiting', tries: 0, error: null }),
    };
    const claim = { upgradeId: id, upgradeJobId: request.id, targetImageSetId: imageSetId };
    try {
      const type = dryRun ? planUpgradeJobType : upgradeJobType;
      return await this.jobs.submit({ ...request, type, resource: `/v1/clusters/${clusterId}/upgrades/${id}` }, [
        ...(dryRun ? [] : [this.clusters.claimUpgrade(clusterId, last, claim)]),
        this.upgrades.createQueryBuilder().insert().values(columns(row)),
      ]);
    } catch (error) {
      if (error instanceof AppError && error.code === 'resource_changed')
        throw new AppError('cluster_busy', { detail: 'another upgrade was begun, or ended' });
      throw error;
    }
  }

  /** What an upgrade would do now, with what is in its way. Throws what no image or host could change. */
  private async plan(
    cluster: Cluster,
    { kubernetesVersion: to, imageSetId, batch, registryMode: wanted }: CreateUpgrade,
  ) {
    const { effective, requested } = cluster.registryMode;
    const kind = upgradeKind(cluster.kubernetesVersion, to);
    const settings = await this.defaults.forCluster(wanted ?? requested, to, effective !== 'none');
    await this.provisioners.get(cluster.provisioner).checkUpgrade(cluster, to);
    const { registryMode, fields } = settings;
    const hostIds = cluster.nodes.map(({ hostId }) => hostId);
    const { answer, images } = await this.readiness.look({ kubernetesVersion: to, registryMode, hostIds, imageSetId });
    const names = new Map(answer.hosts.map(({ hostId, name }) => [hostId, name]));
    const nodes = inOrder(cluster).map(({ hostId, role }) => ({ hostId, name: names.get(hostId) ?? '', role }));
    const pulled = images.filter((image) => !isArtifact(image));
    const plan: UpgradePlan = {
      from: cluster.kubernetesVersion,
      to,
      kind,
      registryMode: { from: effective, to: registryMode },
      ...pushesOf(answer),
      imagesToPull: this.facts.references(pulled, fields.k8sPrivateRegistry),
      batches: batchesOf(nodes, batchSize(batch, nodes)),
      restarts:
        cluster.provisioner === 'external'
          ? []
          : ['kubelet', 'the static pods of control planes', 'the pods of a node, which is drained before'],
      plannedAt: now(),
    };
    return { plan, nodes, imageSetId: answer.imageSet?.id ?? null, settings };
  }

  /**
   * Nothing else may be done to the cluster; one that an upgrade has left half way goes where that led, and nowhere
   * else. Returns that upgrade.
   */
  private async assertFree({ jobId, upgradeId, state }: Cluster, to: string): Promise<UpgradeEntity | undefined> {
    await this.clusters.assertIdle([jobId]);
    // The job may have ended after the state was seen.
    if (state === 'failed' || state === 'creating')
      throw new AppError('cluster_busy', { detail: 'the cluster was not created: retry that job first', jobId });
    if (!upgradeId) return undefined;
    const last = await getRow(this.upgrades, upgradeId);
    await this.clusters.assertIdle([last.jobId]);
    if (last.to !== to && last.nodes.some((node) => node.state !== 'waiting'))
      throw new AppError('upgrade_refused', {
        detail: `nodes have ${last.to} already: finish the upgrade to it first, by a retry of job ${last.jobId}`,
      });
    return last;
  }

  async list(clusterId: string, query: PageQuery): Promise<Page<Upgrade>> {
    const cluster = await this.clusters.get(clusterId);
    const show = (row: UpgradeEntity, state: JobState) => toResource(row, cluster, state);
    return findPageWithState(this.upgrades, this.jobs, query, show, { clusterId });
  }

  get(clusterId: string, id: string): Promise<Upgrade> {
    return getWithState(this.upgrades, this.jobs, id, async (row, state) => {
      if (row.clusterId !== clusterId)
        throw new AppError('resource_not_found', { detail: `no upgrade with id ${id} of this cluster` });
      return toResource(row, await this.clusters.get(clusterId), state);
    });
  }

  async setPaused(clusterId: string, id: string, isPaused: boolean): Promise<Upgrade> {
    await this.get(clusterId, id);
    await this.clusters.setPaused(clusterId, id, isPaused);
    return this.get(clusterId, id);
  }

  /** As the job works with it. */
  row(id: string): Promise<UpgradeEntity> {
    return getRow(this.upgrades, id);
  }

  /** A dry run ends with the plan, which was made when it was asked for. */
  @RunsJob(planUpgradeJobType)
  async showPlan({ resourceId }: JobContext): Promise<Record<string, unknown>> {
    const { plan } = await this.row(resourceId);
    return { plan };
  }

  async save(id: string, values: Partial<Pick<UpgradeEntity, 'nodes' | 'pulledAt'>>): Promise<void> {
    await this.upgrades.update({ id }, columns<UpgradeEntity>(values));
  }
}

const toResource = (row: UpgradeEntity, cluster: Cluster, state: JobState): Upgrade => ({
  ...row,
  paused: cluster.upgradeId === row.id && cluster.state === 'paused',
  state,
});

/** The images that bundles have are pushed by the job, so they are no problem unless others are missing beside them. */
function pushesOf({ missingImages, problems }: Readiness): Pick<UpgradePlan, 'imagesToPush' | 'problems'> {
  const imagesToPush = missingImages.filter(({ bundles }) => bundles.length > 0);
  const arePushed = imagesToPush.length === missingImages.length;
  return { imagesToPush, problems: problems.filter(({ code }) => code !== 'images_missing' || !arePushed) };
}

/** Control planes first, each in the order that the cluster was created with. */
const inOrder = ({ nodes }: Pick<Cluster, 'nodes'>): Cluster['nodes'] => [
  ...nodes.filter(({ role }) => role === 'controlPlane'),
  ...nodes.filter(({ role }) => role === 'worker'),
];

export function batchSize(
  { nodes, percent }: CreateUpgrade['batch'],
  all: readonly Pick<UpgradedNode, 'role'>[],
): number {
  const workers = all.filter(({ role }) => role === 'worker').length;
  return nodes ?? Math.max(1, Math.floor((workers * (percent ?? 0)) / 100));
}

/** Control planes one by one, workers so many at a time. */
export function batchesOf<T extends Pick<UpgradedNode, 'role'>>(nodes: readonly T[], size: number): T[][] {
  const workers = nodes.filter(({ role }) => role === 'worker');
  const batches = nodes.filter(({ role }) => role === 'controlPlane').map((node) => [node]);
  for (let start = 0; start < workers.length; start += size) batches.push(workers.slice(start, start + size));
  return batches;
}
