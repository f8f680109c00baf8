import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { z } from 'zod';
import { targetName } from '../backup-target/backup-target.schema.js';

const count = z.coerce.number().int().min(0).max(10_000).default(0);

export const RetentionPolicy = z
  .strictObject({
    last: count.describe('So many of the newest'),
    daily: count.describe('The newest of so many days (UTC) that have any'),
    weekly: count,
    monthly: count,
  })
  .refine((policy) => Object.values(policy).some((value) => value > 0), { message: 'would keep nothing' })
  .meta({ id: 'RetentionPolicy' });
export type RetentionPolicy = z.infer<typeof RetentionPolicy>;

const file = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.tar$/)
  .describe('A name in airdock.backup.exchangeDir, ending with .tar');

const allowUnsigned = z
  .boolean()
  .optional()
  .describe('Also what nobody known here has signed; what is signed wrongly is never taken');

const actions = {
  verify: z.strictObject({
    action: z.literal('verify'),
    backupId: z.uuid().optional().describe('Only what this backup needs; default: all of the target'),
    samplePercent: z.coerce
      .number()
      .min(0.01)
      .max(100)
      .default(100)
      .describe('So much of the bytes, chosen by chance; the rest is looked at by presence only'),
    allowUnsigned,
    heal: z
      .boolean()
      .default(true)
      .describe('Whether damaged and missing blobs are brought again from the registry, where it has them'),
  }),
  prune: z.strictObject({
    action: z.literal('prune'),
    keep: RetentionPolicy.optional().describe(
      'Backups that none of the rules keeps are removed first; without it only blobs that no backup needs go',
    ),
    scheduleId: z.uuid().optional().describe('The rules are for the backups of this schedule only'),
    dryRun: z.boolean().default(false),
    waitMinutes: z.coerce
      .number()
      .min(0)
      .max(10_080)
      .default(60)
      .describe('How long to wait for backups, restores and verifications that run'),
  }),
  export: z.strictObject({ action: z.literal('export'), backupId: z.uuid(), file }),
  import: z.strictObject({ action: z.literal('import'), file, allowUnsigned }),
};

export const BackupAction = z
  .discriminatedUnion('action', [actions.verify, actions.prune, actions.export, actions.import])
  .meta({ id: 'BackupAction' });
export type BackupAction = z.infer<typeof BackupAction>;
export type ActionOf<T extends BackupAction['action']> = Extract<BackupAction, { action: T }>;

export const CreateBackupOperation = z
  .strictObject({
    target: targetName.default('default').describe('Ignored where a backup is named: then it is that of the backup'),
    operation: BackupAction,
  })
  .meta({ id: 'CreateBackupOperation' });
export type CreateBackupOperation = z.infer<typeof CreateBackupOperation>;

const bytes = z.number().int();
export const BackupOperationResult = z
  .object({
    blobs: z.number().int().optional().describe('That were read, removed, exported or imported'),
    bytes: bytes.optional(),
    damaged: z.array(z.string()).optional().describe('Digests of blobs that were missing or had other bytes'),
    healed: z.array(z.string()).optional().describe('Of those, what the registry had and the store has again'),
    lost: z
      .array(z.object({ digest: z.string(), backups: z.array(z.string()), images: z.array(z.string()) }))
      .optional()
      .describe('Of those, what could not be healed, and what needs it'),
    unreadable: z
      .array(z.object({ backupId: z.string(), reason: z.string() }))
      .optional()
      .describe('Records that cannot be read'),
    kept: z.array(z.object({ backupId: z.string(), reasons: z.array(z.string()) })).optional(),
    removed: z.array(z.string()).optional().describe('Backups that were removed, or would be'),
    backupId: z.string().optional(),
    file: z.string().optional(),
    sha256: z.string().optional().describe('Of the file; also beside it in FILE.sha256'),
  })
  .meta({ id: 'BackupOperationResult' });
export type BackupOperationResult = z.infer<typeof BackupOperationResult>;

export const BackupOperation = z
  .object({
    id: z.uuid(),
    target: z.string(),
    operation: BackupAction,
    state: z.enum(jobStates),
    result: BackupOperationResult.nullable(),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'BackupOperation' });
export type BackupOperation = z.infer<typeof BackupOperation>;
export const BackupOperationPage = pageOf(BackupOperation, 'BackupOperationPage');
