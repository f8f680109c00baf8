/** What a cluster is made of, for its users and for provisioners alike. */
import { z } from 'zod';

export const nodeRole = z.enum(['controlPlane', 'worker']);
export const provisionerNames = ['external', 'kubeadm', 'pmk'] as const;
export type ProvisionerName = (typeof provisionerNames)[number];

export const clusterName = z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);

export const ClusterNode = z
  .object({
    hostId: z.uuid(),
    role: nodeRole,
    kubernetesVersion: z.string().nullable().describe('What the node runs; null until it is part of the cluster'),
  })
  .meta({ id: 'ClusterNode' });
export type ClusterNode = z.infer<typeof ClusterNode>;

export const ClusterNetwork = z
  .strictObject({
    containersCidr: z.string().max(50).default('10.20.0.0/16').describe('Of the pods'),
    servicesCidr: z.string().max(50).default('10.21.0.0/16'),
    mtuSize: z.number().int().min(576).max(9216).default(1440),
    networkPlugin: z.enum(['calico', 'flannel']).default('calico'),
  })
  .meta({ id: 'ClusterNetwork' });
export type ClusterNetwork = z.infer<typeof ClusterNetwork>;

export const ClusterOptions = z
  .strictObject({
    containerRuntime: z.enum(['docker', 'containerd']).default('docker'),
    allowWorkloadsOnMaster: z.boolean().default(false),
    privileged: z.boolean().default(true),
    masterVipIpv4: z.ipv4().optional().describe('Address of all control planes together'),
    masterVipIface: z
      .string()
      .regex(/^[A-Za-z0-9._-]{1,15}$/)
      .optional()
      .describe('The interface that has it'),
  })
  .refine(({ masterVipIpv4, masterVipIface }) => (masterVipIpv4 === undefined) === (masterVipIface === undefined), {
    message: 'give masterVipIpv4 and masterVipIface, or neither',
  })
  .meta({ id: 'ClusterOptions' });
export type ClusterOptions = z.infer<typeof ClusterOptions>;
