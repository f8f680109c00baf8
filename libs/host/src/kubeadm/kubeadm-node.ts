/** A host becomes a node of a cluster, or none: each action looks first, does what is missing, and looks again. */
import { AppError } from '@airdock/core/errors';
import { ownHeader } from '@airdock/core/host/host-file';
import {
  criSocketOf,
  type InitSettings,
  type NodeSettings,
  plainVersion,
  renderInitConfig,
  renderJoinConfig,
} from '@airdock/core/kubernetes/kubeadm-config';
import { fileChange, type HostChange, hostChange } from '../work/host-work.js';
import { type ClusterNodeDetails, type KubeadmHost, type NodeState, unfinishedFile } from './kubeadm-host.js';
import { type ClusterSettings, type NodeRole, packagesStep, runtimeStep } from './node-steps.js';
import type { NodeWork } from './node-work.js';
import { revertPauseImage } from './pause-image.js';

const annotatedSocket = 'kubeadm.alpha.kubernetes.io/cri-socket';
const registeredMs = 60_000;
const apiMs = 30_000;
// The folder, where there was none before Airdock; kubeadm leaves folders in it.
const removeFolder = `
cd /etc/kubernetes 2>/dev/null && [ -e .airdock-created ] || exit 0
rmdir pki/etcd pki manifests 2>/dev/null
[ "$(ls -A)" != .airdock-created ] || { rm .airdock-created && rmdir /etc/kubernetes; }`;
// A member whose init was not seen to end gets what comes last in one. All of them may be done twice.
const lastPhases = [
  ['upload-config', 'all'],
  ['mark-control-plane'],
  ['bootstrap-token', '--skip-token-print'],
  ['kubelet-finalize', 'all'],
  ['addon', 'all'],
];

/**
 * The host becomes the first control plane of a cluster. One that is already is left as it is, whatever its version;
 * what an earlier init left half made is taken away first. Throws `kubeadm_failed`, `host_in_cluster`,
 * `kubernetes_api_failed`, `host_packages_failed`, `host_file_refused`, `host_runtime_failed`.
 */
export async function initNode(work: NodeWork, cluster: ClusterSettings): Promise<void> {
  const { host, dryRun } = work;
  const state = await host.state();
  const standing = await standingOfFirst(host, state);
  check(work, standing);
  await packagesStep(work, cluster.kubernetesVersion, standing === 'member');
  await runtimeStep(work, cluster, standing === 'member');

  const changes: HostChange[] = [];
  if (standing !== 'member') {
    const config = renderInitConfig(await initSettings(host, cluster));
    if (standing === 'half made') changes.push(await work.kubeadm(resetArguments(host)));
    if (standing === 'unfinished') {
      for (const phase of lastPhases) changes.push(await work.kubeadm(['init', 'phase', ...phase], config));
    } else {
      changes.push(await markUnfinished(work, config));
      changes.push(await work.kubeadm(['init', '--skip-token-print', '--skip-certificate-key-print'], config));
    }
  }
  work.recordChanges(
    'kubeadm',
    changes,
    `the first control plane of a cluster of Kubernetes ${plainVersion(cluster.kubernetesVersion)}`,
  );
  if (dryRun) return;
  if (standing !== 'member') await markFinished(work);
  await waitUntilRegistered(work);
}

/**
 * The host becomes a further control plane, or a worker. The token goes to the host inside the file of `kubeadm join`
 * only. Throws as `initNode`, and `host_in_cluster` when the host is a node of another cluster, or has another role.
 */
