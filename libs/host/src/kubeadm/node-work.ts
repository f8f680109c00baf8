import type { PackageFamily } from '@airdock/core/host/package-list';
import { type HostChange, HostWork, type HostWorkOptions, hostChange } from '../work/host-work.js';
import type { KubeadmHost } from './kubeadm-host.js';

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
/** One of the steps of work on a node. */
export type NodeStepName = (typeof nodeStepNames)[number];

/** What a `NodeWork` is made of. */
export interface NodeWorkOptions extends Omit<HostWorkOptions<NodeStepName>, 'connection' | 'signal'> {
  host: KubeadmHost;
  /** The host that kubectl runs on; `host` itself for the first control plane. */
  controlPlane: KubeadmHost;
  family: PackageFamily | undefined;
  /** Names of the packages that make a node. */
  packages: readonly string[];
}

/** The work of making a node of a host, of upgrading it, or of removing it. */
export class NodeWork extends HostWork<NodeStepName> {
  readonly host: KubeadmHost;
  readonly controlPlane: KubeadmHost;
  readonly family: PackageFamily | undefined;
  readonly packages: readonly string[];

  constructor({ host, controlPlane, family, packages, ...options }: NodeWorkOptions) {
    super({ ...options, connection: host.connection, signal: host.signal });
    this.host = host;
    this.controlPlane = controlPlane;
    this.family = family;
    this.packages = packages;
  }

  /** Runs kubeadm, unless this is a dry run; see `KubeadmHost.kubeadm`. */
  async kubeadm(argv: string[], config?: string): Promise<HostChange> {
    if (!this.dryRun) await this.host.kubeadm(argv, config === undefined ? {} : { config });
    return hostChange('command', 'run', `kubeadm ${argv.join(' ')}${config === undefined ? '' : ' --config FILE'}`);
  }

  /** Runs kubectl on the control plane, unless this is a dry run; see `KubeadmHost.kubectl`. */
  async kubectl(argv: string[], options: Parameters<KubeadmHost['kubectl']>[1] = {}): Promise<HostChange> {
    if (!this.dryRun) await this.controlPlane.kubectl(argv, options);
    return hostChange('command', 'run', `kubectl ${argv.join(' ')}`);
  }
}
