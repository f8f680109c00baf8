import { registryModes } from '@airdock/core/registry-mode';
import type { StateTable } from '@airdock/platform/state/state-table';
import { z } from 'zod';
import { ClusterEntity, ClusterNodeEntity } from './cluster/cluster.entity.js';
import { PackageFields, RegistryFields } from './cluster-defaults/cluster-defaults.schema.js';
import {
  ClusterNetwork,
  ClusterOptions,
  clusterName,
  nodeRole,
  provisionerNames,
} from './provisioner/cluster-shape.schema.js';

const version = z.string().min(1).max(60);

/** Rows as this service writes them; what a restore brings must be such. */
const clusterRow = z.object({
  id: z.uuid(),
  name: clusterName,
  kubernetesVersion: version,
  network: ClusterNetwork,
  options: ClusterOptions,
  imageSetId: z.uuid().nullish(),
  wantedMode: z.enum(registryModes).nullish(),
  effectiveMode: z.enum(registryModes),
  fields: RegistryFields,
  packages: PackageFields,
  provisioner: z.enum(provisionerNames),
  provisionerId: z.string().max(200).nullish(),
  existing: z.boolean(),
  jobId: z.uuid(),
  upgradeId: z.null().optional(),
  upgradeJobId: z.null().optional(),
  targetImageSetId: z.null().optional(),
  pausedAt: z.null().optional(),
  createdAt: z.iso.datetime(),
});

const nodeRow = z.object({
  hostId: z.uuid(),
  clusterId: z.uuid(),
  role: nodeRole,
  position: z.number().int().min(0).max(100_000),
  kubernetesVersion: version.nullish(),
});

/** What of cluster-svc outlives its machine. */
export const clusterState: readonly StateTable[] = [
  {
    entity: ClusterEntity,
    row: clusterRow,
    reset: { upgradeId: null, upgradeJobId: null, targetImageSetId: null, pausedAt: null },
    destination: { name: 'name', columns: ['provisioner', 'provisionerId', 'fields', 'packages'] },
  },
  { entity: ClusterNodeEntity, row: nodeRow, references: { clusterId: 'cluster' } },
];
