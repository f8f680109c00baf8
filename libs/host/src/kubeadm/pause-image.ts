import { sandboxImageOf, setHostsDir, setSandboxImage } from '@airdock/core/container-runtime/containerd-config';
import { fileDiff, isOwn } from '@airdock/core/host/host-file';
import { activateFile, containerdActivation } from '../runtime/activate-file.js';
import { ContainerdHost, configToml, majorOf } from '../runtime/containerd-host.js';
import type { HostFile } from '../system/host-files.js';
import type { KubeadmHost } from './kubeadm-host.js';
import { type NodeChange, type NodeWork, toolsOf } from './node-work.js';

const kubeletFlags = '/var/lib/kubelet/kubeadm-flags.env';

/**
 * What kubeadm wrote for the kubelet when the node was made, and a newer kubeadm leaves alone. The kubelet has to be
 * started anew.
 */
export async function setKubeletPauseImage({ host, dryRun }: NodeWork, pauseImage: string): Promise<NodeChange[]> {
  const { files } = toolsOf(host);
  const before = await files.read(kubeletFlags);
  const text = before.text?.replace(/(--pod-infra-container-image=)[^\s"]+/, `$1${pauseImage}`) ?? null;
  if (text === null || text === before.text) return [];
  if (!dryRun) await files.write(before, text, { hasHeader: false });
  return [{ kind: 'file', action: 'change', target: kubeletFlags, diff: fileDiff(kubeletFlags, before.text, text) }];
}

/**
 * containerd takes the image that holds pods together from its own configuration. Throws `host_file_refused`,
 * `host_runtime_failed`.
 */
export async function setPauseImage(work: NodeWork, pauseImage: string): Promise<NodeChange[]> {
  const before = await toolsOf(work.host).files.read(configToml);
  const text = setSandboxImage(before.text, await containerdMajor(work.host), pauseImage);
  return text === before.text && !before.isPending ? [] : activate(work, before, text);
}

/** Undoes `setPauseImage`; a file that others have changed since stays, with a warning. */
export async function takeBackPauseImage(work: NodeWork): Promise<NodeChange[]> {
  const { files } = toolsOf(work.host);
  const current = await files.read(configToml);
  const major = await containerdMajor(work.host);
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

async function activate({ host, dryRun }: NodeWork, before: HostFile, text: string): Promise<NodeChange[]> {
  const { files, system } = toolsOf(host);
  if (!dryRun)
    await activateFile(
      files,
      system,
      before,
      text,
      await containerdActivation(new ContainerdHost(host.connection, host.signal)),
    );
  return [
    { kind: 'file', action: 'change', target: before.path, diff: fileDiff(before.path, before.text, text) },
    { kind: 'service', action: 'restart', target: 'containerd', diff: null },
  ];
}

async function containerdMajor(host: KubeadmHost): Promise<number> {
  const { containerd } = await toolsOf(host).system.facts();
  return majorOf(containerd.version);
}
