import { isDeepStrictEqual } from 'node:util';
import type { Host } from '@airdock/clients/generated/types.gen';
import { AppError, fromProblem, isTransient, type Problem } from '@airdock/core/errors';
import { assertNetworksApart } from '@airdock/core/ipv4-network';
import { parseKubernetesVersion } from '@airdock/core/kubernetes-version';
import { atomically, columns, isUniqueViolation, now, type Statement } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import { isEnded, type Job } from '@airdock/platform/jobs/job.schema';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { type FindOptionsWhere, In, IsNull, type Repository } from 'typeorm';
import type { ClusterDefaults } from '../cluster-defaults/cluster-defaults.schema.js';
import { ClusterDefaultsService, noFields } from '../cluster-defaults/cluster-defaults.service.js';
import { ClusterFacts } from '../cluster-facts/cluster-facts.service.js';
import { ProvisionerService } from '../provisioner/provisioner.service.js';
import type { Readiness } from '../readiness/readiness.schema.js';
import { type ReadinessQuestion, ReadinessService } from '../readiness/readiness.service.js';
import { ClusterEntity, ClusterNodeEntity } from './cluster.entity.js';
import type { Cluster, ClusterListQuery, CreateCluster } from './cluster.schema.js';

export const createClusterJobType = 'cluster.create';

/** Clusters: who is in them, what they run with, and the rules that they keep. */
@Injectable()
export class ClusterService {
  constructor(
    @InjectRepository(ClusterEntity, 'cluster') private readonly clusters: Repository<ClusterEntity>,
    @InjectRepository(ClusterNodeEntity, 'cluster') private readonly clusterNodes: Repository<ClusterNodeEntity>,
    private readonly defaults: ClusterDefaultsService,
    private readonly readiness: ReadinessService,
    private readonly facts: ClusterFacts,
    private readonly provisioners: ProvisionerService,
    private readonly jobs: JobsService,
  ) {}

  /**
   * Accepts a cluster that could stand up now, or one that exists. Throws `kubernetes_version_unsupported`,
   * `du_version_unsupported`, `registry_off`, `cluster_network_invalid`, `runtime_mismatch`, `host_in_cluster`,
   * `provisioner_unavailable`, `resource_exists`, and what is in the way: the problem itself when it is one
   * (`host_not_configured`, `image_set_missing`, `images_missing`, `tunnel_failed` …), else `cluster_not_ready` with
   * all of them.
   */
  async create(request: JobRequest, body: CreateCluster): Promise<Job> {
    // The rules below would refuse the hosts of the cluster that the first request created.
    const first = await this.jobs.findRequested(request.requestKey);
    if (first) return first;
    const { name, kubernetesVersion, nodes, existing } = body;
    const hostIds = nodes.map(({ hostId }) => hostId);
    await this.assertPossible(body, hostIds);
    const settings = existing
      ? { registryMode: 'none' as const, fields: noFields, packages: (await this.defaults.get()).packages }
      : await this.defaults.forCluster(body.registryMode, kubernetesVersion, true);
    const { registryMode } = settings;
    const imageSetId = existing
      ? null
      : await this.assertReady({ kubernetesVersion, registryMode, hostIds, imageSetId: body.imageSetId });

    const id = newId();
    const row = rowOf(body, { id, jobId: request.id, imageSetId, ...settings });
    try {
      return await this.jobs.submit({ ...request, type: createClusterJobType, resource: `/v1/clusters/${id}` }, [
        this.clusters.createQueryBuilder().insert().values(columns(row)),
        ...nodes.map((node, position) =>
          this.clusterNodes
            .createQueryBuilder()
            .insert()
            .values({ ...node, position, clusterId: id, kubernetesVersion: null }),
        ),
      ]);
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
      await this.assertHostsFree(hostIds);
      throw new AppError('resource_exists', { detail: `a cluster named ${name}` });
    }
  }

  /** The rules that need no look at images: networks, the runtime of the hosts, the provisioner's, free hosts. */
  private async assertPossible(
    { name, kubernetesVersion, network, options, provisioner, existing }: CreateCluster,
    hostIds: string[],
  ): Promise<void> {
    parseKubernetesVersion(kubernetesVersion);
    const hosts = await this.facts.hosts(hostIds);
    const vip = options.masterVipIpv4 ? [{ name: 'masterVipIpv4', address: options.masterVipIpv4 }] : [];
    assertNetworksApart(network.containersCidr, network.servicesCidr, [...hosts, ...vip]);
    if (!existing) assertRuntime(hosts, options.containerRuntime);
    await this.provisioners.get(provisioner).check({ name, kubernetesVersion, options, existing });
    await this.assertHostsFree(hostIds);
  }

  /** Returns the image set that the answer was for. */
  private async assertReady(question: ReadinessQuestion): Promise<string | null> {
    const answer = await this.readiness.answer(question);
    if (!answer.ready) throw notReady(answer);
    return answer.imageSet?.id ?? null;
  }

