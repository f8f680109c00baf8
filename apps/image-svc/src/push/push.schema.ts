import { nameKinds } from '@airdock/core/oci/reference';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';
import { UnusableImage } from '../bundle/unusable-image.schema.js';

export const PushedImage = z
  .object({
    names: z.array(z.string()).describe('Upstream references'),
    digest: z.string().nullable(),
    localReferences: z.array(z.string()),
    error: ProblemDocument.nullable(),
  })
  .meta({ id: 'PushedImage' });
export type PushedImage = z.infer<typeof PushedImage>;

export const PlannedImage = z
  .object({
    names: z.array(z.string()).describe('Upstream references'),
    digest: z.string().nullable().describe('null until the layers of a docker-archive are compressed'),
    platforms: z.array(z.string()),
    sizeBytes: z.number().int(),
    localReferences: z.array(z.string()),
    state: z.enum(['present', 'changed', 'missing']).describe('changed: one of its names leads to something else now'),
    missingBytes: z.number().int().describe('What an earlier image of the list brings is counted there'),
  })
  .meta({ id: 'PlannedImage' });

export const PushPlan = z
  .object({
    images: z.array(PlannedImage),
    collisions: z
      .array(z.object({ name: z.string(), sources: z.array(z.string()) }))
      .describe('Names in the local registry that different images want; a push needs `winners` for them'),
    missingBytes: z.number().int().describe('What the push would write; of layers that have to be compressed first their size before that'),
    freeBytes: z.number().int().nullable().describe("Of the registry's disk, less airdock.registry.minFreeBytes; null for a registry of others"),
    fits: z.boolean().nullable(),
    comparedAt: z.iso.datetime(),
  })
  .meta({ id: 'PushPlan' });
export type PushPlan = z.infer<typeof PushPlan>;

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
    leftOut: z.array(UnusableImage).describe('What of the selection is in the bundle and stays behind, or does not travel as it was made'),
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
      .describe('Upstream references as the bundle lists them, or patterns: `*` stands for any characters, `?` for one. All without it'),
    platforms: z
      .array(z.string().regex(/^[a-z0-9]+\/[a-z0-9_]+(\/[a-z0-9]+)?$/))
      .min(1)
      .max(50)
      .optional()
      .describe('e.g. linux/amd64. An image that loses platforms gets another digest. All without it'),
    naming: z.array(z.enum(nameKinds)).min(1).max(2).optional().describe('Which names the images get; without it as airdock.naming says'),
    winners: z
      .array(z.string().min(1).max(512))
      .max(10_000)
      .optional()
      .describe('Upstream references that get a name which another image wants or has too; that one keeps its other names'),
    dryRun: z.boolean().default(false).describe('Only tells the plan'),
  })
  .meta({ id: 'CreatePush' });
export type CreatePush = z.infer<typeof CreatePush>;
