import { z } from 'zod';

export const PackageRepository = z
  .object({
    name: z.string(),
    format: z.enum(['apt', 'yum']),
    folder: z.string().describe('On the DU'),
    distributions: z
      .array(z.string())
      .describe('apt: codenames; yum: major releases. Empty: one flat folder for every host'),
    url: z.string().describe('Where hosts find it, through the tunnel'),
    state: z.enum(['ready', 'folder_unreadable', 'metadata_missing', 'not_served']),
    detail: z.string(),
    nextStep: z.string().nullable(),
  })
  .meta({ id: 'PackageRepository' });
export type PackageRepository = z.infer<typeof PackageRepository>;

export const PackageRepositoryList = z
  .object({ items: z.array(PackageRepository) })
  .meta({ id: 'PackageRepositoryList' });
export type PackageRepositoryList = z.infer<typeof PackageRepositoryList>;
