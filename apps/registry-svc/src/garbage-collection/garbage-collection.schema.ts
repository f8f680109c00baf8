import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';

const count = z.number().int().nonnegative();
const repository = z
  .string()
  .nullable()
  .describe('A blob counts where it was linked first; null: it is linked nowhere');

export const Garbage = z
  .object({
    blobs: count.describe('Manifests, configurations and layers that nothing needs'),
    bytes: count.describe('Of blobs and uploads'),
    revisions: count.describe('Manifests that neither a tag nor an index leads to, in each repository'),
    links: count.describe('Other links of repositories'),
    uploads: count.describe('Unfinished uploads that nobody goes on with'),
    repositories: z
      .array(z.object({ repository, bytes: count, revisions: count, links: count, uploads: count }))
      .describe('The most bytes first, at most a thousand'),
    largest: z
      .array(z.object({ repository, digest: z.string().nullable().describe('null: an upload'), bytes: count }))
      .describe('The twenty largest'),
  })
  .meta({ id: 'Garbage' });
export type Garbage = z.infer<typeof Garbage>;

export const GarbageCollection = z
  .object({
    id: z.uuid(),
    dryRun: z.boolean(),
    protectHours: z.number(),
    waitMinutes: z.number(),
    state: z.enum(jobStates),
    estimate: Garbage.nullable().describe(
      'What it would free, looked up before anything else; null until that is known',
    ),
    freed: Garbage.nullable().describe('What it has freed; null when nothing was removed'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'GarbageCollection' });
export type GarbageCollection = z.infer<typeof GarbageCollection>;
export const GarbageCollectionPage = pageOf(GarbageCollection, 'GarbageCollectionPage');

export const CreateGarbageCollection = z
  .strictObject({
    dryRun: z.boolean().default(false).describe('Only the estimate: nothing is removed, and nobody has to wait'),
    protectHours: z
      .number()
      .min(0)
      .max(8760)
      .optional()
      .describe(
        'What was pushed within this time is not touched. Without it airdock.registry.garbageCollection.protectHours. With 0 a push by others that runs now is refused at its end, and has to be repeated',
      ),
    waitMinutes: z
      .number()
      .min(0)
      .max(1440)
      .default(60)
      .describe('How long to wait for pushes, verifications, backups and restores that run'),
  })
  .meta({ id: 'CreateGarbageCollection' });
export type CreateGarbageCollection = z.infer<typeof CreateGarbageCollection>;
