import { z } from 'zod';

export const UnusableImage = z
  .object({
    name: z.string().nullable().describe('The upstream reference, or the tag, that the bundle has for it'),
    digest: z.string().nullable().describe('Of its manifest or index; in a docker-archive of its configuration'),
    code: z.string().describe('As of an error'),
    detail: z.string().describe('Why, and what stays behind'),
  })
  .meta({ id: 'UnusableImage' });
export type UnusableImage = z.infer<typeof UnusableImage>;
