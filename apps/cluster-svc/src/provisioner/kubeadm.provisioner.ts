import { followJob } from '@airdock/clients/follow-job';
import { createNodeOperation } from '@airdock/clients/generated/sdk.gen';
import type { NodeAction, NodeCluster } from '@airdock/clients/generated/types.gen';
import type { ServiceClients } from '@airdock/clients/service-clients';
import { AppError, fromProblem } from '@airdock/core/errors';
import { criSocketOf, plainVersion } from '@airdock/core/kubernetes/kubeadm-config';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import pLimit from 'p-limit';
import type { Found, Provisioner, Target, TargetNode, WantedCluster } from './provisioner.schema.js';

/** Workers join beside each other; control planes one by one, since each changes the members of etcd. */
const joinsAtOnce = 4;
const upstreamRepository = 'k8s.gcr.io';

/** Airdock itself makes the clusters, with kubeadm on the hosts; host-svc does what is done on a host. */
export class KubeadmProvisioner implements Provisioner {
  constructor(private readonly clients: ServiceClients) {}

  async check({ kubernetesVersion, options, existing }: WantedCluster): Promise<void> {
    if (existing)
      throw new AppError('provisioner_unavailable', {
        detail: 'a cluster that exists cannot be taken over with kubeadm: register it as external',
      });
    criSocketOf(options.containerRuntime, kubernetesVersion);
  }

  async checkUpgrade({ options }: Pick<Target, 'options'>, to: string): Promise<void> {
    criSocketOf(options.containerRuntime, to);
  }

  async create(target: Target, context: JobContext): Promise<void> {
    const { jobId, attempt, signal, progress } = context;
    const [first, ...controlPlanes] = target.nodes.filter(({ role }) => role === 'controlPlane');
    const workers = target.nodes.filter(({ role }) => role === 'worker');
    if (!first) throw new AppError('provisioner_unavailable', { detail: 'the cluster has no control plane' });
    let done = 0;
    progress({ phase: 'nodes', itemsTotal: target.nodes.length });
    const operate = async (node: TargetNode, operation: NodeAction) => {
      await this.operate(node, operation, `create-${jobId}-${attempt}-${node.hostId}`, signal);
      progress({ itemsDone: ++done });
    };
    const cluster = clusterOf(target);
    const join = (node: TargetNode) =>
      operate(node, { action: 'join', role: node.role, controlPlaneHostId: first.hostId, cluster });
    await operate(first, { action: 'init', cluster });
    for (const node of controlPlanes) await join(node);
    const limit = pLimit(joinsAtOnce);
    // The others are let end: none is left half way because another failed.
    const joined = await Promise.allSettled(workers.map((node) => limit(() => join(node))));
    const failed = joined.find((one) => one.status === 'rejected');
    if (failed) throw failed.reason;
  }

  async find({
    kubernetesVersion,
    provisionerId,
  }: Pick<Target, 'kubernetesVersion' | 'provisionerId'>): Promise<Found> {
    return { kubernetesVersion, provisionerId, fields: undefined };
  }

  async upgradeNode(target: Target, node: TargetNode, key: string, signal: AbortSignal): Promise<void> {
    const [first] = target.nodes.filter(({ role }) => role === 'controlPlane');
    if (!first) throw new AppError('provisioner_unavailable', { detail: 'the cluster has no control plane' });
    const isFirst = node.hostId === first.hostId;
    const cluster = clusterOf(target);
    await this.operate(
      node,
      {
        action: 'upgrade',
        kubernetesVersion: cluster.kubernetesVersion,
        role: node.role,
        controlPlaneHostId: first.hostId,
        isFirst,
        cluster,
      },
      key,
      signal,
    );
  }

  /** Throws `node_unhealthy` with what went wrong on the host. */
  private async operate({ host }: TargetNode, operation: NodeAction, key: string, signal: AbortSignal): Promise<void> {
    const { data: started } = await createNodeOperation({
      client: this.clients.host,
      headers: { 'Idempotency-Key': key },
      body: { hostId: host.id, operation },
      throwOnError: true,
    });
    const { error } = await followJob(this.clients.host, started.id, signal);
    if (error) {
      const { code, message } = fromProblem(error);
      throw new AppError('node_unhealthy', { detail: `${host.name}: ${message}`, hostId: host.id, reason: code });
    }
  }
}

function clusterOf({ kubernetesVersion, fields, network, pauseImage }: Target): NodeCluster {
  const imageRepository = fields.k8sPrivateRegistry || upstreamRepository;
  // Without the registry nodes have what warmed their caches, under its upstream name.
  const pause = pauseImage ?? (fields.k8sPrivateRegistry ? undefined : `${upstreamRepository}/pause:3.2`);
  if (!pause)
    throw new AppError('provisioner_unavailable', {
      detail: `the image set of ${kubernetesVersion} has no pause image: name one, e.g. k8s.gcr.io/pause:3.2`,
    });
  return {
    kubernetesVersion: plainVersion(kubernetesVersion),
    imageRepository,
    podSubnet: network.containersCidr,
    serviceSubnet: network.servicesCidr,
    pauseImage: pause,
  };
}
