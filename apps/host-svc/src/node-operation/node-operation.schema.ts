import { nodeStepNames } from '@airdock/host/kubeadm/node-work';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';
import { Change } from '../host/host.schema.js';

const version = z.string().max(60).describe('1.20.11 or 1.20.11-pmk.2038');
const subnet = z
  .string()
  .regex(/^[0-9A-Fa-f.:]+\/[0-9]{1,3}(?:,[0-9A-Fa-f.:]+\/[0-9]{1,3})?$/, 'must be a subnet like 10.20.0.0/16')
  .max(100);
const role = z.enum(['controlPlane', 'worker']);
const controlPlaneHostId = z
  .uuid()
  .describe('The host of a control plane that is a node already: tokens are made, and kubectl runs, there');

export const NodeCluster = z
  .strictObject({
    kubernetesVersion: version,
    imageRepository: z
      .string()
      .regex(
        /^[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?(?:\/[a-z0-9._-]+)*$/,
        'must be a registry, perhaps with a path',
      )
      .max(200)
      .describe('What nodes pull the images of Kubernetes from, e.g. localhost:5100'),
    podSubnet: subnet,
    serviceSubnet: subnet,
    pauseImage: z.string().min(1).max(300).describe('Full reference, e.g. localhost:5100/pause:3.2'),
    controlPlaneEndpoint: z
      .string()
      .regex(/^(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$/, 'must be address:port')
      .optional()
      .describe(
        'Where all nodes reach the API, e.g. a balancer before several control planes. Default: port 6443 of the first control plane',
      ),
  })
  .meta({ id: 'NodeCluster' });
export type NodeCluster = z.infer<typeof NodeCluster>;

export const NodeAction = z
  .discriminatedUnion('action', [
    z.strictObject({
      action: z.literal('init').describe('The host becomes the first control plane'),
      cluster: NodeCluster,
    }),
    z.strictObject({
      action: z.literal('join').describe('The host joins a cluster'),
      role,
      controlPlaneHostId,
      cluster: NodeCluster,
    }),
    z.strictObject({
      action: z.literal('upgrade').describe('The node is upgraded, drained for its new kubelet, and takes pods again'),
      kubernetesVersion: version.describe('The new one'),
      role,
      controlPlaneHostId,
      isFirst: z.boolean().describe('The first control plane: it upgrades the cluster, and all other nodes follow it'),
      cluster: NodeCluster.describe('As it is to be; its kubernetesVersion is not looked at'),
    }),
    z.strictObject({
      action: z.literal('inspect').describe('What the cluster says of its nodes'),
      controlPlaneHostId: controlPlaneHostId.describe('The host itself'),
    }),
    z.strictObject({
      action: z.literal('reset').describe('The host is no node any more'),
      controlPlaneHostId: controlPlaneHostId
        .optional()
        .describe('Of a cluster that goes on: the node is taken out of it'),
    }),
  ])
  .meta({ id: 'NodeAction' });
export type NodeAction = z.infer<typeof NodeAction>;

export const NodeStep = z
  .object({
    name: z.enum(nodeStepNames),
    status: z.enum(['done', 'unchanged', 'planned']),
    detail: z.string(),
    changes: z.array(Change).describe('What was changed, or would be with `dryRun`; never with secrets'),
    durationMs: z.number().int(),
  })
  .meta({ id: 'NodeStep' });
export type NodeStep = z.infer<typeof NodeStep>;

export const SeenNode = z
  .object({
    name: z.string(),
    ready: z.boolean(),
    version: z.string().describe('Of its kubelet, e.g. 1.20.11'),
    schedulable: z.boolean(),
  })
  .meta({ id: 'SeenNode' });

export const NodeOperationResult = z
  .object({
    steps: z.array(NodeStep).describe('Those that ended, also when a later one failed'),
    nodes: z.array(SeenNode).describe('All nodes of the cluster, as it tells of them afterwards'),
    warnings: z.array(z.string()),
    error: ProblemDocument.nullable(),
  })
  .meta({ id: 'NodeOperationResult' });
export type NodeOperationResult = z.infer<typeof NodeOperationResult>;

export const NodeOperation = NodeOperationResult.extend({
  id: z.uuid(),
  hostId: z.uuid(),
  operation: NodeAction,
  dryRun: z.boolean(),
  state: z.enum(jobStates),
  jobId: z.uuid(),
  createdAt: z.iso.datetime(),
}).meta({ id: 'NodeOperation' });
export type NodeOperation = z.infer<typeof NodeOperation>;
export const NodeOperationPage = pageOf(NodeOperation, 'NodeOperationPage');

export const CreateNodeOperation = z
  .strictObject({
    hostId: z.uuid(),
    operation: NodeAction,
    dryRun: z.boolean().default(false).describe('Say what would be done, and change nothing'),
  })
  .refine(({ hostId, operation }) => operation.action !== 'join' || operation.controlPlaneHostId !== hostId, {
    path: ['operation', 'controlPlaneHostId'],
    message: 'a host cannot join itself',
  })
  .refine(({ hostId, operation }) => operation.action !== 'inspect' || operation.controlPlaneHostId === hostId, {
    path: ['operation', 'controlPlaneHostId'],
    message: 'must be hostId',
  })
  .refine(
    ({ operation }) => operation.action !== 'upgrade' || !operation.isFirst || operation.role === 'controlPlane',
    {
      path: ['operation', 'isFirst'],
      message: 'only a control plane is the first',
    },
  )
  .meta({ id: 'CreateNodeOperation' });
export type CreateNodeOperation = z.infer<typeof CreateNodeOperation>;
