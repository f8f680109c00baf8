import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';

export const Restore = z
  .object({
    id: z.uuid(),
    backupId: z.string(),
    state: z.enum(jobStates),
    images: z.number().int().nullable().describe('References that were restored and checked in the registry'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Restore' });
export type Restore = z.infer<typeof Restore>;
export const RestorePage = pageOf(Restore, 'RestorePage');

export const CreateRestore = z.strictObject({ backupId: z.uuid() }).meta({ id: 'CreateRestore' });
export type CreateRestore = z.infer<typeof CreateRestore>;
