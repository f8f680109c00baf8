import { AppError } from '@airdock/core/errors';
import { fileDiff } from '@airdock/core/host/host-file';
import { criSocketOf, dnsRepositoryOf, plainVersion } from '@airdock/core/kubernetes/kubeadm-config';
import { type KubernetesVersion, parseKubernetesVersion } from '@airdock/core/kubernetes-version';
import { parseDocument } from 'yaml';
import { type HostChange, hostChange } from '../work/host-work.js';
import type { ClusterNodeDetails, KubeadmHost } from './kubeadm-host.js';
import { installNodePackages, packagesToInstall } from './node-packages.js';
import { type ClusterSettings, type NodeRole, packagesStep, runtimeStep } from './node-steps.js';
import type { NodeWork } from './node-work.js';
import { setKubeletPauseImage } from './pause-image.js';

/** The annotation of a node that was drained here: a node that somebody else has cordoned stays so. */
const drainedFor = 'airdock.io/drained-for';
const readyMs = 300_000;
const drainSeconds = 300;

/** One node, and the version that it is brought to. */
export interface Upgrade {
  kubernetesVersion: string;
  role: NodeRole;
  /** The first control plane upgrades the cluster, all others follow it. */
  isFirst: boolean;
}

/** What a node needs for its upgrade. */
interface UpgradePlan extends Pick<Upgrade, 'isFirst'> {
  /** Without `v`. */
  version: string;
  node: ClusterNodeDetails;
  clusterConfig: ClusterConfig;
  isOldControlPlane: boolean;
  isOldKubelet: boolean;
  /** False when all is as it should be already. */
  isDue: boolean;
}

/**
 * The node gets a newer version, in the order of
 * https://kubernetes.io/docs/tasks/administer-cluster/kubeadm/kubeadm-upgrade/: kubeadm upgrades what it has written,
 * the node is drained, the kubelet is exchanged, and the node takes pods again when it is ready. Throws
 * `kubernetes_version_skew` before anything is changed, `drain_failed`, `node_not_ready`, and as `initNode`.
 */
export async function upgradeNode(work: NodeWork, upgrade: Upgrade, cluster: ClusterSettings): Promise<void> {
  const { host, dryRun } = work;
  const plan = await planUpgrade(work, upgrade);
  const { version, isDue } = plan;
  work.recordChanges('check', [], `${host.nodeName} is at ${plan.node.version}`);
  await packagesStep(work, version, !isDue, isKubeadm);
  await runtimeStep(work, cluster, !isDue);
  await runKubeadmUpgrade(work, plan, cluster);
  await drain(work, plan);
  await exchangeKubelet(work, version, cluster, !isDue);
  if (isDue && !dryRun) await waitUntilReady(work, version);
  work.recordChanges('node', [], `${host.nodeName} ${dryRun ? 'will be' : 'is'} ready with ${version}`);
  await uncordon(work, plan);
}

const isKubeadm = (name: string): boolean => name.startsWith('kubeadm');

async function planUpgrade(work: NodeWork, { kubernetesVersion, isFirst, role }: Upgrade): Promise<UpgradePlan> {
  const { host, controlPlane } = work;
  const version = plainVersion(kubernetesVersion);
  criSocketOf(host.runtime, version);
  const state = await host.state();
  const node = await controlPlane.node(host.nodeName);
  if (!node)
    throw new AppError('kubernetes_api_failed', {
      detail: `the cluster of ${controlPlane.hostName} has no node ${host.nodeName}`,
    });
  const clusterConfig = await readClusterConfig(controlPlane);
  if (isFirst) assertStep(clusterConfig.version, version, 'the cluster');
  else if (clusterConfig.version !== version)
    throw new AppError('kubernetes_version_skew', {
      detail: `the cluster is at ${clusterConfig.version}, so ${host.nodeName} cannot go to ${version} yet`,
    });
  assertStep(node.version, version, host.nodeName);
  const isOldControlPlane = role === 'controlPlane' && state.apiServerVersion !== version;
  const isOldKubelet = node.version !== version || (await packagesToInstall(work, version)).length > 0;
  const isDue = isOldControlPlane || isOldKubelet || (isFirst && clusterConfig.version !== version);
  return { version, isFirst, node, clusterConfig, isOldControlPlane, isOldKubelet, isDue };
}

async function runKubeadmUpgrade(work: NodeWork, plan: UpgradePlan, cluster: ClusterSettings): Promise<void> {
  const { version, isFirst, clusterConfig, isOldControlPlane, isOldKubelet } = plan;
  const changes: HostChange[] = [];
  if (isFirst && (isOldControlPlane || clusterConfig.version !== version)) {
    changes.push(...(await setClusterRepository(work, clusterConfig, cluster.imageRepository, version)));
    changes.push(await work.kubeadm(['upgrade', 'apply', `v${version}`, '--yes']));
  } else if (isOldControlPlane || (isOldKubelet && !isFirst)) changes.push(await work.kubeadm(['upgrade', 'node']));
  work.recordChanges('kubeadm', changes, `${isFirst ? 'the cluster' : work.host.nodeName} is upgraded to ${version}`);
}

const isDrainedHere = ({ node }: UpgradePlan): boolean => drainedFor in node.annotations;

