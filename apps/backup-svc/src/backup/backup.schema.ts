import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const Backup = z
  .object({
    id: z.uuid(),
    description: z.string().nullable(),
    state: z.enum(['running', 'complete', 'failed']),
    images: z.number().int().nullable().describe('References that it holds'),
    sizeBytes: z.number().int().nullable().describe('Of all blobs that it needs; blobs are shared between backups'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
    completedAt: z.iso.datetime().nullable(),
  })
  .meta({ id: 'Backup' });
export type Backup = z.infer<typeof Backup>;
export const BackupPage = pageOf(Backup, 'BackupPage');

export const CreateBackup = z.strictObject({ description: z.string().max(500).optional() }).meta({ id: 'CreateBackup' });
export type CreateBackup = z.infer<typeof CreateBackup>;