  private async assertHostsFree(hostIds: readonly string[]): Promise<void> {
    const taken = await this.clusterNodes.findBy({ hostId: In(hostIds) });
    if (taken.length === 0) return;
    const others = await this.clusters.findBy({ id: In(taken.map(({ clusterId }) => clusterId)) });
    throw new AppError('host_in_cluster', {
      detail: `${taken.map(({ hostId }) => hostId).join(', ')} in ${others.map(({ name }) => name).join(', ')}`,
      hostIds: taken.map(({ hostId }) => hostId),
    });
  }

  async list({ imageSetId, ...query }: ClusterListQuery): Promise<Page<Cluster>> {
    const where = imageSetId
      ? ([{ imageSetId }, { targetImageSetId: imageSetId }] satisfies FindOptionsWhere<ClusterEntity>[])
      : {};
    const { items, nextCursor } = await findPage(this.clusters, query, where);
    return { items: await this.toResources(items), nextCursor };
  }

  async get(id: string): Promise<Cluster> {
    const [cluster] = await this.toResources([await getRow(this.clusters, id)]);
    return cluster as Cluster;
  }

  /** Forgets a cluster; what runs on its hosts is not touched. Throws `cluster_busy`. */
  async remove(id: string): Promise<void> {
    const { jobId, upgradeJobId } = await getRow(this.clusters, id);
    const jobIds = [jobId, ...(upgradeJobId ? [upgradeJobId] : [])];
    await this.assertIdle(jobIds);
    const { sql, parameters } = this.jobs.noneOpen(jobIds);
    const isRemoved = await atomically(this.clusters.manager.dataSource, [
      this.clusters
        .createQueryBuilder()
        .delete()
        .where({ id, upgradeJobId: upgradeJobId ?? IsNull() })
        .andWhere(sql, parameters),
      this.clusterNodes.createQueryBuilder().delete().where({ clusterId: id }),
    ]);
    if (!isRemoved) throw new AppError('cluster_busy', { detail: 'a job was begun meanwhile' });
  }

  /** Throws `cluster_busy` while one of these jobs has not ended. */
  async assertIdle(jobIds: string[]): Promise<void> {
    const [running] = [...(await this.jobs.byIds(jobIds)).values()].filter(({ state }) => !isEnded(state));
    if (running)
      throw new AppError('cluster_busy', {
        detail: `${running.type} ${running.id} is ${running.state}`,
        jobId: running.id,
      });
  }

  /** Whether it was there before Airdock knew of it. */
  async isExisting(id: string): Promise<boolean> {
    return (await getRow(this.clusters, id)).existing;
  }

  /** What its provisioner calls it, and has given it. */
  async update(id: string, values: Partial<Pick<ClusterEntity, 'provisionerId' | 'fields'>>): Promise<void> {
    await this.clusters.update({ id }, columns<ClusterEntity>(values));
  }

  /** What nodes run now; without `hostIds` all of them. */
  async setNodes(clusterId: string, kubernetesVersion: string, hostIds?: readonly string[]): Promise<void> {
    await this.clusterNodes.update({ clusterId, ...(hostIds ? { hostId: In(hostIds) } : {}) }, { kubernetesVersion });
  }

  /**
   * Gives the cluster to an upgrade, if no other has taken it since `last` was the last, and that was not begun again.
   */
  claimUpgrade(
    id: string,
    last: { id: string; jobId: string } | undefined,
    claim: { upgradeId: string; upgradeJobId: string; targetImageSetId: string | null },
  ): Statement {
    const { sql, parameters } = this.jobs.noneOpen(last ? [last.jobId] : []);
    return this.clusters
      .createQueryBuilder()
      .update()
      .set({ ...claim, pausedAt: null })
      .where({ id, upgradeId: last?.id ?? IsNull() })
      .andWhere(sql, parameters);
  }

  /** An upgrade has been ended with success: the cluster is what it led to. */
  async finishUpgrade(
    id: string,
    upgradeId: string,
    reached: Pick<ClusterEntity, 'kubernetesVersion' | 'imageSetId' | 'effectiveMode' | 'fields' | 'packages'> &
      Partial<Pick<ClusterEntity, 'wantedMode'>>,
  ): Promise<void> {
    const free = { upgradeId: null, upgradeJobId: null, targetImageSetId: null, pausedAt: null };
    await this.clusters.update({ id, upgradeId }, columns<ClusterEntity>({ ...reached, ...free }));
  }

  /** Holds the running upgrade before its next node, or lets it go on. Throws `upgrade_not_running`. */
  async setPaused(id: string, upgradeId: string, isPaused: boolean): Promise<void> {
    const row = await getRow(this.clusters, id);
    const job = row.upgradeId === upgradeId && row.upgradeJobId ? await this.jobs.find(row.upgradeJobId) : undefined;
    if (!job || isEnded(job.state))
      throw new AppError('upgrade_not_running', { detail: job ? `its job has ${job.state}` : 'it has ended' });
    await this.clusters.update({ id, upgradeId }, { pausedAt: isPaused ? (row.pausedAt ?? now()) : null });
  }

