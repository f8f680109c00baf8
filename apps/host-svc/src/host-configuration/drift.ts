import { BackgroundLoop } from '@airdock/platform/background-loop';
import { CONFIG, type Config } from '@airdock/platform/config';
import { isUniqueViolation, now } from '@airdock/platform/database';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import type { Change, Drift } from '../host/host.schema.js';
import { DriftScheduleEntity } from './host-configuration.entity.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';
import { HostConfigurationService } from './host-configuration.service.js';

const rowId = 'drift';

/**
 * Looks at all configured hosts every `airdock.hosts.drift.everyMinutes`, and puts right what has drifted where that is
 * wanted. Several workers begin it once; what was missed while none ran is made up for once; it is not begun while the
 * one before still runs.
 */
@Injectable()
export class DriftSchedule extends BackgroundLoop {
  protected readonly pauseMs = 5_000;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(DriftScheduleEntity, 'host') private readonly schedule: Repository<DriftScheduleEntity>,
    private readonly hostConfigurations: HostConfigurationService,
  ) {
    super();
  }

  protected async round(): Promise<void> {
    const { everyMinutes, repair } = this.config.hosts.drift;
    if (everyMinutes === 0) return;
    const seen = await this.schedule.findOneBy({ id: rowId });
    if (!seen) return this.begin();
    // A clock that was wrong once must not keep the next look away.
    if (Math.abs(Date.now() - Date.parse(seen.lastAt)) < everyMinutes * 60_000) return;
    if (seen.configurationId && (await this.hostConfigurations.isRunning(seen.configurationId))) return;
    const next = (configurationId: string | null) =>
      this.schedule
        .createQueryBuilder()
        .update()
        .set({ lastAt: now(), configurationId })
        .where({ id: rowId, lastAt: seen.lastAt });
    const id = await this.hostConfigurations.schedule(!repair, next);
    if (id) await this.hostConfigurations.forgetScheduled();
    // Nothing changes where another worker was faster.
    else await next(null).execute();
  }

  /** The first look is due after one interval: hosts that are configured now are as they should be. */
  private async begin(): Promise<void> {
    try {
      await this.schedule.insert({ id: rowId, lastAt: now(), configurationId: null });
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
    }
  }
}

/**
 * What is known of a host's drift after a configuration has ended on it. Where that failed, what was known before and
 * was not put right stays: a host that cannot be reached is not fine for that.
 */
export function driftAfter(
  before: Drift | null,
  { steps, error }: HostConfigurationResult,
  dryRun: boolean,
  configurationId: string,
): Drift {
  const found = steps.flatMap(({ changes }) => changes);
  const isFound = (known: Change) => found.some(({ kind, target }) => kind === known.kind && target === known.target);
  const rest = error ? (before?.changes ?? []).filter((known) => !isFound(known)) : [];
  return { checkedAt: now(), changes: dryRun ? [...found, ...rest] : rest, error, configurationId };
}

/** What people are told when it is another word than before. */
export function driftWord(drift: Drift | null): 'as configured' | 'drifted' | 'unknown' {
  if (drift?.error) return 'unknown';
  return drift && drift.changes.length > 0 ? 'drifted' : 'as configured';
}
