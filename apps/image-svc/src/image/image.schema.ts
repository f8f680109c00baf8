import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/);

export const ImageLayer = z
  .object({
    digest: z.string(),
    sizeBytes: z.number().int(),
    platform: z.string().nullable().describe('Of an image for several platforms'),
  })
  .meta({ id: 'ImageLayer' });

export const Image = z
  .object({
    id: z.uuid(),
    upstream: z.string().describe('e.g. k8s.gcr.io/pause:3.2'),
    localReferences: z.array(z.string()).describe('The first is the one that PMK rewrites to'),
    digest: z.string(),
    mediaType: z.string(),
    imageIds: z.array(z.string()),
    platforms: z
      .array(z.string())
      .describe('Where it runs; empty: a chart, file or other artifact, which runs nowhere'),
    zstdPlatforms: z
      .array(z.string())
      .describe(
        'Of `platforms`, those with layers compressed by zstd: Docker pulls them from version 23 on, containerd from 1.5',
      ),
    layers: z.array(ImageLayer),
    companions: z
      .array(z.string())
      .describe('Digests of signatures, attestations and SBOMs that are stored beside it, with what they consist of'),
    sizeBytes: z.number().int(),
    firstBundleId: z
      .uuid()
      .nullable()
      .describe('The bundle that it came with first; null when the catalogue was rebuilt from the registry'),
    bundleId: z.uuid().nullable().describe('The bundle that it came with last'),
    firstPushedAt: z.iso.datetime(),
    pushedAt: z.iso.datetime(),
  })
  .meta({ id: 'Image' });
export type Image = z.infer<typeof Image>;

const user = z.object({ id: z.uuid(), name: z.string() });
export const ImageUsers = z
  .object({
    imageSets: z.array(user).describe('Sets that name it'),
    clusters: z.array(user).describe('Clusters that need those sets'),
  })
  .meta({ id: 'ImageUsers' });
export type ImageUsers = z.infer<typeof ImageUsers>;

export const ImageInUse = Image.extend({
  usedBy: ImageUsers.nullable().describe('null: not known, since cluster-svc did not answer'),
}).meta({ id: 'ImageInUse' });
export type ImageInUse = z.infer<typeof ImageInUse>;

export const ImagePage = pageOf(Image, 'ImagePage');

export const ImageListQuery = PageQuery.extend({
  search: z.string().max(200).optional().describe('Part of the upstream reference or of a local one'),
  digest: digest.optional(),
  platform: z.string().max(100).optional().describe('e.g. linux/arm64'),
  bundleId: z.uuid().optional().describe('Brought by this bundle, first or last'),
  sort: z.enum(['newest', 'smallest']).default('newest'),
});
export type ImageListQuery = z.infer<typeof ImageListQuery>;

export const DeleteImageQuery = z.strictObject({
  dryRun: z.stringbool().default(false).describe('Tells what would be removed and freed, and changes nothing'),
  force: z.stringbool().default(false).describe('Also when image sets or clusters need it'),
});
export type DeleteImageQuery = z.infer<typeof DeleteImageQuery>;

export const DigestParameter = digest;

export const ImageDeletion = z
  .object({
    dryRun: z.boolean(),
    upstreams: z.array(z.string()),
    localReferences: z.array(z.string()).describe('Names that lead nowhere now'),
    freedBytes: z.number().int().describe('What no other image uses: the next garbage collection gives it back'),
    sharedBytes: z.number().int().describe('What other images use too: it stays'),
    usedBy: ImageUsers.nullable().describe(
      'Who needs it: without force nothing is removed then; null with force, which does not ask',
    ),
  })
  .meta({ id: 'ImageDeletion' });
export type ImageDeletion = z.infer<typeof ImageDeletion>;

/** What the registry serves of an upstream reference. */
export const ImageState = z.object({
  upstream: z.string(),
  state: z
    .enum(['present', 'changed', 'missing'])
    .describe(
      'As the registry answers now. changed: the name leads to something else than what was pushed, or than the digest that the set names',
    ),
  localReference: z.string().nullable().describe('The one that PMK rewrites to; null until it was pushed'),
  digest: z.string().nullable(),
  platforms: z.array(z.string()).describe('Where it runs; empty while it is missing, and of what runs nowhere'),
  zstdPlatforms: z.array(z.string()),
  sizeBytes: z.number().int().nullable(),
});
export type ImageState = z.infer<typeof ImageState>;
