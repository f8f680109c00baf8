import { ProblemDocument } from '@airdock/platform/http/operation';
import { z } from 'zod';

export const targetName = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,40}$/)
  .describe('A name of airdock.backup.targets, or default');

/** Something in a store that cannot be used, and why. */
export interface TargetProblem {
  /** Null for the store itself. */
  backupId: string | null;
  code: string;
  detail: string;
  /** Of the file: while it has this it is not read again. */
  fingerprint: string;
}

/** A record that somebody reads. */
export interface ReadingRecord {
  backupId: string;
  fingerprint: string;
  /** Of the process. */
  reader: string;
  since: string;
}

export const AdoptBackupTarget = z
  .strictObject({
    allowUnsigned: z.boolean().default(false).describe('Also when there are backups that nobody known here has signed'),
  })
  .prefault({})
  .meta({ id: 'AdoptBackupTarget' });
export type AdoptBackupTarget = z.infer<typeof AdoptBackupTarget>;

export const BackupTarget = z
  .object({
    name: targetName,
    location: z.string().describe('A path, or an s3:// address'),
    storeId: z.string().nullable().describe('Of the store that belongs there; null before the first backup'),
    freeBytes: z.number().int().nullable().describe('null where nobody can tell'),
    encrypted: z.boolean().describe('Whether new blobs are encrypted'),
    error: ProblemDocument.nullable().describe('Why it cannot be used now'),
    problems: z
      .array(z.object({ backupId: z.string().nullable(), code: z.string(), detail: z.string() }))
      .describe(
        'What lies there and cannot be used: damaged or hostile records. They are left alone until they change',
      ),
  })
  .meta({ id: 'BackupTarget' });
export type BackupTarget = z.infer<typeof BackupTarget>;
export const BackupTargetList = z.object({ items: z.array(BackupTarget) }).meta({ id: 'BackupTargetList' });