export async function joinNode(work: NodeWork, role: NodeRole, cluster: ClusterSettings): Promise<void> {
  const { host, controlPlane, dryRun } = work;
  const authority = await authorityOf(controlPlane);
  const state = await host.state();
  const node = await controlPlane.node(host.nodeName);
  const standing = standingOfJoining(host, state, node, role, authority);
  check(work, standing);
  await packagesStep(work, cluster.kubernetesVersion, standing === 'member');
  await runtimeStep(work, cluster, standing === 'member');

  const changes: HostChange[] = [];
  const settings = await nodeSettings(host, cluster);
  if (standing === 'half made') {
    changes.push(await work.kubeadm(resetArguments(host)));
    if (node) changes.push(await work.kubectl(['delete', 'node', host.nodeName, '--ignore-not-found']));
  }
  if (standing === 'unfinished')
    changes.push(
      await work.kubectl([
        'annotate',
        'node',
        host.nodeName,
        `${annotatedSocket}=${settings.criSocket}`,
        '--overwrite',
      ]),
    );
  if (standing === 'new' || standing === 'half made') {
    const isControlPlane = role === 'controlPlane';
    const masked = {
      apiServerEndpoint: '***',
      token: '***',
      caCertHash: '***',
      certificateKey: isControlPlane ? '***' : undefined,
    };
    changes.push(await markUnfinished(work, renderJoinConfig({ ...settings, ...masked })));
    // Made as late as can be: it is good for 15 minutes.
    const secrets = dryRun
      ? masked
      : await controlPlane.createJoinSecrets(
          renderInitConfig(await initSettings(controlPlane, cluster)),
          isControlPlane,
        );
    changes.push(await work.kubeadm(['join'], renderJoinConfig({ ...settings, ...secrets })));
  }
  work.recordChanges(
    'kubeadm',
    changes,
    `a ${role === 'worker' ? 'worker' : 'control plane'} of the cluster of ${controlPlane.hostName}`,
  );
  if (dryRun) return;
  if (standing !== 'member') await markFinished(work);
  await waitUntilRegistered(work);
}

/**
 * The host is no node any more: `kubeadm reset`, and what Airdock wrote for the node is taken back. Its packages, what
 * its network plugin left, and rules of iptables stay. With another host as control plane the node is also taken out of
 * the cluster. Throws `kubeadm_failed`, `kubernetes_api_failed`.
 */
export async function resetNode(work: NodeWork): Promise<void> {
  const { host, controlPlane, dryRun, family } = work;
  const state = await host.state();
  work.recordChanges('check', [], [...state.files].join(', ') || 'nothing of a node');
  const changes: HostChange[] = [];
  if (state.files.size > 0) changes.push(await work.kubeadm(resetArguments(host)));
  if (state.isUnfinished) changes.push(await markFinished(work));
  if (!dryRun) await host.connection.run(['sh', '-c', removeFolder], { sudo: true, signal: host.signal });
  if (host !== controlPlane && (await controlPlane.node(host.nodeName)))
    changes.push(await work.kubectl(['delete', 'node', host.nodeName, '--ignore-not-found']));
  work.recordChanges('kubeadm', changes, 'kubeadm reset');
  work.recordChanges('runtime', host.runtime === 'containerd' ? await revertPauseImage(work) : [], host.runtime);
  if (!family) return;
  if (!dryRun)
    await work.system.hold(family, [...(await work.system.installedVersions(family, work.packages)).keys()], false);
}

/**
 * What a host is to the cluster. `half made`: it is no member, and kubeadm would trip over what there is. `unfinished`:
 * a member whose making was cut short.
 */
type Standing = 'new' | 'half made' | 'unfinished' | 'member';

function check(work: NodeWork, standing: Standing): void {
  work.recordChanges(
    'check',
    [],
    {
      new: 'no node yet',
      'half made': 'an init or join was cut short',
      unfinished: 'a member, not to the end',
      member: 'a member',
    }[standing],
  );
}

async function standingOfFirst(host: KubeadmHost, { files, isUnfinished }: NodeState): Promise<Standing> {
  if (files.size === 0) return 'new';
  if (!files.has('admin.conf')) {
    if (files.has('kubelet.conf') && !isUnfinished)
      throw new AppError('host_in_cluster', { detail: `${host.hostName} is a worker of a cluster` });
    return 'half made';
  }
  // Its API may just be starting.
  const isReady = await host.isWithin(files.has('manifests/kube-apiserver.yaml') ? apiMs : 0, () => host.isApiReady());
  const node = isReady ? await host.node(host.nodeName) : undefined;
  if (node) return isUnfinished ? 'unfinished' : 'member';
  if (isUnfinished) return 'half made';
  throw new AppError('kubernetes_api_failed', {
    detail: `${host.hostName} has been made a control plane, and ${isReady ? `its cluster has no node ${host.nodeName}` : 'its API does not answer'}`,
  });
}

