import { registryModes } from '@airdock/core/registry-mode';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';
import { nodeRole } from '../provisioner/cluster-shape.schema.js';
import { MissingImage } from '../readiness/readiness.schema.js';

export const UpgradeBatchOptions = z
  .strictObject({
    nodes: z.number().int().min(1).max(100).optional().describe('Workers at the same time'),
    percent: z.number().int().min(1).max(100).optional().describe("Of the workers, as PMK's batchUpgradePercent"),
  })
  .refine(({ nodes, percent }) => nodes === undefined || percent === undefined, { message: 'give nodes or percent' })
  .describe('Default: one worker after the other. Control planes always go one by one, and first')
  .meta({ id: 'UpgradeBatchOptions' });
export type UpgradeBatchOptions = z.infer<typeof UpgradeBatchOptions>;

const plannedNode = z.object({ hostId: z.uuid(), name: z.string(), role: nodeRole });

export const UpgradePlan = z
  .object({
    from: z.string(),
    to: z.string(),
    kind: z.enum(['minor', 'patch']),
    registryMode: z
      .object({ from: z.enum(registryModes), to: z.enum(registryModes) })
      .describe('A cluster from before the registry joins it by this'),
    imagesToPush: z.array(MissingImage).describe('From registered bundles; what no bundle has is among the problems'),
    imagesToPull: z
      .array(z.string())
      .describe('References that every node pulls before the first one is drained; what it has costs nothing'),
    batches: z.array(z.array(plannedNode)).describe('In their order'),
    restarts: z.array(z.string()).describe('What restarts on each node'),
    problems: z.array(ProblemDocument).describe('What is in the way now, other than images that will be pushed'),
    plannedAt: z.iso.datetime(),
  })
  .meta({ id: 'UpgradePlan' });
export type UpgradePlan = z.infer<typeof UpgradePlan>;

export const UpgradedNode = plannedNode
  .extend({
    state: z.enum(['waiting', 'upgrading', 'done', 'failed']),
    tries: z.number().int(),
    error: ProblemDocument.nullable(),
  })
  .meta({ id: 'UpgradedNode' });
export type UpgradedNode = z.infer<typeof UpgradedNode>;

export const Upgrade = z
  .object({
    id: z.uuid(),
    clusterId: z.uuid(),
    from: z.string(),
    to: z.string(),
    dryRun: z.boolean(),
    batch: UpgradeBatchOptions,
    plan: UpgradePlan,
    nodes: z.array(UpgradedNode),
    paused: z.boolean().describe('It waits, or will wait, before the next node'),
    state: z.enum(jobStates),
    jobId: z.uuid().describe('Cancel it to stop before the next node; retry it to go on'),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Upgrade' });
export type Upgrade = z.infer<typeof Upgrade>;
export const UpgradePage = pageOf(Upgrade, 'UpgradePage');

export const CreateUpgrade = z
  .strictObject({
    kubernetesVersion: z.string().max(60).describe('1.20.11 or 1.20.11-pmk.2038'),
    imageSetId: z.uuid().optional().describe('Without it the newest set that is defined for the version'),
    batch: UpgradeBatchOptions.default({}),
    registryMode: z
      .enum(registryModes)
      .optional()
      .describe(
        'What the cluster wants from now on, e.g. local for one that was created with none. Without it what it was asked for before',
      ),
    dryRun: z.boolean().default(false).describe('Only tells the plan'),
  })
  .meta({ id: 'CreateUpgrade' });
export type CreateUpgrade = z.infer<typeof CreateUpgrade>;
