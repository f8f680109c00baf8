import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';

export const PushedImage = z
  .object({
    names: z.array(z.string()).describe('Upstream references'),
    digest: z.string().nullable(),
    localReferences: z.array(z.string()),
    error: ProblemDocument.nullable(),
  })
  .meta({ id: 'PushedImage' });
export type PushedImage = z.infer<typeof PushedImage>;

export const Push = z
  .object({
    id: z.uuid(),
    bundleId: z.uuid(),
    images: z.array(z.string()).nullable().describe('The selection; null for all'),
    state: z.enum(jobStates),
    results: z.array(PushedImage).nullable(),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Push' });
export type Push = z.infer<typeof Push>;
export const PushPage = pageOf(Push, 'PushPage');

export const CreatePush = z
  .strictObject({
    bundleId: z.uuid(),
    images: z.array(z.string().max(512)).min(1).max(10_000).optional().describe('Upstream references as the bundle lists them; all without it'),
  })
  .meta({ id: 'CreatePush' });
export type CreatePush = z.infer<typeof CreatePush>;
