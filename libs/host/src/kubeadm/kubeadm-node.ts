/**
 * A host becomes a node of a cluster, a newer one, or none: each action looks first, does what is missing, and looks
 * again.
 */
import { AppError } from '@airdock/core/errors';
import { fileDiff, ownHeader } from '@airdock/core/host/host-file';
import {
  criSocketOf,
  dnsRepositoryOf,
  type InitSettings,
  type NodeSettings,
  plainVersion,
  renderInitConfig,
  renderJoinConfig,
} from '@airdock/core/kubernetes/kubeadm-config';
import { type KubernetesVersion, parseKubernetesVersion } from '@airdock/core/kubernetes-version';
import { parseDocument } from 'yaml';
import { type ClusterNodeDetails, type KubeadmHost, type NodeState, unfinishedFile } from './kubeadm-host.js';
import { bringPackages, packagesToInstall } from './node-packages.js';
import { type NodeChange, type NodeWork, noteStep, runKubeadm, runKubectl, toolsOf } from './node-work.js';
import { setKubeletPauseImage, setPauseImage, takeBackPauseImage } from './pause-image.js';

/** What a node is in its cluster. */
export type NodeRole = 'controlPlane' | 'worker';

/** What all nodes of a cluster have in common. */
export interface ClusterSettings {
  kubernetesVersion: string;
  imageRepository: string;
  podSubnet: string;
  serviceSubnet: string;
  pauseImage: string;
  /** `address:port`; default: the first control plane's own address. */
  controlPlaneEndpoint?: string | undefined;
}

