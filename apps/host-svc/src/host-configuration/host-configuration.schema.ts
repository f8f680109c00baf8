import { configurationStepNames } from '@airdock/host/configuration/configuration-work';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';
import { Change, ConfigurationOptions } from '../host/host.schema.js';

export const Step = z
  .object({
    name: z.enum(configurationStepNames),
    status: z.enum(['done', 'unchanged', 'skipped', 'planned', 'failed']),
    detail: z.string(),
    changes: z.array(Change).describe('What was changed, or would be with `dryRun`'),
    durationMs: z.number().int(),
  })
  .meta({ id: 'Step' });
export type Step = z.infer<typeof Step>;

export const HostConfigurationResult = z
  .object({ steps: z.array(Step), warnings: z.array(z.string()), error: ProblemDocument.nullable() })
  .meta({ id: 'HostConfigurationResult' });
export type HostConfigurationResult = z.infer<typeof HostConfigurationResult>;

export const ConfiguredHost = HostConfigurationResult.extend({
  hostId: z.uuid(),
  hostName: z.string(),
  state: z.enum([...jobStates, 'waiting']).describe('waiting: not begun; stays so when the configuration was stopped'),
  jobId: z.uuid().nullable(),
}).meta({ id: 'ConfiguredHost' });
export type ConfiguredHost = z.infer<typeof ConfiguredHost>;

export const Rollout = z
  .strictObject({
    atOnce: z.number().int().min(1).max(64).default(4).describe('Hosts that are configured at the same time'),
    canary: z
      .number()
      .int()
      .min(0)
      .max(1000)
      .default(0)
      .describe('So many hosts go first; when one of them fails, the others are not begun'),
    maxFailureShare: z
      .number()
      .min(0)
      .max(1)
      .default(1)
      .describe('No further host is begun when a larger share of all hosts has failed'),
  })
  .meta({ id: 'Rollout' });
export type Rollout = z.infer<typeof Rollout>;

const bytesPerSecond = z.number().int().min(100_000).optional();
export const Bandwidth = z
  .strictObject({
    totalBytesPerSecond: bytesPerSecond.describe(
      'Of image data to all hosts together; with several workers of host-svc, of each of them',
    ),
    perHostBytesPerSecond: bytesPerSecond.describe('Of image data to each host'),
  })
  .meta({ id: 'Bandwidth' });
export type Bandwidth = z.infer<typeof Bandwidth>;

const options = ConfigurationOptions.shape;

const actions = ['configure', 'unconfigure', 'reapply'] as const;
export type Action = (typeof actions)[number];

export const HostConfiguration = z
  .object({
    id: z.uuid(),
    action: z.enum(actions),
    bundleIds: z.array(z.uuid()),
    dryRun: z.boolean(),
    options: ConfigurationOptions.describe('Of a `configure`; a `reapply` takes those of each host'),
    rollout: Rollout,
    bandwidth: Bandwidth,
    scheduled: z.boolean().describe('Begun by airdock.hosts.drift; the newest 24 of these are kept'),
    state: z.enum(jobStates),
    hosts: z.array(ConfiguredHost).describe('In the order in which they are begun'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'HostConfiguration' });
export type HostConfiguration = z.infer<typeof HostConfiguration>;
export const HostConfigurationPage = pageOf(HostConfiguration, 'HostConfigurationPage');

export const CreateHostConfiguration = z
  .strictObject({
    ...options,
    action: z
      .enum(actions)
      .default('configure')
      .describe(
        'unconfigure takes away what configurations have put on the hosts; reapply does the last successful configuration of each host again, without images: ' +
          'with dryRun it finds drift. The options mean nothing with either',
      ),
    hostIds: z.array(z.uuid()).min(1).max(1000).optional(),
    labelSelector: z
      .string()
      .min(1)
      .max(1000)
      .optional()
      .describe('Instead of hostIds: the hosts whose labels match now, e.g. role=worker,!old'),
    bundleIds: z.array(z.uuid()).max(100).default([]).describe('Whose images warm the caches of the hosts'),
    rollout: Rollout.prefault({}),
    bandwidth: Bandwidth.default({}),
    dryRun: z.boolean().default(false).describe('Say what would be done, and change nothing'),
  })
  .refine(({ hostIds, labelSelector }) => (hostIds === undefined) !== (labelSelector === undefined), {
    message: 'give either hostIds or labelSelector',
  })
  .refine(({ action, bundleIds }) => action !== 'reapply' || bundleIds.length === 0, {
    message: 'reapply brings no images: leave bundleIds out',
  })
  .meta({ id: 'CreateHostConfiguration' });
export type CreateHostConfiguration = z.infer<typeof CreateHostConfiguration>;
