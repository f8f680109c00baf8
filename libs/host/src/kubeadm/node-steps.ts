import { plainVersion } from '@airdock/core/kubernetes/kubeadm-config';
import { installNodePackages } from './node-packages.js';
import type { NodeWork } from './node-work.js';
import { setPauseImage } from './pause-image.js';

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

/** Installs the packages of a node. A settled node is left alone, so that a second run needs no repository. */
export async function packagesStep(
  work: NodeWork,
  kubernetesVersion: string,
  isSettled: boolean,
  isMeant = (_name: string) => true,
): Promise<void> {
  const changes = isSettled ? [] : await installNodePackages(work, kubernetesVersion, isMeant);
  work.recordChanges(
    'packages',
    changes,
    `${work.packages.filter(isMeant).join(', ')} ${plainVersion(kubernetesVersion)}`,
  );
}

/** Names the pause image to the container runtime, where that is where it stands. */
export async function runtimeStep(work: NodeWork, { pauseImage }: ClusterSettings, isSettled: boolean): Promise<void> {
  const isContainerd = work.host.runtime === 'containerd';
  const changes = isContainerd && !isSettled ? await setPauseImage(work, pauseImage) : [];
  work.recordChanges(
    'runtime',
    changes,
    isContainerd ? `containerd, with ${pauseImage}` : 'Docker; the kubelet names the pause image',
  );
}
