import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { upgradeKind } from '@airdock/core/kubernetes-version';
import { pmkCreateBody } from '@airdock/core/pmk/create-body';
import type { Config } from '@airdock/platform/config';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { readSecretFile } from '@airdock/platform/secret-file';
import { PmkClient, type PmkCluster, type PmkNode } from '@airdock/pmk/pmk-client';
import type { Found, Provisioner, Target, TargetNode, UpgradeBatch, WantedCluster } from './provisioner.schema.js';

const firstLookMs = 200;
const lookMs = 5_000;
/** PMK works in steps of minutes; one that is silent for so long has lost the cluster. */
const stallMs = 60 * 60_000;

/** The PMK control plane makes the clusters, of nodes whose host agents it knows already. */
export class PmkProvisioner implements Provisioner {
  private client: Promise<PmkClient> | undefined;

  constructor(private readonly config: Config) {}

  async check({ name, kubernetesVersion, existing }: Omit<WantedCluster, 'options'>): Promise<void> {
    const client = await this.connect();
    if (existing) return;
    const offered = await client.supportedVersions();
    if (!offered.includes(kubernetesVersion))
      throw new AppError('provisioner_unavailable', {
        detail: `PMK does not offer ${kubernetesVersion}, but ${offered.join(', ').slice(0, 500)}`,
      });
    // Its name is all that a run after a crash knows of the cluster that the first one has made.
    if (await client.findCluster(name))
      throw new AppError('resource_exists', { detail: `a cluster named ${name} in PMK` });
  }

  async checkUpgrade({ name, provisionerId }: Pick<Target, 'name' | 'provisionerId'>, to: string): Promise<void> {
    const cluster = await this.getCluster({ name, provisionerId });
    if (cluster.upgradingTo !== to && cluster.kubeRoleVersion !== to) offeredKind(cluster, to);
  }

  /**
   * A cluster of this name that is there is the one that an earlier run has made: who gave its name to another was
   * refused.
   */
  async create(
    { name, ...target }: Target,
    context: JobContext,
    note: (provisionerId: string) => Promise<void>,
  ): Promise<void> {
    const client = await this.connect();
    const { signal } = context;
    const nodes = await this.nodesOf(client, target.nodes, signal);
    let uuid = target.provisionerId ?? (await client.findCluster(name, signal))?.uuid;
    if (!uuid) {
      const { kubernetesVersion: kubeRoleVersion, network, options, fields, packages } = target;
      const nodePoolUuid = await client.defaultNodePool(signal);
      uuid = await client.createCluster(
        pmkCreateBody({ name, kubeRoleVersion, nodePoolUuid, network, ...options, registries: fields, ...packages }),
        signal,
      );
    }
    await note(uuid);
    await client.attachNodes(
      uuid,
      nodes.map(({ uuid: nodeUuid, node: { role } }) => ({ uuid: nodeUuid, isMaster: role === 'controlPlane' })),
      signal,
    );
    await this.follow(client, uuid, target, context);
  }

  async find({ name, provisionerId }: Pick<Target, 'name' | 'provisionerId'>, signal: AbortSignal): Promise<Found> {
    const { uuid, kubeRoleVersion, ...cluster } = await this.getCluster({ name, provisionerId }, signal);
    const { dockerPrivateRegistry, quayPrivateRegistry, gcrPrivateRegistry, k8sPrivateRegistry } = cluster;
    const fields = { dockerPrivateRegistry, quayPrivateRegistry, gcrPrivateRegistry, k8sPrivateRegistry };
    return { provisionerId: uuid, kubernetesVersion: kubeRoleVersion, fields };
  }

  async upgradeCluster(
    target: Target,
    batch: UpgradeBatch,
    context: JobContext,
    onNodes: (hostIds: string[]) => Promise<void>,
  ): Promise<void> {
    const client = await this.connect();
    const cluster = await this.getCluster(target, context.signal);
    const percent = batch.percent ?? percentOf(batch.nodes, target.nodes);
    if (cluster.kubeRoleVersion !== target.kubernetesVersion && cluster.upgradingTo !== target.kubernetesVersion)
      await client.upgradeCluster(
        cluster.uuid,
        offeredKind(cluster, target.kubernetesVersion),
        { ...(percent ? { batchUpgradePercent: percent } : {}), containerRuntime: target.options.containerRuntime },
        context.signal,
      );
    await this.follow(client, cluster.uuid, target, context, onNodes);
  }

