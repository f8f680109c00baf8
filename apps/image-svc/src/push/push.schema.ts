import { nameKinds } from '@airdock/core/oci/reference';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';
import { UnusableImage } from '../bundle/unusable-image.schema.js';
import { PushPlan } from '../push-plan/push-plan.schema.js';

export const PushedImage = z
  .object({
    names: z.array(z.string()).describe('Upstream references'),
    digest: z.string().nullable(),
    localReferences: z.array(z.string()),
    error: ProblemDocument.nullable(),
  })
  .meta({ id: 'PushedImage' });
export type PushedImage = z.infer<typeof PushedImage>;

const selection = {
  images: z.array(z.string()).nullable().describe('The selection; null for all'),
  platforms: z.array(z.string()).nullable().describe('null for all'),
  naming: z.array(z.enum(nameKinds)).nullable().describe('null for what is configured'),
  winners: z.array(z.string()).nullable(),
  dryRun: z.boolean(),
};

export const Push = z
  .object({
    id: z.uuid(),
    bundleId: z.uuid(),
    ...selection,
    state: z.enum(jobStates),
    plan: PushPlan.nullable().describe('What was to do when it began'),
    results: z.array(PushedImage).nullable(),
    leftOut: z
      .array(UnusableImage)
      .describe('What of the selection is in the bundle and stays behind, or does not travel as it was made'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Push' });
export type Push = z.infer<typeof Push>;
export const PushPage = pageOf(Push, 'PushPage');

export const CreatePush = z
  .strictObject({
    bundleId: z.uuid(),
    images: z
      .array(z.string().min(1).max(512))
      .min(1)
      .max(10_000)
      .optional()
      .describe(
        'Upstream references as the bundle lists them, or patterns: `*` stands for any characters, `?` for one. All without it',
      ),
    platforms: z
      .array(z.string().regex(/^[a-z0-9]+\/[a-z0-9_]+(\/[a-z0-9]+)?$/))
      .min(1)
      .max(50)
      .optional()
      .describe('e.g. linux/amd64. An image that loses platforms gets another digest. All without it'),
    naming: z
      .array(z.enum(nameKinds))
      .min(1)
      .max(2)
      .optional()
      .describe('Which names the images get; without it as airdock.naming says'),
    winners: z
      .array(z.string().min(1).max(512))
      .max(10_000)
      .optional()
      .describe(
        'Upstream references that get a name which another image wants or has too; that one keeps its other names',
      ),
    dryRun: z.boolean().default(false).describe('Only tells the plan'),
  })
  .meta({ id: 'CreatePush' });
export type CreatePush = z.infer<typeof CreatePush>;
