import { pageOf } from '@airdock/platform/http/page';
import { Cron } from 'croner';
import { z } from 'zod';
import { repositoryPatterns } from '../backup/backup.schema.js';
import { RetentionPolicy } from '../backup-operation/backup-operation.schema.js';
import { targetName } from '../backup-target/backup-target.schema.js';

/** The first time after `from`; null when there is none. Throws for what is no pattern or no zone. */
export const nextTime = (cron: string, timeZone: string, from: Date): Date | null =>
  new Cron(cron, { timezone: timeZone, mode: '5-part' }).nextRun(from);

export const scheduleFields = {
  name: z.string().min(1).max(100),
  cron: z
    .string()
    .max(200)
    .refine((text) => isValid(text, 'UTC'), 'must be a cron expression of five fields, e.g. 30 2 * * *')
    .describe('Minute, hour, day of month, month, day of week'),
  timeZone: z
    .string()
    .max(60)
    .refine((zone) => isValid('0 0 * * *', zone), 'must be a time zone like Europe/Berlin')
    .describe('That the fields are in'),
  target: targetName,
  repositories: repositoryPatterns.nullable().describe('null: everything, with settings'),
  keep: RetentionPolicy.nullable().describe(
    'After each backup of the schedule those that no rule keeps are removed; null: all stay',
  ),
  alertAfterHours: z
    .number()
    .positive()
    .max(8760)
    .nullable()
    .describe('backup.stale is sent when the newest good backup is older'),
  enabled: z.boolean(),
};

function isValid(cron: string, timeZone: string): boolean {
  try {
    return nextTime(cron, timeZone, new Date()) !== null;
  } catch {
    return false;
  }
}

export const CreateBackupSchedule = z
  .strictObject({
    ...scheduleFields,
    timeZone: scheduleFields.timeZone.default('UTC'),
    target: scheduleFields.target.default('default'),
    repositories: scheduleFields.repositories.default(null),
    keep: scheduleFields.keep.default(null),
    alertAfterHours: scheduleFields.alertAfterHours.default(null),
    enabled: scheduleFields.enabled.default(true),
  })
  .meta({ id: 'CreateBackupSchedule' });
export type CreateBackupSchedule = z.infer<typeof CreateBackupSchedule>;

export const UpdateBackupSchedule = z.strictObject(scheduleFields).partial().meta({ id: 'UpdateBackupSchedule' });
export type UpdateBackupSchedule = z.infer<typeof UpdateBackupSchedule>;

export const BackupSchedule = z
  .object({
    id: z.uuid(),
    ...scheduleFields,
    nextAt: z.iso.datetime().nullable().describe('null while it is not enabled'),
    lastBackupId: z.uuid().nullable(),
    staleSince: z.iso.datetime().nullable().describe('Since when the newest good backup is older than alertAfterHours'),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'BackupSchedule' });
export type BackupSchedule = z.infer<typeof BackupSchedule>;
export const BackupSchedulePage = pageOf(BackupSchedule, 'BackupSchedulePage');
