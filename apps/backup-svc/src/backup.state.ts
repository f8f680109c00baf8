import type { StateTable } from '@airdock/platform/state/state-table';
import { z } from 'zod';
import { BackupScheduleEntity } from './backup-schedule/backup-schedule.entity.js';
import { scheduleFields } from './backup-schedule/backup-schedule.schema.js';
import { WebhookEndpointEntity } from './webhook-endpoint/webhook-endpoint.entity.js';
import { webhookEvents, webhookUrl } from './webhook-endpoint/webhook-endpoint.schema.js';

const time = z.iso.datetime();
const sealed = z.string().max(10_000);

/** Rows as this service writes them; what a restore brings must be such. */
const endpointRow = z.object({
  id: z.uuid(),
  url: webhookUrl.refine((url) => /^https?:\/\//.test(url) && URL.canParse(url), 'is no address of http or https'),
  events: webhookEvents,
  sealedSecret: sealed,
  sealedPreviousSecret: sealed.nullish(),
  previousSecretUntil: time.nullish(),
  disabledAt: time.nullish(),
  disabledReason: z.string().max(2_000).nullish(),
  createdAt: time,
});

const scheduleRow = z.object({
  id: z.uuid(),
  ...scheduleFields,
  repositories: scheduleFields.repositories.optional(),
  keep: scheduleFields.keep.optional(),
  alertAfterHours: scheduleFields.alertAfterHours.optional(),
  lastAt: time,
  lastBackupId: z.null().optional(),
  prunedBackupId: z.null().optional(),
  staleSince: z.null().optional(),
  createdAt: time,
  version: z.number().int().min(1).max(2_000_000_000).optional(),
});

/** What of backup-svc outlives its machine. Whom this site trusts is not among it: no backup may say that. */
export const backupState: readonly StateTable[] = [
  {
    entity: WebhookEndpointEntity,
    row: endpointRow,
    destination: { name: 'url', columns: ['url', 'events', 'disabledAt'], secrets: ['sealedSecret'] },
  },
  {
    entity: BackupScheduleEntity,
    row: scheduleRow,
    reset: { lastBackupId: null, prunedBackupId: null, staleSince: null },
    destination: { name: 'name', columns: ['target', 'cron', 'keep', 'repositories', 'enabled'] },
  },
];