function standingOfJoining(
  host: KubeadmHost,
  state: NodeState,
  node: ClusterNodeDetails | undefined,
  role: NodeRole,
  authority: string,
): Standing {
  const { files, isUnfinished } = state;
  if (files.size === 0) return 'new';
  const isForeign = state.authority !== undefined && state.authority !== authority;
  if (!isUnfinished && files.has('kubelet.conf') && isForeign)
    throw new AppError('host_in_cluster', {
      detail: `${host.hostName} is a node of a cluster with another certificate authority`,
    });
  if (!node || isForeign || !files.has('kubelet.conf')) return 'half made';
  if (role === 'worker' || node.isControlPlane) return isUnfinished ? 'unfinished' : 'member';
  if (isUnfinished) return 'half made';
  throw new AppError('host_in_cluster', { detail: `${host.hostName} is a worker of this cluster` });
}

async function authorityOf(controlPlane: KubeadmHost): Promise<string> {
  const { files, authority } = await controlPlane.currentState();
  if (!authority || !files.has('admin.conf'))
    throw new AppError('kubernetes_api_failed', { detail: `${controlPlane.hostName} is no control plane` });
  return authority;
}

async function nodeSettings(
  host: KubeadmHost,
  { kubernetesVersion, imageRepository, pauseImage }: ClusterSettings,
): Promise<NodeSettings> {
  const criSocket = criSocketOf(host.runtime, kubernetesVersion);
  return {
    kubernetesVersion,
    imageRepository,
    pauseImage,
    criSocket,
    nodeName: host.nodeName,
    advertiseAddress: await host.address(),
  };
}

async function initSettings(host: KubeadmHost, cluster: ClusterSettings): Promise<InitSettings> {
  const settings = await nodeSettings(host, cluster);
  const address = settings.advertiseAddress ?? host.nodeName;
  const own = address.includes(':') ? `[${address}]:6443` : `${address}:6443`;
  return {
    ...settings,
    podSubnet: cluster.podSubnet,
    serviceSubnet: cluster.serviceSubnet,
    controlPlaneEndpoint: cluster.controlPlaneEndpoint ?? own,
  };
}

/** Only its name is known of a host that is to be reset: the socket of a runtime is where it is in all versions. */
const resetArguments = (host: KubeadmHost): string[] => [
  'reset',
  '--force',
  '--cri-socket',
  criSocketOf(host.runtime, host.runtime === 'docker' ? '1.20.0' : '1.24.0'),
];

/** Writes a file to the host, before an init or join begins, with what kubeadm is asked for. */
async function markUnfinished(work: NodeWork, config: string): Promise<HostChange> {
  const text = `${ownHeader}\n${config}`;
  await work.write(await work.files.read(unfinishedFile), text, { hasHeader: true });
  return fileChange(unfinishedFile, null, text);
}

/** Removes that file from the host, once the end of the init or join was seen. */
async function markFinished(work: NodeWork): Promise<HostChange> {
  await work.revert(await work.files.read(unfinishedFile), null);
  return hostChange('file', 'remove', unfinishedFile);
}

async function waitUntilRegistered(work: NodeWork): Promise<void> {
  const { host, controlPlane } = work;
  let node: ClusterNodeDetails | undefined;
  const isThere = async () => {
    node = await controlPlane.node(host.nodeName);
    return node !== undefined;
  };
  if (!(await host.isWithin(registeredMs, isThere)))
    throw new AppError('node_not_ready', {
      detail: `${host.nodeName} did not register within ${registeredMs / 1000} s`,
    });
  work.recordChanges(
    'node',
    [],
    `${host.nodeName} is registered with ${node?.version}${node?.ready ? ', and ready' : '; not ready yet: its network plugin may be missing'}`,
  );
}
