import { ProblemDocument } from '@airdock/platform/http/operation';
import { z } from 'zod';

export const targetName = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,40}$/)
  .describe('A name of airdock.backup.targets, or default');

export const BackupTarget = z
  .object({
    name: targetName,
    location: z.string().describe('A path, or an s3:// address'),
    storeId: z.string().nullable().describe('Of the store that belongs there; null before the first backup'),
    freeBytes: z.number().int().nullable().describe('null where nobody can tell'),
    encrypted: z.boolean().describe('Whether new blobs are encrypted'),
    error: ProblemDocument.nullable().describe('Why it cannot be used now'),
  })
  .meta({ id: 'BackupTarget' });
export type BackupTarget = z.infer<typeof BackupTarget>;
export const BackupTargetList = z.object({ items: z.array(BackupTarget) }).meta({ id: 'BackupTargetList' });
