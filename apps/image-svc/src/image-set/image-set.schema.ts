import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';
import { ContainingBundle } from '../bundle/bundle.schema.js';
import { ImageState } from '../image/image.schema.js';

export const imageSetName = z
  .string()
  .regex(/^[a-z0-9][a-z0-9.-]{0,62}$/)
  .describe('Lower-case letters, digits, dots and dashes');

export const ImageSet = z
  .object({
    id: z.uuid(),
    name: imageSetName,
    kubernetesVersion: z.string().nullable(),
    images: z.array(z.string()),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'ImageSet' });
export type ImageSet = z.infer<typeof ImageSet>;
export const ImageSetPage = pageOf(ImageSet, 'ImageSetPage');

export const CreateImageSet = z
  .strictObject({
    name: imageSetName,
    kubernetesVersion: z.string().max(60).optional().describe('The version that needs these images, e.g. 1.20.11'),
    images: z.array(z.string().max(512)).min(1).max(5_000).optional().describe('Upstream references'),
    bundleId: z
      .uuid()
      .optional()
      .describe('Takes a list that came inside a bundle; all images of the bundle when it has none'),
    list: z.string().max(512).optional().describe("Which of the bundle's lists; needed when it has several"),
  })
  .refine((body) => (body.images === undefined) !== (body.bundleId === undefined), {
    message: 'give either images or bundleId',
  })
  .meta({ id: 'CreateImageSet' });
export type CreateImageSet = z.infer<typeof CreateImageSet>;

export const ImageSetListQuery = PageQuery.extend({
  kubernetesVersion: z.string().max(60).optional(),
  name: imageSetName.optional(),
});
export type ImageSetListQuery = z.infer<typeof ImageSetListQuery>;

export const SetImage = ImageState.extend({
  bundles: z.array(ContainingBundle).describe('Registered bundles that contain it, newest first'),
}).meta({ id: 'SetImage' });
export type SetImage = z.infer<typeof SetImage>;

export const MissingImages = z
  .object({
    missing: z.array(z.string()).describe('Upstream references that the registry cannot serve now'),
    images: z.array(SetImage).describe('All images of the set'),
  })
  .meta({ id: 'MissingImages' });
export type MissingImages = z.infer<typeof MissingImages>;

export const DeleteImageSetQuery = z.strictObject({
  force: z.stringbool().default(false).describe('Also when clusters need it'),
});
export type DeleteImageSetQuery = z.infer<typeof DeleteImageSetQuery>;
