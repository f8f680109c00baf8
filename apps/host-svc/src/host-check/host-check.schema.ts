import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';

export const Check = z
  .object({
    name: z.string(),
    status: z.enum(['pass', 'warning', 'failure']),
    seen: z.string().describe('What was found'),
    nextStep: z.string().nullable(),
  })
  .meta({ id: 'Check' });
export type Check = z.infer<typeof Check>;

export const Pull = z
  .object({
    reference: z.string(),
    digest: z.string().nullable().describe('What the host got'),
    error: ProblemDocument.nullable(),
  })
  .meta({ id: 'Pull' });
export type Pull = z.infer<typeof Pull>;

export const HostCheckResult = z
  .object({
    hostId: z.uuid(),
    hostName: z.string(),
    ok: z.boolean(),
    checks: z.array(Check),
    pulls: z.array(Pull),
    error: ProblemDocument.nullable().describe('Why the host could not be checked to the end'),
  })
  .meta({ id: 'HostCheckResult' });
export type HostCheckResult = z.infer<typeof HostCheckResult>;

export const HostCheck = z
  .object({
    id: z.uuid(),
    hostIds: z.array(z.uuid()),
    pull: z.array(z.string()),
    state: z.enum(jobStates),
    results: z.array(HostCheckResult).nullable(),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'HostCheck' });
export type HostCheck = z.infer<typeof HostCheck>;
export const HostCheckPage = pageOf(HostCheck, 'HostCheckPage');

export const CreateHostCheck = z
  .strictObject({
    hostIds: z.array(z.uuid()).min(1).max(1000),
    pull: z
      .array(z.string().max(512))
      .max(1000)
      .default([])
      .describe('Local references that each host pulls with its own runtime, comparing digests'),
  })
  .meta({ id: 'CreateHostCheck' });
export type CreateHostCheck = z.infer<typeof CreateHostCheck>;
