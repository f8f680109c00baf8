import { registryModes } from '@airdock/core/registry-mode';
import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';
import { PackageFields, RegistryFields } from '../cluster-defaults/cluster-defaults.schema.js';
import {
  ClusterNetwork,
  ClusterNode,
  ClusterOptions,
  clusterName,
  nodeRole,
  provisionerNames,
} from '../provisioner/cluster-shape.schema.js';

export const RegistryState = z
  .object({
    requested: z.enum(registryModes).describe("What the cluster was asked for; without a wish the DU's mode of now"),
    effective: z
      .enum(registryModes)
      .describe('What it runs with. One from before the registry joins by an upgrade, and no other way'),
  })
  .meta({ id: 'RegistryState' });
export type RegistryState = z.infer<typeof RegistryState>;

export const clusterStates = ['creating', 'ready', 'failed', 'upgrading', 'paused', 'upgradeStopped'] as const;

export const Cluster = z
  .object({
    id: z.uuid(),
    name: z.string(),
    kubernetesVersion: z.string(),
    nodes: z.array(ClusterNode),
    network: ClusterNetwork,
    options: ClusterOptions,
    imageSetId: z
      .uuid()
      .nullable()
      .describe('The images of its version; null where the cluster needs none from the registry'),
    targetImageSetId: z.uuid().nullable().describe('Of the version that it is being upgraded to'),
    registryMode: RegistryState,
    fields: RegistryFields.describe('As it was created or last upgraded; a change of the defaults does not change it'),
    packages: PackageFields,
    followsDefaults: z
      .boolean()
      .nullable()
      .describe(
        'false: `cluster-defaults` have other fields now, and the cluster keeps what it has until it is upgraded; null: not known now',
      ),
    provisioner: z
      .enum(provisionerNames)
      .describe(
        'pmk: the PMK control plane of airdock.pmk. kubeadm: Airdock, over SSH. external: Airdock brings and verifies images and hands out the configuration; ' +
          'someone else runs the installer',
      ),
    provisionerId: z.string().nullable().describe('What the provisioner calls it: the uuid of PMK'),
    state: z
      .enum(clusterStates)
      .describe(
        'paused: between two nodes of an upgrade; upgradeStopped: an upgrade has failed or was cancelled, nodes may have different versions',
      ),
    jobId: z.uuid().describe('Of its creation'),
    upgradeId: z.uuid().nullable().describe('The upgrade that has not been ended with success'),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Cluster' });
export type Cluster = z.infer<typeof Cluster>;
export const ClusterPage = pageOf(Cluster, 'ClusterPage');

export const ClusterListQuery = PageQuery.extend({
  imageSetId: z.uuid().optional().describe('Clusters that need this image set, or are being upgraded to it'),
});
export type ClusterListQuery = z.infer<typeof ClusterListQuery>;

export const CreateCluster = z
  .strictObject({
    name: clusterName,
    kubernetesVersion: z.string().max(60).describe('1.20.11 or 1.20.11-pmk.2038'),
    nodes: z
      .array(z.strictObject({ hostId: z.uuid(), role: nodeRole }))
      .min(1)
      .max(1000),
    network: ClusterNetwork.prefault({}),
    options: ClusterOptions.prefault({}),
    registryMode: z
      .enum(registryModes)
      .optional()
      .describe("Without it the DU's, also when that changes before the next upgrade"),
    imageSetId: z.uuid().optional().describe('Without it the newest set that is defined for the version'),
    provisioner: z.enum(provisionerNames).default('external'),
    existing: z
      .boolean()
      .default(false)
      .describe(
        'The cluster runs already, from public registries or from warmed caches: it is only registered, and joins the registry by its next upgrade',
      ),
  })
  .refine(({ nodes }) => new Set(nodes.map(({ hostId }) => hostId)).size === nodes.length, {
    path: ['nodes'],
    message: 'names a host twice',
  })
  .refine(({ nodes }) => nodes.filter((node) => node.role === 'controlPlane').length % 2 === 1, {
    path: ['nodes'],
    message: 'must have an odd number of control planes',
  })
  .meta({ id: 'CreateCluster' });
export type CreateCluster = z.infer<typeof CreateCluster>;

export const RuntimeFile = z
  .object({
    runtime: z.enum(['docker', 'containerd', 'k3s', 'rke2', 'cri-o']),
    path: z.string().describe('On the node'),
    text: z.string(),
    note: z.string().nullable().describe('What else it needs'),
  })
  .meta({ id: 'RuntimeFile' });
export type RuntimeFile = z.infer<typeof RuntimeFile>;

export const ClusterConfiguration = z
  .object({
    pmk: z.record(z.string(), z.unknown()).describe('For the create call of PMK'),
    files: z
      .array(RuntimeFile)
      .describe(
        'What points a runtime at the local registry; none for a registry of others. configure-hosts writes those of Docker and containerd',
      ),
    images: z
      .array(z.object({ upstream: z.string(), reference: z.string() }))
      .describe('Every image of the set, and what it is called here'),
  })
  .meta({ id: 'ClusterConfiguration' });
export type ClusterConfiguration = z.infer<typeof ClusterConfiguration>;
