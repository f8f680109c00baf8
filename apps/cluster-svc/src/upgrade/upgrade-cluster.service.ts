import { isDeepStrictEqual } from 'node:util';
import { AppError, isTransient, toProblem } from '@airdock/core/errors';
import { pollUntil } from '@airdock/core/poll-until';
import { now } from '@airdock/platform/database';
import { type JobContext, phaseOf } from '@airdock/platform/jobs/job-processor';
import type { ProgressUpdate } from '@airdock/platform/jobs/progress';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Injectable } from '@nestjs/common';
import pLimit from 'p-limit';
import type { Cluster } from '../cluster/cluster.schema.js';
import { assertUpgrading, ClusterService, notReady } from '../cluster/cluster.service.js';
import { CreateClusterService } from '../cluster/create-cluster.service.js';
import type { Provisioner, Target } from '../provisioner/provisioner.schema.js';
import { ProvisionerService } from '../provisioner/provisioner.service.js';
import { ReadinessService } from '../readiness/readiness.service.js';
import type { UpgradeEntity } from './upgrade.entity.js';
import type { UpgradedNode } from './upgrade.schema.js';
import { batchesOf, batchSize, UpgradeService, upgradeJobType } from './upgrade.service.js';

const pauseLookMs = 1_000;

/**
 * Upgrades a cluster: images into the registry, the gate of readiness, images onto every node before anything is
 * drained, then node after node. What is done is on the row before and after each node, so that a run after a crash, a
 * failure or a cancellation goes on with the node where the last one stopped.
 */
@Injectable()
export class UpgradeCluster {
  constructor(
    private readonly upgrades: UpgradeService,
    private readonly clusters: ClusterService,
    private readonly creation: CreateClusterService,
    private readonly readiness: ReadinessService,
    private readonly provisioners: ProvisionerService,
  ) {}

