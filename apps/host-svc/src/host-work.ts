import { pollUntil } from '@airdock/core/poll-until';
import type { Config } from '@airdock/platform/config';
import type { ServiceDatabase } from '@airdock/platform/database';
import { OutboxEventEntity } from '@airdock/platform/events/outbox.entity';
import { JobEntity } from '@airdock/platform/jobs/job.entity';
import { QuietDatabase } from '@airdock/platform/quiet-database';
import { HostEntity } from './host/host.entity.js';

const pauseMs = 1_000;

/**
 * Whether there is anything that the host worker has to do with: packages to serve, or what host-svc's database holds,
 * also when that cannot be seen, since to wait for a database is the worker's. A DU without hosts does without the
 * process, and its memory.
 */
export async function hasHostWork(
  { dataSource }: ServiceDatabase,
  { packages }: Pick<Config, 'packages'>,
): Promise<boolean> {
  if (packages.repositories.length > 0) return true;
  try {
    for (const entity of [HostEntity, JobEntity, OutboxEventEntity])
      if (await dataSource.getRepository(entity).exists()) return true;
    return false;
  } catch {
    return true;
  }
}

/** Resolves when there is something. Rejects when it is aborted. */
export async function waitForHostWork(
  database: ServiceDatabase,
  config: Pick<Config, 'packages'>,
  signal: AbortSignal,
): Promise<void> {
  const quiet = new QuietDatabase(database);
  let isWorkThere = false;
  await pollUntil({ everyMs: pauseMs, signal }, async () => {
    await quiet.unlessQuiet(async () => {
      isWorkThere = await hasHostWork(database, config);
      return true;
    });
    return isWorkThere;
  });
}
