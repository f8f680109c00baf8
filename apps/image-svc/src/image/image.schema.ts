import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const Image = z
  .object({
    id: z.uuid(),
    upstream: z.string().describe('e.g. k8s.gcr.io/pause:3.2'),
    localReferences: z.array(z.string()).describe('The first is the one that PMK rewrites to'),
    digest: z.string(),
    mediaType: z.string(),
    imageIds: z.array(z.string()),
    platforms: z.array(z.string()),
    sizeBytes: z.number().int(),
    bundleId: z.uuid().nullable(),
    createdAt: z.iso.datetime(),
    pushedAt: z.iso.datetime(),
  })
  .meta({ id: 'Image' });
export type Image = z.infer<typeof Image>;
export const ImagePage = pageOf(Image, 'ImagePage');

export const ImageListQuery = PageQuery.extend({ search: z.string().max(200).optional().describe('Part of the upstream reference') });
export type ImageListQuery = z.infer<typeof ImageListQuery>;
