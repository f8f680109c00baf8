import { AppError, toProblem } from '@airdock/core/errors';
import { criSocketOf } from '@airdock/core/kubernetes/kubeadm-config';
import { parseKubernetesVersion, supportsLocalRegistry } from '@airdock/core/kubernetes-version';
import { parseReference } from '@airdock/core/oci/reference';
import { KubeadmHost } from '@airdock/host/kubeadm/kubeadm-host';
import { initNode, joinNode, resetNode } from '@airdock/host/kubeadm/kubeadm-node';
import { NodeWork } from '@airdock/host/kubeadm/node-work';
import { upgradeNode } from '@airdock/host/kubeadm/upgrade-node';
import { HostSystem } from '@airdock/host/system/host-system';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job, JobState } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import type { Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostLock } from '../host/host-lock.service.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import { NodeOperationEntity } from './node-operation.entity.js';
import type { CreateNodeOperation, NodeAction, NodeOperation, NodeOperationResult } from './node-operation.schema.js';

export const operateNodeJobType = 'host.operate-node';

/**
 * Makes Kubernetes nodes of hosts that are configured, one host and one step of its life at a time. Who calls it keeps
 * the order of the nodes.
 */
@Injectable()
export class NodeOperationService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(NodeOperationEntity, 'host') private readonly operations: Repository<NodeOperationEntity>,
    private readonly hosts: HostService,
    private readonly lock: HostLock,
    private readonly tunnels: TunnelService,
    private readonly jobs: JobsService,
  ) {}

  /**
   * Throws `resource_not_found`, `host_not_configured`, `kubernetes_version_unsupported`, `runtime_unsupported`,
   * `reference_invalid`.
   */
  async create(request: JobRequest, { hostId, operation, dryRun }: CreateNodeOperation): Promise<Job> {
    const [host] = (await this.hosts.getAll([hostId, controlPlaneOf(hostId, operation)])).map(assertConfigured);
    if ('cluster' in operation) {
      const version = versionOf(operation);
      if (!supportsLocalRegistry(parseKubernetesVersion(version)))
        throw new AppError('kubernetes_version_unsupported', { detail: version });
      criSocketOf(runtimeOf(host as Host), version);
      parseReference(operation.cluster.pauseImage);
    }
    const id = newId();
    const row: NodeOperationEntity = {
      id,
      hostId,
      operation,
      dryRun,
      result: null,
      jobId: request.id,
      createdAt: now(),
    };
    return this.jobs.submit({ ...request, type: operateNodeJobType, resource: `/v1/node-operations/${id}` }, [
      this.operations.createQueryBuilder().insert().values(columns(row)),
    ]);
  }

  list(query: PageQuery): Promise<Page<NodeOperation>> {
    return findPageWithState(this.operations, this.jobs, query, toResource);
  }

  get(id: string): Promise<NodeOperation> {
    return getWithState(this.operations, this.jobs, id, toResource);
  }

  /**
   * What was done is kept also when it fails. Whoever asks wants to know at once that a host cannot be reached: it is not
   * tried again.
   */
  @RunsJob(operateNodeJobType, { concurrency: 32, maxFailures: 1 })
  async run({ jobId, resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.operations, resourceId);
    const result: NodeOperationResult = { steps: [], nodes: [], warnings: [], error: null };
    try {
      progress({ phase: 'wait for the host' });
      await this.lock.acquire(row.hostId, jobId, signal);
      progress({ phase: row.operation.action });
      await this.operate(row, signal, result, () => progress({ itemsDone: result.steps.length }));
      return { steps: Object.fromEntries(result.steps.map(({ name, status }) => [name, status])) };
    } catch (error) {
      result.error = toProblem(signal.aborted ? signal.reason : error);
      throw error;
    } finally {
      await this.operations.update({ id: row.id }, columns<NodeOperationEntity>({ result }));
    }
  }

  private async operate(
    { hostId, operation, dryRun }: NodeOperationEntity,
    signal: AbortSignal,
    result: NodeOperationResult,
    onStep: () => void,
  ): Promise<void> {
    const startedAt = performance.now();
    const [host, controlPlaneHost] = (await this.hosts.getAll([hostId, controlPlaneOf(hostId, operation)])).map(
      assertConfigured,
    ) as [Host, Host];
    if ('cluster' in operation) await this.assertTunnel(host, dryRun, signal);
    await using connection = await this.hosts.connect(host, signal);
    await using other = hostId === controlPlaneHost.id ? undefined : await this.hosts.connect(controlPlaneHost, signal);
    const kubeadmHost = (of: Host, through: SshConnection) => new KubeadmHost(through, signal, of.name, runtimeOf(of));
    const node = kubeadmHost(host, connection);
    const controlPlane = other ? kubeadmHost(controlPlaneHost, other) : node;
    if (operation.action !== 'inspect') {
      const { family } = await new HostSystem(connection, signal).facts();
      const work = new NodeWork({
        host: node,
        controlPlane,
        family,
        packages: family ? this.config.packages.kubernetes[family] : [],
        dryRun,
        startedAt,
        onStep: (step) => {
          result.steps.push(step);
          onStep();
        },
        onWarning: (warning) => result.warnings.push(warning),
        remember: (additions) => this.hosts.remember(hostId, additions),
      });
      await changeNode(operation, work);
    }
    const isGone = operation.action === 'reset' && !other;
    if (!dryRun && !isGone) result.nodes = await controlPlane.nodes();
  }

  /** Packages and images come through it. Throws `tunnel_failed`, or why the tunnel is not up. */
  private async assertTunnel({ id, name }: Host, dryRun: boolean, signal: AbortSignal): Promise<void> {
    if (!dryRun) return void (await this.tunnels.ensureUp(id, signal));
    const tunnel = await this.tunnels.settled(id, signal);
    if (tunnel?.state !== 'up')
      throw new AppError('tunnel_failed', { detail: `${name}: ${tunnel?.error?.detail ?? 'there is no tunnel'}` });
  }
}

function changeNode(operation: Exclude<NodeAction, { action: 'inspect' }>, work: NodeWork): Promise<void> {
  switch (operation.action) {
    case 'init':
      return initNode(work, operation.cluster);
    case 'join':
      return joinNode(work, operation.role, operation.cluster);
    case 'upgrade':
      return upgradeNode(work, operation, operation.cluster);
    case 'reset':
      return resetNode(work);
  }
}

const controlPlaneOf = (hostId: string, operation: NodeAction): string =>
  ('controlPlaneHostId' in operation && operation.controlPlaneHostId) || hostId;

const versionOf = (operation: Extract<NodeAction, { cluster: unknown }>): string =>
  operation.action === 'upgrade' ? operation.kubernetesVersion : operation.cluster.kubernetesVersion;

const runtimeOf = ({ configuration }: Host) => configuration?.containerRuntime ?? 'docker';

function assertConfigured(host: Host): Host {
  if (!host.configuration) throw new AppError('host_not_configured', { detail: host.name });
  return host;
}

const toResource = ({ result, ...row }: NodeOperationEntity, state: JobState): NodeOperation => ({
  ...row,
  state,
  ...(result ?? { steps: [], nodes: [], warnings: [], error: null }),
});
