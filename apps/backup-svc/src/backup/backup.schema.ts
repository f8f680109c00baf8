import { isRepository } from '@airdock/core/oci/reference';
import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';
import { targetName } from '../backup-target/backup-target.schema.js';

export const repositoryPatterns = z
  .array(
    z
      .string()
      .max(300)
      .refine(
        (text) => isRepository(text.replaceAll(/[*?]+/g, 'x')),
        'must be a repository, in which * and ? may stand for others',
      ),
  )
  .min(1)
  .max(1_000)
  .describe('Repositories of the local registry, e.g. pause or k8s.gcr.io/*');

export const SkippedName = z.object({ name: z.string(), reason: z.string() }).meta({ id: 'SkippedName' });

export const Backup = z
  .object({
    id: z.uuid(),
    target: targetName,
    description: z.string().nullable(),
    repositories: z.array(z.string()).nullable().describe('null: all'),
    imageSetId: z.uuid().nullable(),
    scheduleId: z.uuid().nullable(),
    state: z
      .enum(['running', 'complete', 'damaged', 'missing', 'failed'])
      .describe(
        'damaged: the last verification found bytes that are wrong; missing: its record is not in the store any more',
      ),
    images: z.number().int().nullable().describe('References that it holds'),
    sizeBytes: z.number().int().nullable().describe('Of all blobs that it needs; blobs are shared between backups'),
    addedBytes: z.number().int().nullable().describe('That the store did not have, before they were compressed'),
    skipped: z.array(SkippedName).nullable().describe('Names whose images were not complete in the registry'),
    signature: z
      .object({
        state: z
          .enum(['own', 'trusted', 'unknown', 'unsigned'])
          .describe(
            'own: of this DU; trusted: of a site whose key was added; the others are used only with allowUnsigned',
          ),
        keyId: z.string().nullable(),
      })
      .nullable()
      .describe('Who vouches for it; null while there is no record'),
    hasSettings: z.boolean().describe("Whether it holds Airdock's own state: catalogue, hosts, clusters, credentials"),
    jobId: z.uuid().nullable(),
    createdAt: z.iso.datetime(),
    completedAt: z.iso.datetime().nullable(),
    verifiedAt: z.iso.datetime().nullable(),
    damaged: z.array(z.string()).nullable().describe('Digests, by the last verification'),
  })
  .meta({ id: 'Backup' });
export type Backup = z.infer<typeof Backup>;
export const BackupPage = pageOf(Backup, 'BackupPage');

export const CreateBackup = z
  .strictObject({
    description: z.string().max(500).optional(),
    target: targetName.default('default'),
    repositories: repositoryPatterns.optional(),
    imageSetId: z.uuid().optional().describe('Only the images of this set'),
  })
  .refine((body) => !body.repositories || !body.imageSetId, { message: 'give repositories or imageSetId, not both' })
  .meta({ id: 'CreateBackup' });
export type CreateBackup = z.infer<typeof CreateBackup>;

export const BackupListQuery = PageQuery.extend({ target: targetName.optional(), scheduleId: z.uuid().optional() });
export type BackupListQuery = z.infer<typeof BackupListQuery>;