  /**
   * Until PMK says that it is done, and all nodes are healthy. Throws `node_unhealthy` with what PMK says of a task
   * that failed.
   */
  private async follow(
    client: PmkClient,
    uuid: string,
    { kubernetesVersion, nodes }: Pick<Target, 'kubernetesVersion' | 'nodes'>,
    { signal, progress }: JobContext,
    onNodes: (hostIds: string[]) => Promise<void> = async () => undefined,
  ): Promise<void> {
    let waitMs = firstLookMs;
    let seen = '';
    let seenAt = Date.now();
    progress({ itemsTotal: nodes.length });
    for (;;) {
      // In this order a task that has failed says why, when its nodes have.
      const own = await this.nodesOf(client, nodes, signal);
      const cluster = await client.getCluster(uuid, signal);
      if (!cluster) throw new AppError('cluster_diverged', { detail: `PMK has no cluster ${uuid} any more` });
      const healthy = own.filter(
        ({ status, kubeRoleVersion = kubernetesVersion }) => status === 'ok' && kubeRoleVersion === kubernetesVersion,
      );
      await onNodes(healthy.map(({ node }) => node.hostId));
      progress({ itemsDone: healthy.length, phase: cluster.taskStatus });
      const failed = own.filter(({ status }) => status === 'failed').map(({ node }) => node.host.name);
      if (cluster.taskStatus === 'error' || failed.length > 0)
        throw new AppError('node_unhealthy', {
          detail: `PMK: ${[cluster.taskError, failed.join(', ')].filter(Boolean).join(': ').slice(0, 500) || 'error'}`,
        });
      if (
        cluster.taskStatus === 'success' &&
        cluster.kubeRoleVersion === kubernetesVersion &&
        !cluster.upgradingTo &&
        healthy.length === own.length
      )
        return;
      const now = JSON.stringify([
        cluster.taskStatus,
        cluster.upgradingTo,
        own.map(({ status, kubeRoleVersion }) => [status, kubeRoleVersion]),
      ]);
      if (now !== seen) [seen, seenAt] = [now, Date.now()];
      if (Date.now() - seenAt > stallMs)
        throw new AppError('node_unhealthy', {
          detail: `PMK has been ${cluster.taskStatus} for an hour without any change`,
        });
      await delay(waitMs, undefined, { signal }).catch(() => signal.throwIfAborted());
      waitMs = Math.min(lookMs, waitMs * 1.5);
    }
  }

  /**
   * The nodes of PMK that are our hosts, known by address or name. Throws `provisioner_unavailable` naming hosts
   * without a host agent.
   */
  private async nodesOf(
    client: PmkClient,
    nodes: readonly TargetNode[],
    signal: AbortSignal,
  ): Promise<(PmkNode & { node: TargetNode })[]> {
    const all = await client.listNodes(signal);
    const found = nodes.map((node) => ({
      node,
      own:
        all.find(({ primaryIp }) => primaryIp === node.host.address) ?? all.find(({ name }) => name === node.host.name),
    }));
    const missing = found.filter(({ own }) => !own).map(({ node }) => node.host.name);
    if (missing.length > 0)
      throw new AppError('provisioner_unavailable', {
        detail: `PMK knows no node with the address or name of ${missing.join(', ')}: its host agent must run there`,
      });
    return found.flatMap(({ node, own }) => (own ? [{ ...own, node }] : []));
  }

  private async getCluster(
    { name, provisionerId }: Pick<Target, 'name' | 'provisionerId'>,
    signal?: AbortSignal,
  ): Promise<PmkCluster> {
    const client = await this.connect();
    const cluster = provisionerId
      ? await client.getCluster(provisionerId, signal)
      : await client.findCluster(name, signal);
    if (!cluster)
      throw new AppError('cluster_diverged', { detail: `PMK has no cluster ${provisionerId ?? `named ${name}`}` });
    return cluster;
  }

  private connect(): Promise<PmkClient> {
    this.client ??= this.makeClient().catch((error: unknown) => {
      this.client = undefined;
      throw error;
    });
    return this.client;
  }

  private async makeClient(): Promise<PmkClient> {
    const { pmk } = this.config;
    if (!pmk) throw new AppError('provisioner_unavailable', { detail: 'airdock.pmk is not in the configuration' });
    const { passwordFile, ...connection } = pmk;
    return new PmkClient(connection, readPassword(passwordFile));
  }
}

/** Throws `provisioner_unavailable`, and `file_exposed` when others can read it. */
function readPassword(path: string): string {
  try {
    return readSecretFile(path);
  } catch (cause) {
    if (cause instanceof AppError) throw cause;
    throw new AppError(
      'provisioner_unavailable',
      { detail: `${path} (airdock.pmk.passwordFile) cannot be read` },
      { cause },
    );
  }
}

/** So many workers as a share of all, rounded down; undefined for one at a time, which is what PMK does by itself. */
function percentOf(atOnce: number, nodes: readonly TargetNode[]): number | undefined {
  const workers = nodes.filter(({ role }) => role === 'worker').length;
  return atOnce > 1 && workers > 0 ? Math.min(100, Math.max(1, Math.floor((100 * atOnce) / workers))) : undefined;
}

/** Throws `upgrade_refused`. */
function offeredKind(
  { kubeRoleVersion, minorUpgradeRoleVersion, patchUpgradeRoleVersion }: PmkCluster,
  to: string,
): 'minor' | 'patch' {
  const kind = upgradeKind(kubeRoleVersion, to);
  const offered = [minorUpgradeRoleVersion, patchUpgradeRoleVersion];
  if (offered[kind === 'minor' ? 0 : 1] === to) return kind;
  throw new AppError('upgrade_refused', {
    detail: `PMK offers ${offered.filter(Boolean).join(' and ') || 'no upgrade'}, not ${to}`,
  });
}
