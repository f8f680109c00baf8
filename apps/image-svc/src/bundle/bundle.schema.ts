import { maxChecksumLength } from '@airdock/core/checksum';
import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';
import { PushPlan } from '../push-plan/push-plan.schema.js';
import { UnusableImage } from './unusable-image.schema.js';

export const BundleImage = z
  .object({
    names: z.array(z.string()).describe('Upstream references'),
    digest: z
      .string()
      .nullable()
      .describe('What the registry will answer; null until the layers of a docker-archive are compressed'),
    imageIds: z
      .array(z.string())
      .describe('Digests of the configurations, one per platform: what `docker images` calls the image ID'),
    platforms: z
      .array(z.string())
      .describe('Where it runs; empty: a chart, file or other artifact, which runs nowhere'),
    zstdPlatforms: z
      .array(z.string())
      .describe(
        'Of `platforms`, those with layers compressed by zstd: Docker pulls them from version 23 on, containerd from 1.5',
      ),
    sizeBytes: z.number().int(),
    localReferences: z.array(z.string()),
  })
  .meta({ id: 'BundleImage' });
export type BundleImage = z.infer<typeof BundleImage>;

export const Bundle = z
  .object({
    id: z.uuid(),
    name: z.string(),
    path: z.string().nullable().describe('On the DU; null for an upload'),
    uploadId: z.string().nullable(),
    sizeBytes: z.number().int(),
    format: z.string().nullable(),
    state: z.enum(['reading', 'ready', 'invalid']).describe('invalid: the job tells why'),
    images: z.array(BundleImage),
    unusable: z.array(UnusableImage).describe('What else is in the bundle and cannot be pushed, or not as it was made'),
    lists: z
      .array(z.object({ name: z.string(), images: z.array(z.string()) }))
      .describe('Lists of images that came inside, e.g. images.txt'),
    plan: PushPlan.nullable().describe(
      'What a push of all would do: compared with the registry when the bundle was read; null while the registry was off',
    ),
    sha256: z.string().nullable().describe('As declared; the file was found to have it'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Bundle' });
export type Bundle = z.infer<typeof Bundle>;
export const BundlePage = pageOf(Bundle, 'BundlePage');

export const CreateBundle = z
  .strictObject({
    path: z
      .string()
      .min(1)
      .max(4096)
      .optional()
      .describe('A file, the first part of one, or a folder, inside the configured bundle folders'),
    uploadId: z
      .string()
      .regex(/^[0-9a-f]{32}$/)
      .optional()
      .describe('A finished upload'),
    sha256: z
      .string()
      .max(maxChecksumLength)
      .optional()
      .describe(
        'Of the whole file, or of its parts in their order; checked before anything else. As 64 hex digits, `sha256-` with base64, or the text of a file of checksums: sha256sum, openssl, Get-FileHash, certutil. What has the name of another algorithm is refused. An upload may declare it too',
      ),
    names: z
      .record(z.string().min(1).max(128), z.union([z.string().max(512), z.array(z.string().max(512)).min(1).max(100)]))
      .optional()
      .describe(
        'Names for images that have none in the bundle: full references by manifest digest, image ID, or the bare tag that the bundle has',
      ),
    strict: z
      .boolean()
      .default(false)
      .describe(
        'Refuses the bundle when anything in it cannot be pushed; otherwise `unusable` names it and the rest can be',
      ),
  })
  .refine((body) => (body.path === undefined) !== (body.uploadId === undefined), {
    message: 'give either path or uploadId',
  })
  .meta({ id: 'CreateBundle' });
export type CreateBundle = z.infer<typeof CreateBundle>;

export const DockerArchiveQuery = z.strictObject({
  platform: z
    .string()
    .regex(/^[a-z0-9]+\/[a-z0-9]+(\/[a-z0-9]+)?$/)
    .default('linux/amd64'),
  names: z.enum(['local', 'upstream']).default('local').describe('What the images are called in the archive'),
  image: z
    .union([z.string(), z.array(z.string())])
    .optional()
    .transform((value) => (value === undefined ? undefined : [value].flat()))
    .describe('Upstream references; all without it'),
});
export type DockerArchiveQuery = z.infer<typeof DockerArchiveQuery>;

export const ContainingBundle = z.object({
  id: z.uuid(),
  name: z.string(),
  platforms: z.array(z.string()),
  zstdPlatforms: z.array(z.string()),
});
export type ContainingBundle = z.infer<typeof ContainingBundle>;