/** A node that somebody else has cordoned is drained too, but stays cordoned. */
async function drain(work: NodeWork, plan: UpgradePlan): Promise<void> {
  const { node, version, isDue } = plan;
  const { nodeName } = work.host;
  const changes: HostChange[] = [];
  if (isDue) {
    if (node.schedulable)
      changes.push(await work.kubectl(['annotate', 'node', nodeName, `${drainedFor}=${version}`, '--overwrite']));
    else if (!isDrainedHere(plan)) work.warn(`${nodeName} was cordoned before, and stays so`);
    const timeout = `--timeout=${drainSeconds}s`;
    const argv = ['drain', nodeName, '--ignore-daemonsets', '--delete-emptydir-data', timeout];
    changes.push(await work.kubectl(argv, { timeoutMs: (drainSeconds + 60) * 1000, code: 'drain_failed' }));
  }
  work.recordChanges('drain', changes, nodeName);
}

async function uncordon(work: NodeWork, plan: UpgradePlan): Promise<void> {
  const { nodeName } = work.host;
  const changes: HostChange[] = [];
  if (isDrainedHere(plan) || (plan.isDue && plan.node.schedulable)) {
    changes.push(await work.kubectl(['uncordon', nodeName]));
    changes.push(await work.kubectl(['annotate', 'node', nodeName, `${drainedFor}-`]));
  }
  work.recordChanges('uncordon', changes, nodeName);
}

async function waitUntilReady({ host, controlPlane }: NodeWork, version: string): Promise<void> {
  let seen = 'the API does not answer';
  const isReady = async () => {
    // The API server of a control plane is exchanged with it.
    if (!(await controlPlane.isApiReady())) return false;
    const node = await controlPlane.node(host.nodeName);
    seen = node ? `it is ${node.ready ? 'ready' : 'not ready'} with ${node.version}` : 'the cluster does not know it';
    return node?.ready === true && node.version === version;
  };
  if (!(await host.isWithin(readyMs, isReady)))
    throw new AppError('node_not_ready', { detail: `${host.nodeName} after ${readyMs / 1000} s: ${seen}` });
}

/** Installs the rest of the packages, and restarts the kubelet with them. */
async function exchangeKubelet(
  work: NodeWork,
  version: string,
  { pauseImage }: ClusterSettings,
  isSettled: boolean,
): Promise<void> {
  const { host, dryRun } = work;
  const changes: HostChange[] = [];
  if (!isSettled) {
    changes.push(...(await installNodePackages(work, version, (name) => !isKubeadm(name))));
    if (host.runtime === 'docker') changes.push(...(await setKubeletPauseImage(work, pauseImage)));
    const complaint = dryRun ? undefined : await work.system.service('restart', 'kubelet');
    if (complaint !== undefined)
      throw new AppError('node_not_ready', { detail: `${host.hostName}: the kubelet does not start: ${complaint}` });
    changes.push(hostChange('service', 'restart', 'kubelet'));
  }
  work.recordChanges('kubelet', changes, `the kubelet of ${version}`);
}

/** What kubeadm writes has a hundred lines. */
const maxClusterConfiguration = 64 * 1024;

interface ClusterConfig {
  /** The ConfigMap as kubectl gives it. */
  configMap: { data: { ClusterConfiguration: string } };
  /** `1.20.11` */
  version: string;
}

/** What kubeadm has stored of the cluster. Throws `kubernetes_api_failed`. */
async function readClusterConfig(controlPlane: KubeadmHost): Promise<ClusterConfig> {
  const output = await controlPlane.kubectl([
    '--namespace',
    'kube-system',
    'get',
    'configmap',
    'kubeadm-config',
    '-o',
    'json',
  ]);
  try {
    const configMap = JSON.parse(output) as ClusterConfig['configMap'];
    if (configMap.data.ClusterConfiguration.length > maxClusterConfiguration) throw new Error('it is too long');
    const version: unknown = parseDocument(configMap.data.ClusterConfiguration).get('kubernetesVersion');
    return { configMap, version: plainVersion(String(version)) };
  } catch (cause) {
    throw new AppError(
      'kubernetes_api_failed',
      { detail: `${controlPlane.hostName}: the ConfigMap kubeadm-config cannot be read` },
      { cause },
    );
  }
}

/**
 * An upgrade takes the names of images from what is stored: a cluster that had them elsewhere gets them from here from
 * now on.
 */
async function setClusterRepository(
  work: NodeWork,
  { configMap }: ClusterConfig,
  imageRepository: string,
  version: string,
): Promise<HostChange[]> {
  const before = configMap.data.ClusterConfiguration;
  const document = parseDocument(before);
  const dnsRepository = dnsRepositoryOf(imageRepository, version);
  document.set('imageRepository', imageRepository);
  if (dnsRepository) document.setIn(['dns', 'imageRepository'], dnsRepository);
  const after = document.toString();
  if (after === parseDocument(before).toString()) return [];
  const changed = { ...configMap, data: { ...configMap.data, ClusterConfiguration: after } };
  return [
    {
      kind: 'file',
      action: 'change',
      target: 'ConfigMap kubeadm-config',
      diff: fileDiff('kubeadm-config', before, after),
    },
    await work.kubectl(['replace', '--filename', '-'], { stdin: JSON.stringify(changed) }),
  ];
}

function assertStep(from: string, to: string, what: string): void {
  const [before, after] = [from, to].map(parseKubernetesVersion) as [KubernetesVersion, KubernetesVersion];
  const minors = after.minor - before.minor;
  if (before.major !== after.major || minors < 0 || minors > 1 || (minors === 0 && after.patch < before.patch))
    throw new AppError('kubernetes_version_skew', { detail: `${what} is at ${from}, and cannot go to ${to} at once` });
}
