import type { PackageFamily } from '@airdock/core/host/package-list';
import { HostFiles } from '../system/host-files.js';
import { HostSystem } from '../system/host-system.js';
import type { KubeadmHost } from './kubeadm-host.js';

/** One thing on a node that a step has changed, or would change in a dry run. */
export interface NodeChange {
  kind: 'file' | 'package' | 'service' | 'command';
  /** Path, package, service, or the words of a command. */
  target: string;
  action: 'create' | 'change' | 'install' | 'restart' | 'remove' | 'run';
  /** Of a file: a unified diff. */
  diff: string | null;
}

/** The steps of work on a node, in their order. */
export const nodeStepNames = [
  'check',
  'packages',
  'runtime',
  'kubeadm',
  'drain',
  'kubelet',
  'node',
  'uncordon',
] as const;
/** What became of one step. */
export interface NodeStep {
  name: (typeof nodeStepNames)[number];
  status: 'done' | 'unchanged' | 'planned';
  detail: string;
  changes: NodeChange[];
}

/** What is worked on, and who hears of it. */
export interface NodeWork {
  host: KubeadmHost;
  /** The host that kubectl runs on; `host` itself for the first control plane. */
  controlPlane: KubeadmHost;
  family: PackageFamily | undefined;
  /** Names of the packages that make a node. */
  packages: readonly string[];
  /** Says what would be done, and changes nothing. */
  dryRun: boolean;
  /** Gets each step when it has ended. */
  note: (step: NodeStep) => void;
  /** Gets what a person should know. */
  warn: (warning: string) => void;
  /** Gets names of packages that are about to be brought. */
  remember: (packages: string[]) => Promise<void>;
}

/** The system and the files of a host, for one run. */
export const toolsOf = ({ connection, signal }: KubeadmHost) => ({
  system: new HostSystem(connection, signal),
  files: new HostFiles(connection, signal),
});

/** Reports a step: `planned` in a dry run, `unchanged` without changes. */
export function noteStep(
  { note, dryRun }: NodeWork,
  name: NodeStep['name'],
  changes: NodeChange[],
  detail: string,
): void {
  note({ name, status: changes.length === 0 ? 'unchanged' : dryRun ? 'planned' : 'done', detail, changes });
}

/** Unless this is a dry run; see `KubeadmHost.kubeadm`. */
export async function runKubeadm({ host, dryRun }: NodeWork, argv: string[], config?: string): Promise<NodeChange> {
  if (!dryRun) await host.kubeadm(argv, config === undefined ? {} : { config });
  return {
    kind: 'command',
    action: 'run',
    target: `kubeadm ${argv.join(' ')}${config === undefined ? '' : ' --config FILE'}`,
    diff: null,
  };
}

/** Unless this is a dry run; see `KubeadmHost.kubectl`. */
export async function runKubectl(
  { controlPlane, dryRun }: NodeWork,
  argv: string[],
  options: Parameters<KubeadmHost['kubectl']>[1] = {},
): Promise<NodeChange> {
  if (!dryRun) await controlPlane.kubectl(argv, options);
  return { kind: 'command', action: 'run', target: `kubectl ${argv.join(' ')}`, diff: null };
}
