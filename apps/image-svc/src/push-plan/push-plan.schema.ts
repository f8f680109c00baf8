import { z } from 'zod';

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
    missingBytes: z
      .number()
      .int()
      .describe('What the push would write; of layers that have to be compressed first their size before that'),
    freeBytes: z
      .number()
      .int()
      .nullable()
      .describe("Of the registry's disk, less airdock.registry.minFreeBytes; null for a registry of others"),
    fits: z.boolean().nullable(),
    comparedAt: z.iso.datetime(),
  })
  .meta({ id: 'PushPlan' });
export type PushPlan = z.infer<typeof PushPlan>;
