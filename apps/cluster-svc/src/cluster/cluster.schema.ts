import { registryModes } from '@airdock/platform/config';
import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';
import { RegistryFields } from '../cluster-defaults/cluster-defaults.schema.js';

export const ClusterNode = z.strictObject({ hostId: z.uuid(), role: z.enum(['controlPlane', 'worker']) }).meta({ id: 'ClusterNode' });
export type ClusterNode = z.infer<typeof ClusterNode>;

export const Cluster = z
  .object({
    id: z.uuid(),
    name: z.string(),
    kubernetesVersion: z.string(),
    nodes: z.array(ClusterNode),
    imageSetId: z.uuid().nullable(),
    registryMode: z.enum(registryModes),
    fields: RegistryFields,
    provisioner: z.enum(['external']).describe('external: Airdock verifies hosts and images and hands out the fields; someone else runs the installer'),
    state: z.enum(['creating', 'ready', 'failed']),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Cluster' });
export type Cluster = z.infer<typeof Cluster>;
export const ClusterPage = pageOf(Cluster, 'ClusterPage');

export const CreateCluster = z
  .strictObject({
    name: z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/),
    kubernetesVersion: z.string().max(60).describe('1.20.11 or 1.20.11-pmk.2038'),
    nodes: z.array(ClusterNode).min(1).max(1000),
    provisioner: z.enum(['external']).default('external'),
  })
  .refine(({ nodes }) => new Set(nodes.map(({ hostId }) => hostId)).size === nodes.length, { path: ['nodes'], message: 'names a host twice' })
  .refine(({ nodes }) => nodes.filter(({ role }) => role === 'controlPlane').length % 2 === 1, {
    path: ['nodes'],
    message: 'must have an odd number of control planes',
  })
  .meta({ id: 'CreateCluster' });
export type CreateCluster = z.infer<typeof CreateCluster>;

export const Readiness = z
  .object({
    ready: z.boolean(),
    missingImages: z.array(z.string()),
    hosts: z.array(z.object({ hostId: z.uuid(), name: z.string(), configured: z.boolean(), tunnelUp: z.boolean() })),
  })
  .meta({ id: 'Readiness' });
export type Readiness = z.infer<typeof Readiness>;