  /** Waits most of its time; many may run beside each other. */
  @RunsJob(upgradeJobType, { concurrency: 16 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const upgrade = await this.upgrades.row(context.resourceId);
    const cluster = await this.clusters.get(upgrade.clusterId);
    const { from, to } = upgrade;
    const ended = (registryMode: UpgradeEntity['registryMode']) => ({
      from,
      to,
      registryMode,
      nodes: upgrade.nodes.length,
    });
    // A worker may be killed after the upgrade has ended and before its job has.
    const isOver =
      cluster.upgradeId === null &&
      cluster.kubernetesVersion === to &&
      upgrade.nodes.every(({ state }) => state === 'done');
    if (isOver) return ended(cluster.registryMode.effective);
    assertUpgrading(cluster, upgrade.id);
    if (!upgrade.pulledAt) await this.bringImages(upgrade, cluster, context);
    // What images are called here is known when they are here.
    const target = await this.creation.targetOf(cluster, { ...upgrade, kubernetesVersion: to });

    const provisioner = this.provisioners.get(cluster.provisioner);
    context.progress({ phase: 'upgrade', percent: 50, itemsTotal: target.nodes.length });
    if (provisioner.upgradeCluster) await this.upgradeAll(provisioner, upgrade, target, phaseOf(context, 50, 99));
    else await this.upgradeNodes(provisioner, upgrade, target, context);

    context.progress({ phase: 'verify' });
    const { registryMode, fields } = await this.verify(provisioner, cluster, upgrade, target, context);
    // Cancelled at its last node: it is ended by a retry, not under a job that says that it was not.
    context.signal.throwIfAborted();
    const { imageSetId, packages, wantedMode } = upgrade;
    await this.clusters.setNodes(cluster.id, to);
    const reached = { kubernetesVersion: to, imageSetId, effectiveMode: registryMode, fields, packages };
    await this.clusters.finishUpgrade(cluster.id, upgrade.id, { ...reached, ...(wantedMode ? { wantedMode } : {}) });
    return ended(registryMode);
  }

  private async bringImages(upgrade: UpgradeEntity, { nodes }: Cluster, context: JobContext): Promise<void> {
    const { to, registryMode, imageSetId, fields } = upgrade;
    const question = { kubernetesVersion: to, registryMode, imageSetId, hostIds: nodes.map(({ hostId }) => hostId) };
    if (upgrade.plan.imagesToPush.length > 0) await this.readiness.pushMissing(question, phaseOf(context, 0, 20));
    const pulling = phaseOf(context, 20, 50);
    pulling.progress({ phase: 'gate' });
    const answer = await this.readiness.answer(question);
    if (!answer.ready) throw notReady(answer);
    await this.creation.pullImages(
      { nodes, fields },
      imageSetId,
      `upgrade-${context.jobId}-${context.attempt}`,
      pulling,
    );
    upgrade.pulledAt = now();
    await this.upgrades.save(upgrade.id, { pulledAt: upgrade.pulledAt });
  }

  /** The provisioner has its own order; nobody can hold it between nodes. */
  private async upgradeAll(
    provisioner: Provisioner,
    upgrade: UpgradeEntity,
    target: Target,
    context: JobContext,
  ): Promise<void> {
    await this.waitWhilePaused(upgrade, context);
    const size = { nodes: batchSize(upgrade.batch, upgrade.nodes), percent: upgrade.batch.percent };
    await provisioner.upgradeCluster?.(target, size, context, async (hostIds) => {
      const done = upgrade.nodes.filter(({ hostId, state }) => state !== 'done' && hostIds.includes(hostId));
      if (done.length > 0) await this.note(upgrade, done, { state: 'done', error: null });
    });
  }

  private async upgradeNodes(
    provisioner: Provisioner,
    upgrade: UpgradeEntity,
    target: Target,
    context: JobContext,
  ): Promise<void> {
    // A node that is half way comes first: never are there two.
    const isHalfWay = ({ state }: UpgradedNode) => state === 'upgrading' || state === 'failed';
    const size = batchSize(upgrade.batch, upgrade.nodes);
    const unfinished = upgrade.nodes.filter(({ state }) => state !== 'done');
    const batches = [
      unfinished.filter(isHalfWay),
      ...batchesOf(
        unfinished.filter((node) => !isHalfWay(node)),
        size,
      ),
    ].filter((batch) => batch.length > 0);
    context.progress(stepsDone(upgrade.nodes));
    for (const batch of batches) {
      await this.waitWhilePaused(upgrade, context);
      await this.upgradeBatch(provisioner, upgrade, target, batch, context);
    }
  }

  /** All of a batch are let end, whatever becomes of one. Throws the first failure. */
  private async upgradeBatch(
    provisioner: Provisioner,
    upgrade: UpgradeEntity,
    target: Target,
    batch: UpgradedNode[],
    context: JobContext,
  ): Promise<void> {
    await this.advance(upgrade, batch, { state: 'upgrading' }, context);
    // Each writes all nodes: what is written last must be what was known last.
    const oneNote = pLimit(1);
    const nodeSignal = untilInterrupted(context.signal);
    const ends = await Promise.allSettled(
      batch.map(async (node) => {
        const own = target.nodes.find(({ hostId }) => hostId === node.hostId);
        if (!own) throw new AppError('cluster_diverged', { detail: `${node.name} is no longer in the cluster` });
        try {
          await provisioner.upgradeNode?.(
            target,
            own,
            `upgrade-${upgrade.id}-${node.hostId}-${node.tries}`,
            nodeSignal,
          );
        } catch (error) {
          // It goes on by itself, or is asked for again under the same key.
          if (nodeSignal.aborted || isTransient(error)) throw error;
          await oneNote(() =>
            this.note(upgrade, [node], { state: 'failed', tries: node.tries + 1, error: toProblem(error) }),
          );
          throw error;
        }
        await oneNote(() => this.advance(upgrade, [node], { state: 'done', error: null }, context));
        await this.clusters.setNodes(upgrade.clusterId, upgrade.to, [node.hostId]);
      }),
    );
    const failed = ends.find((end) => end.status === 'rejected');
    if (failed) throw failed.reason;
  }

  /** The job's progress first: a worker that dies after the note must not count as one that got no further. */
  private async advance(
    upgrade: UpgradeEntity,
    nodes: readonly UpgradedNode[],
    values: Partial<UpgradedNode>,
    context: JobContext,
  ): Promise<void> {
    context.progress(stepsDone(upgrade.nodes.map((node) => (nodes.includes(node) ? { ...node, ...values } : node))));
    await context.saved();
    await this.note(upgrade, nodes, values);
  }

  private async note(
    upgrade: UpgradeEntity,
    nodes: readonly UpgradedNode[],
    values: Partial<UpgradedNode>,
  ): Promise<void> {
    for (const node of nodes) Object.assign(node, values);
    await this.upgrades.save(upgrade.id, { nodes: upgrade.nodes });
  }

  /**
   * What the cluster runs with now. PMK may have kept the registry fields of its creation: then the cluster has not
   * joined, whatever was asked for.
   */
  private async verify(
    provisioner: Provisioner,
    cluster: Cluster,
    upgrade: UpgradeEntity,
    target: Target,
    { signal }: JobContext,
  ) {
    const found = await provisioner.find(target, signal);
    if (found.kubernetesVersion !== upgrade.to)
      throw new AppError('cluster_diverged', {
        detail: `${cluster.name} runs ${found.kubernetesVersion} after its upgrade to ${upgrade.to}`,
      });
    const fields = found.fields ?? upgrade.fields;
    const hasJoined = isDeepStrictEqual(fields, upgrade.fields);
    return { registryMode: hasJoined ? upgrade.registryMode : cluster.registryMode.effective, fields };
  }

  /** Between two nodes: the place where an upgrade is held, or is cancelled. */
  private async waitWhilePaused({ id, clusterId }: UpgradeEntity, { signal, progress }: JobContext): Promise<void> {
    await pollUntil({ everyMs: pauseLookMs, signal }, async () => {
      const isPaused = await this.clusters.isPaused(clusterId, id);
      if (isPaused) progress({ phase: 'paused' });
      return !isPaused;
    });
    progress({ phase: 'upgrade' });
  }
}

/** A node that was begun is half a step, so that each note is one. */
function stepsDone(nodes: readonly UpgradedNode[]): ProgressUpdate {
  const itemsDone = nodes.filter(({ state }) => state === 'done').length;
  const begun = nodes.filter(({ state }) => state === 'upgrading').length;
  return { itemsDone, percent: 50 + (49 * (itemsDone + begun / 2)) / nodes.length };
}

/** Aborts when the job goes on elsewhere, not when it is cancelled: a node that was begun is finished. */
function untilInterrupted(signal: AbortSignal): AbortSignal {
  const controller = new AbortController();
  const onAbort = () => {
    if (!(signal.reason instanceof AppError) || signal.reason.code !== 'job_cancelled') controller.abort(signal.reason);
  };
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
  return controller.signal;
}