  /**
   * Whether the upgrade should wait before its next node. Throws `cluster_busy` when it does not have the cluster any
   * more.
   */
  async isPaused(id: string, upgradeId: string): Promise<boolean> {
    const row = await getRow(this.clusters, id);
    assertUpgrading(row, upgradeId);
    return row.pausedAt !== null;
  }

  private async toResources(rows: ClusterEntity[]): Promise<Cluster[]> {
    const ids = rows.map(({ id }) => id);
    const nodes =
      ids.length > 0 ? await this.clusterNodes.find({ where: { clusterId: In(ids) }, order: { position: 'ASC' } }) : [];
    const jobs = await this.jobs.byIds(
      rows.flatMap(({ jobId, upgradeJobId }) => [jobId, ...(upgradeJobId ? [upgradeJobId] : [])]),
    );
    const defaults = ids.length > 0 ? await this.currentDefaults() : undefined;
    return rows.map((row) => ({
      ...row,
      nodes: nodes
        .filter(({ clusterId }) => clusterId === row.id)
        .map(({ hostId, role, kubernetesVersion }) => ({ hostId, role, kubernetesVersion })),
      registryMode: {
        requested: row.wantedMode ?? defaults?.registryMode ?? row.effectiveMode,
        effective: row.effectiveMode,
      },
      followsDefaults: defaults ? isDeepStrictEqual(row.fields, defaults.fields) : null,
      state: stateOf(
        jobs.get(row.jobId),
        row.upgradeJobId ? jobs.get(row.upgradeJobId) : undefined,
        row.pausedAt !== null,
      ),
    }));
  }

  /** Clusters are told of also while registry-svc or host-svc are away. */
  private async currentDefaults(): Promise<ClusterDefaults | undefined> {
    try {
      return await this.defaults.get();
    } catch (error) {
      if (error instanceof AppError && error.family === 'unavailable') return undefined;
      throw error;
    }
  }
}

/** Throws `cluster_busy` when the cluster is not this upgrade's, or not any more. */
export function assertUpgrading(cluster: Pick<Cluster, 'upgradeId'>, upgradeId: string): void {
  if (cluster.upgradeId === upgradeId) return;
  throw new AppError('cluster_busy', {
    detail: cluster.upgradeId
      ? `upgrade ${cluster.upgradeId} has taken its place`
      : 'another upgrade has been ended since',
  });
}

/**
 * The one problem, or all of them as one: one that passes by itself where all do, as tunnels do that come back after a
 * restart.
 */
export function notReady({ problems }: Pick<Readiness, 'problems'>): AppError {
  const errors = problems.map(fromProblem) as [AppError, ...AppError[]];
  const [first, ...others] = errors;
  if (others.length === 0) return first;
  const isPassing = errors.every(isTransient);
  const sentence = ({ title, detail }: Problem) => (detail ? `${title}: ${detail}` : title);
  return new AppError(isPassing ? first.code : 'cluster_not_ready', {
    detail: problems
      .slice(0, 10)
      .map((problem) => sentence(problem as Problem))
      .join('; '),
    problems: problems.slice(0, 100),
  });
}

/** Throws `runtime_mismatch`, naming the hosts. What a host has is known once it was configured. */
function assertRuntime(hosts: readonly Host[], wanted: CreateCluster['options']['containerRuntime']): void {
  const others = hosts.filter(({ configuration }) => (configuration?.containerRuntime ?? wanted) !== wanted);
  if (others.length === 0) return;
  const named = others.slice(0, 20).map(({ name, configuration }) => `${name} has ${configuration?.containerRuntime}`);
  throw new AppError('runtime_mismatch', {
    detail: `the cluster wants ${wanted}; ${named.join(', ')}`,
    hostIds: others.map(({ id }) => id),
  });
}

function stateOf(creation: JobEntity | undefined, upgrade: JobEntity | undefined, isPaused: boolean): Cluster['state'] {
  if (upgrade) {
    if (isEnded(upgrade.state)) return 'upgradeStopped';
    return isPaused ? 'paused' : 'upgrading';
  }
  // A restored cluster was created on a DU whose jobs are gone.
  if (!creation || creation.state === 'succeeded') return 'ready';
  return isEnded(creation.state) ? 'failed' : 'creating';
}

/** A cluster that its job has yet to create. */
function rowOf(
  { name, kubernetesVersion, network, options, provisioner, existing, registryMode: wanted }: CreateCluster,
  decided: Pick<ClusterEntity, 'id' | 'jobId' | 'imageSetId' | 'fields' | 'packages'> & {
    registryMode: ClusterEntity['effectiveMode'];
  },
): ClusterEntity {
  const { registryMode: effectiveMode, ...rest } = decided;
  return {
    ...rest,
    name,
    kubernetesVersion,
    network,
    options,
    wantedMode: wanted ?? null,
    effectiveMode,
    provisioner,
    provisionerId: null,
    existing,
    upgradeId: null,
    upgradeJobId: null,
    targetImageSetId: null,
    pausedAt: null,
    createdAt: now(),
  };
}
