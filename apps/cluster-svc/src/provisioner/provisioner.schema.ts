import type { Host } from '@airdock/clients/generated/types.gen';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import type { PackageFields, RegistryFields } from '../cluster-defaults/cluster-defaults.schema.js';
import type { ClusterNetwork, ClusterNode, ClusterOptions } from './cluster-shape.schema.js';

export interface TargetNode extends ClusterNode {
  host: Host;
}

/** A cluster as a provisioner should make it. */
export interface Target {
  id: string;
  name: string;
  network: ClusterNetwork;
  options: ClusterOptions;
  /** What the provisioner calls it; null until it has made it. */
  provisionerId: string | null;
  /** That it should have: of an upgrade the new one. */
  kubernetesVersion: string;
  nodes: readonly TargetNode[];
  /** Empty where the cluster does not use the registry. */
  fields: RegistryFields;
  packages: PackageFields;
  /** The pause image of the version, as the nodes pull it; undefined when the image set names none. */
  pauseImage: string | undefined;
}

/** A cluster that somebody asks for. */
export interface WantedCluster {
  name: string;
  kubernetesVersion: string;
  options: ClusterOptions;
  /** It runs already, and is only registered. */
  existing: boolean;
}

export interface UpgradeBatch {
  /** Workers that are upgraded at the same time. */
  nodes: number;
  /** As PMK takes it; undefined when the caller gave a number. */
  percent: number | undefined;
}

/** What a provisioner found of a cluster that it made, or that was there before. */
export interface Found {
  provisionerId: string | null;
  kubernetesVersion: string;
  /** The registry fields that it has; undefined when the provisioner does not know. */
  fields: RegistryFields | undefined;
}

/**
 * Who makes Kubernetes clusters of hosts. Every method may be called again after a crash at any instruction, and goes
 * on with what is there. What is in the way of a single node is thrown as `node_unhealthy`; `dependency_unavailable`
 * and other transient errors are tried again by the job.
 */
export interface Provisioner {
  /**
   * Refuses early what it cannot make. Throws `provisioner_unavailable`, `resource_exists`,
   * `kubernetes_version_unsupported`, `runtime_unsupported`.
   */
  check(cluster: WantedCluster): Promise<void>;
  /** Throws `upgrade_refused` when it does not offer the version. */
  checkUpgrade(cluster: Pick<Target, 'name' | 'provisionerId' | 'options'>, to: string): Promise<void>;
  /**
   * Makes the cluster and waits until all nodes are healthy. `note` keeps the id that the provisioner gave it, as soon
   * as there is one.
   */
  create(target: Target, context: JobContext, note: (provisionerId: string) => Promise<void>): Promise<void>;
  /** A cluster that is there. Throws `cluster_diverged` when it is not. */
  find(target: Pick<Target, 'name' | 'kubernetesVersion' | 'provisionerId'>, signal: AbortSignal): Promise<Found>;
  /**
   * Upgrades one node and waits until it is healthy with the new version. `key` is the same for the same try.
   * Provisioners that only upgrade whole clusters have `upgradeCluster` instead.
   */
  upgradeNode?(target: Target, node: TargetNode, key: string, signal: AbortSignal): Promise<void>;
  /** Upgrades all nodes, in an order of its own. `onNodes` is told which are healthy with the new version. */
  upgradeCluster?(
    target: Target,
    batch: UpgradeBatch,
    context: JobContext,
    onNodes: (hostIds: string[]) => Promise<void>,
  ): Promise<void>;
}
