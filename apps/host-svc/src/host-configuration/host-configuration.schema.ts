import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';
import { ConfigurationOptions } from '../host/host.schema.js';

export const Step = z
  .object({
    name: z.enum(['check', 'repositories', 'runtime', 'tunnel', 'images', 'verify']),
    status: z.enum(['done', 'unchanged', 'skipped', 'planned', 'failed']),
    detail: z.string(),
  })
  .meta({ id: 'Step' });
export type Step = z.infer<typeof Step>;

export const HostConfigurationResult = z
  .object({ hostId: z.uuid(), hostName: z.string(), steps: z.array(Step), warnings: z.array(z.string()), error: ProblemDocument.nullable() })
  .meta({ id: 'HostConfigurationResult' });
export type HostConfigurationResult = z.infer<typeof HostConfigurationResult>;

const options = ConfigurationOptions.shape;

export const HostConfiguration = z
  .object({
    id: z.uuid(),
    hostIds: z.array(z.uuid()),
    bundleIds: z.array(z.uuid()),
    dryRun: z.boolean(),
    options: ConfigurationOptions,
    state: z.enum(jobStates),
    results: z.array(HostConfigurationResult).nullable(),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'HostConfiguration' });
export type HostConfiguration = z.infer<typeof HostConfiguration>;
export const HostConfigurationPage = pageOf(HostConfiguration, 'HostConfigurationPage');

export const CreateHostConfiguration = z
  .strictObject({
    ...options,
    hostIds: z.array(z.uuid()).min(1).max(1000),
    bundleIds: z.array(z.uuid()).max(100).default([]).describe('Whose images warm the caches of the hosts'),
    dryRun: z.boolean().default(false).describe('Say what would be done, and change nothing'),
  })
  .meta({ id: 'CreateHostConfiguration' });
export type CreateHostConfiguration = z.infer<typeof CreateHostConfiguration>;
