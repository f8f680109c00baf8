import { sandboxImageOf, setHostsDir, setSandboxImage } from '@airdock/core/container-runtime/containerd-config';
import { isOwn } from '@airdock/core/host/host-file';
import { activateFile, containerdActivation } from '../runtime/activate-file.js';
import { ContainerdHost, configToml, majorOf } from '../runtime/containerd-host.js';
import type { HostFile } from '../system/host-files.js';
import { fileChange, type HostChange, hostChange } from '../work/host-work.js';
import type { NodeWork } from './node-work.js';

const kubeletFlags = '/var/lib/kubelet/kubeadm-flags.env';

/**
 * What kubeadm wrote for the kubelet when the node was made, and a newer kubeadm leaves alone. The kubelet has to be
 * started anew.
 */
export async function setKubeletPauseImage(work: NodeWork, pauseImage: string): Promise<HostChange[]> {
  const before = await work.files.read(kubeletFlags);
  const text = before.text?.replace(/(--pod-infra-container-image=)[^\s"]+/, `$1${pauseImage}`) ?? null;
  const change = text === null ? undefined : await work.write(before, text, { hasHeader: false });
  return change ? [change] : [];
}

/**
 * containerd takes the image that holds pods together from its own configuration. Throws `host_file_refused`,
 * `host_runtime_failed`.
 */
export async function setPauseImage(work: NodeWork, pauseImage: string): Promise<HostChange[]> {
  const before = await work.files.read(configToml);
  const text = setSandboxImage(before.text, await containerdMajor(work), pauseImage);
  return text === before.text && !before.isPending ? [] : activate(work, before, text);
}

/** Reverts `setPauseImage`; a file that others have changed since stays, with a warning. */
export async function revertPauseImage(work: NodeWork): Promise<HostChange[]> {
  const { files } = work;
  const current = await files.read(configToml);
  const major = await containerdMajor(work);
  const kept = await files.before(configToml);
  const image = sandboxImageOf(current.text, major);
  if (image === undefined || (kept === null && !isOwn(current.text))) return [];
  // As configure-hosts has it.
  const { text } = setHostsDir(kept, major);
  if (text === current.text) return [];
  if (setSandboxImage(text, major, image) === current.text) return activate(work, current, text);
  work.warn(`${configToml} was changed after Airdock did, and keeps ${image} as its pause image`);
  return [];
}

async function activate(work: NodeWork, before: HostFile, text: string): Promise<HostChange[]> {
  const { connection, signal, files, system, dryRun } = work;
  if (!dryRun)
    await activateFile(files, system, before, text, await containerdActivation(new ContainerdHost(connection, signal)));
  return [
    { ...fileChange(before.path, before.text, text), action: 'change' },
    hostChange('service', 'restart', 'containerd'),
  ];
}

async function containerdMajor({ system }: NodeWork): Promise<number> {
  const { containerd } = await system.facts();
  return majorOf(containerd.version);
}