/** On a node that was drained here: one that somebody else has cordoned stays so. */
const drainedFor = 'airdock.io/drained-for';
const annotatedSocket = 'kubeadm.alpha.kubernetes.io/cri-socket';
const registeredMs = 60_000;
const readyMs = 300_000;
const apiMs = 30_000;
const drainSeconds = 300;
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
  await installPackages(work, cluster.kubernetesVersion, standing === 'member');
  await prepareRuntime(work, cluster, standing === 'member');

  const changes: NodeChange[] = [];
  if (standing !== 'member') {
    const config = renderInitConfig(await initSettings(host, cluster));
    if (standing === 'half made') changes.push(await runKubeadm(work, resetArguments(host)));
    if (standing === 'unfinished') {
      for (const phase of lastPhases) changes.push(await runKubeadm(work, ['init', 'phase', ...phase], config));
    } else {
      changes.push(await begin(work, config));
      changes.push(await runKubeadm(work, ['init', '--skip-token-print', '--skip-certificate-key-print'], config));
    }
  }
  noteStep(
    work,
    'kubeadm',
    changes,
    `the first control plane of a cluster of Kubernetes ${plainVersion(cluster.kubernetesVersion)}`,
  );
  if (dryRun) return;
  if (standing !== 'member') await finish(work);
  await registered(work);
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
  await installPackages(work, cluster.kubernetesVersion, standing === 'member');
  await prepareRuntime(work, cluster, standing === 'member');

  const changes: NodeChange[] = [];
  const settings = await nodeSettings(host, cluster);
  if (standing === 'half made') {
    changes.push(await runKubeadm(work, resetArguments(host)));
    if (node) changes.push(await runKubectl(work, ['delete', 'node', host.nodeName, '--ignore-not-found']));
  }
  if (standing === 'unfinished')
    changes.push(
      await runKubectl(work, [
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
    changes.push(await begin(work, renderJoinConfig({ ...settings, ...masked })));
    // Made as late as can be: it is good for 15 minutes.
    const secrets = dryRun
      ? masked
      : await controlPlane.createJoinSecrets(
          renderInitConfig(await initSettings(controlPlane, cluster)),
          isControlPlane,
        );
    changes.push(await runKubeadm(work, ['join'], renderJoinConfig({ ...settings, ...secrets })));
  }
  noteStep(
    work,
    'kubeadm',
    changes,
    `a ${role === 'worker' ? 'worker' : 'control plane'} of the cluster of ${controlPlane.hostName}`,
  );
  if (dryRun) return;
  if (standing !== 'member') await finish(work);
  await registered(work);
}

/**
 * The node gets a newer version, in the order of
 * https://kubernetes.io/docs/tasks/administer-cluster/kubeadm/kubeadm-upgrade/: kubeadm upgrades what it has written,
 * the node is drained, the kubelet is exchanged, and the node takes pods again when it is ready. Throws
 * `kubernetes_version_skew` before anything is changed, `drain_failed`, `node_not_ready`, and as `initNode`.
 */
export async function upgradeNode(
  work: NodeWork,
  { kubernetesVersion, isFirst, role }: Upgrade,
  cluster: ClusterSettings,
): Promise<void> {
  const { host, controlPlane, dryRun, warn } = work;
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
  noteStep(work, 'check', [], `${host.nodeName} is at ${node.version}`);

  await installPackages(work, version, !isDue, isKubeadm);
  await prepareRuntime(work, cluster, !isDue);
  const changes: NodeChange[] = [];
  if (isFirst && (isOldControlPlane || clusterConfig.version !== version)) {
    changes.push(...(await setClusterRepository(work, clusterConfig, cluster.imageRepository, version)));
    changes.push(await runKubeadm(work, ['upgrade', 'apply', `v${version}`, '--yes']));
  } else if (isOldControlPlane || (isOldKubelet && !isFirst)) changes.push(await runKubeadm(work, ['upgrade', 'node']));
  noteStep(
    work,
    'kubeadm',
    changes,
    isFirst ? `the cluster is upgraded to ${version}` : `${host.nodeName} is upgraded to ${version}`,
  );

  // A node that somebody else has cordoned is drained, too, but stays cordoned.
  const isOurs = drainedFor in node.annotations;
  const drain: NodeChange[] = [];
  if (isDue) {
    if (node.schedulable)
      drain.push(
        await runKubectl(work, ['annotate', 'node', host.nodeName, `${drainedFor}=${version}`, '--overwrite']),
      );
    else if (!isOurs) warn(`${host.nodeName} was cordoned before, and stays so`);
    const argv = [
      'drain',
      host.nodeName,
      '--ignore-daemonsets',
      '--delete-emptydir-data',
      `--timeout=${drainSeconds}s`,
    ];
    drain.push(await runKubectl(work, argv, { timeoutMs: (drainSeconds + 60) * 1000, code: 'drain_failed' }));
  }
  noteStep(work, 'drain', drain, host.nodeName);

  await exchangeKubelet(work, version, cluster, !isDue);
  const hasToWait = isDue && !dryRun;
  if (hasToWait) await becomesReady(work, version);
  noteStep(work, 'node', [], `${host.nodeName} ${dryRun ? 'will be' : 'is'} ready with ${version}`);

  const uncordon: NodeChange[] = [];
  if (isOurs || (isDue && node.schedulable)) {
    uncordon.push(await runKubectl(work, ['uncordon', host.nodeName]));
    uncordon.push(await runKubectl(work, ['annotate', 'node', host.nodeName, `${drainedFor}-`]));
  }
  noteStep(work, 'uncordon', uncordon, host.nodeName);
}
/** One node, and the version that it is brought to. */
export interface Upgrade {
  kubernetesVersion: string;
  role: NodeRole;
  /** The first control plane upgrades the cluster, all others follow it. */
  isFirst: boolean;
}

/**
 * The host is no node any more: `kubeadm reset`, and what Airdock wrote for the node is taken back. Its packages, what
 * its network plugin left, and rules of iptables stay. With another host as control plane the node is also taken out of
 * the cluster. Throws `kubeadm_failed`, `kubernetes_api_failed`.
 */
export async function resetNode(work: NodeWork): Promise<void> {
  const { host, controlPlane, dryRun, family } = work;
  const state = await host.state();
  noteStep(work, 'check', [], [...state.files].join(', ') || 'nothing of a node');
  const changes: NodeChange[] = [];
  if (state.files.size > 0) changes.push(await runKubeadm(work, resetArguments(host)));
  if (state.isUnfinished) changes.push(await finish(work));
  if (!dryRun) await host.connection.run(['sh', '-c', removeFolder], { sudo: true, signal: host.signal });
  if (host !== controlPlane && (await controlPlane.node(host.nodeName)))
    changes.push(await runKubectl(work, ['delete', 'node', host.nodeName, '--ignore-not-found']));
  noteStep(work, 'kubeadm', changes, 'kubeadm reset');
  noteStep(work, 'runtime', host.runtime === 'containerd' ? await takeBackPauseImage(work) : [], host.runtime);
  if (!family) return;
  const { system } = toolsOf(host);
  if (!dryRun) await system.hold(family, [...(await system.installedVersions(family, work.packages)).keys()], false);
}

const isKubeadm = (name: string): boolean => name.startsWith('kubeadm');

/**
 * What a host is to the cluster. `half made`: it is no member, and kubeadm would trip over what there is. `unfinished`:
 * a member whose making was cut short.
 */
type Standing = 'new' | 'half made' | 'unfinished' | 'member';

function check(work: NodeWork, standing: Standing): void {
  noteStep(
    work,
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

/** Notes on the host that an init or join begins, with what it is asked for. */
async function begin({ host, dryRun }: NodeWork, config: string): Promise<NodeChange> {
  const { files } = toolsOf(host);
  const before = await files.read(unfinishedFile);
  const text = `${ownHeader}\n${config}`;
  if (!dryRun && before.text !== text) await files.write(before, text, { hasHeader: true });
  return { kind: 'file', action: 'create', target: unfinishedFile, diff: fileDiff(unfinishedFile, null, text) };
}

/** The end of an init or join was seen. */
async function finish({ host, dryRun }: NodeWork): Promise<NodeChange> {
  const { files } = toolsOf(host);
  const current = await files.read(unfinishedFile);
  if (!dryRun && current.text !== null) await files.takeBack(current, null);
  return { kind: 'file', action: 'remove', target: unfinishedFile, diff: null };
}

async function registered(work: NodeWork): Promise<void> {
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
  noteStep(
    work,
    'node',
    [],
    `${host.nodeName} is registered with ${node?.version}${node?.ready ? ', and ready' : '; not ready yet: its network plugin may be missing'}`,
  );
}

async function becomesReady({ host, controlPlane }: NodeWork, version: string): Promise<void> {
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

/** Leaves packages alone when all is as it should be, so that a second run needs no repository. */
async function installPackages(
  work: NodeWork,
  kubernetesVersion: string,
  isSettled: boolean,
  isMeant = (_name: string) => true,
): Promise<void> {
  const changes = isSettled ? [] : await bringPackages(work, kubernetesVersion, isMeant);
  noteStep(work, 'packages', changes, `${work.packages.filter(isMeant).join(', ')} ${plainVersion(kubernetesVersion)}`);
}

async function prepareRuntime(work: NodeWork, { pauseImage }: ClusterSettings, isSettled: boolean): Promise<void> {
  const isContainerd = work.host.runtime === 'containerd';
  const changes = isContainerd && !isSettled ? await setPauseImage(work, pauseImage) : [];
  noteStep(
    work,
    'runtime',
    changes,
    isContainerd ? `containerd, with ${pauseImage}` : 'Docker; the kubelet names the pause image',
  );
}

/** The rest of the packages, and the kubelet started anew with them. */
async function exchangeKubelet(
  work: NodeWork,
  version: string,
  { pauseImage }: ClusterSettings,
  isSettled: boolean,
): Promise<void> {
  const { host, dryRun } = work;
  const changes: NodeChange[] = [];
  if (!isSettled) {
    changes.push(...(await bringPackages(work, version, (name) => !isKubeadm(name))));
    if (host.runtime === 'docker') changes.push(...(await setKubeletPauseImage(work, pauseImage)));
    const complaint = dryRun ? undefined : await toolsOf(host).system.service('restart', 'kubelet');
    if (complaint !== undefined)
      throw new AppError('node_not_ready', { detail: `${host.hostName}: the kubelet does not start: ${complaint}` });
    changes.push({ kind: 'service', action: 'restart', target: 'kubelet', diff: null });
  }
  noteStep(work, 'kubelet', changes, `the kubelet of ${version}`);
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
): Promise<NodeChange[]> {
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
    await runKubectl(work, ['replace', '--filename', '-'], { stdin: JSON.stringify(changed) }),
  ];
}

function assertStep(from: string, to: string, what: string): void {
  const [before, after] = [from, to].map(parseKubernetesVersion) as [KubernetesVersion, KubernetesVersion];
  const minors = after.minor - before.minor;
  if (before.major !== after.major || minors < 0 || minors > 1 || (minors === 0 && after.patch < before.patch))
    throw new AppError('kubernetes_version_skew', { detail: `${what} is at ${from}, and cannot go to ${to} at once` });
}
