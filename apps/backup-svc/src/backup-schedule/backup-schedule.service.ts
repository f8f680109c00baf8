import { AppError } from '@airdock/core/errors';
import { columns, isUniqueViolation, now } from '@airdock/platform/database';
import { Outbox } from '@airdock/platform/events/outbox';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { idOfResource } from '@airdock/platform/jobs/job-resource';
import { Injectable, Logger } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BackupService } from '../backup/backup.service.js';
import { BackupOperationService } from '../backup-operation/backup-operation.service.js';
import { BackupTargetService } from '../backup-target/backup-target.service.js';
import { BackupScheduleEntity } from './backup-schedule.entity.js';
import {
  type BackupSchedule,
  type CreateBackupSchedule,
  nextTime,
  type UpdateBackupSchedule,
} from './backup-schedule.schema.js';

const hourMs = 60 * 60 * 1000;

/** Backups that are begun by themselves. */
@Injectable()
export class BackupScheduleService {
  private readonly logger = new Logger(BackupScheduleService.name);
  /** Ids of schedules whose failure was logged. */
  private readonly failing = new Set<string>();

  constructor(
    @InjectRepository(BackupScheduleEntity, 'backup') private readonly schedules: Repository<BackupScheduleEntity>,
    private readonly backups: BackupService,
    private readonly operations: BackupOperationService,
    private readonly targets: BackupTargetService,
    private readonly outbox: Outbox,
  ) {}

  /** Throws `resource_exists`, `resource_not_found` for the target. */
  async create(wanted: CreateBackupSchedule): Promise<BackupSchedule> {
    this.targets.assertKnown(wanted.target);
    const id = newId();
    const times = { lastAt: now(), lastBackupId: null, prunedBackupId: null, staleSince: null, createdAt: now() };
    try {
      await this.schedules.insert(columns<BackupScheduleEntity>({ id, ...wanted, ...times }));
    } catch (error) {
      throw isUniqueViolation(error)
        ? new AppError('resource_exists', { detail: `there is a schedule ${wanted.name}` })
        : error;
    }
    return this.get(id);
  }

  async list(query: PageQuery): Promise<Page<BackupSchedule>> {
    const { items, nextCursor } = await findPage(this.schedules, query);
    return { items: items.map(toResource), nextCursor };
  }

  async get(id: string): Promise<BackupSchedule> {
    return toResource(await getRow(this.schedules, id));
  }

  /** What was missed while it was not enabled is not made up for. Throws `resource_not_found`, `resource_exists`. */
  async update(id: string, change: UpdateBackupSchedule): Promise<BackupSchedule> {
    if (change.target) this.targets.assertKnown(change.target);
    const { version } = await getRow(this.schedules, id);
    try {
      await this.schedules.update(
        { id },
        columns<BackupScheduleEntity>({ ...change, lastAt: now(), version: version + 1 }),
      );
    } catch (error) {
      throw isUniqueViolation(error)
        ? new AppError('resource_exists', { detail: `there is a schedule ${change.name}` })
        : error;
    }
    return this.get(id);
  }

  /** Its backups stay. */
  async remove(id: string): Promise<void> {
    await getRow(this.schedules, id);
    await this.schedules.delete({ id });
  }

  /**
   * Begins what is due, prunes after what has ended, and tells of what is too old. One failing schedule keeps no other
   * waiting. Returns how many there are.
   */
  async round(): Promise<number> {
    const enabled = await this.schedules.findBy({ enabled: true });
    for (const row of enabled) {
      try {
        // First, since a backup that cannot even be begun will be too old one day. What was changed is read again in
        // the next round.
        if ((await this.tellOfStale(row)) || (await this.begin(row)) || (await this.pruneAfter(row)))
          this.failing.delete(row.id);
      } catch (error) {
        // Another worker was faster.
        if (error instanceof AppError && error.code === 'resource_changed') continue;
        if (!this.failing.has(row.id))
          this.logger.error(
            { err: error, schedule: row.name },
            'a scheduled backup could not be begun; it is tried again',
          );
        this.failing.add(row.id);
      }
    }
    return enabled.length;
  }

  /** However many times were missed, one backup makes up for them. Of several workers one begins it. */
  private async begin(row: BackupScheduleEntity): Promise<boolean> {
    const at = new Date();
    // A clock that was set back must not keep the next backup away.
    if (Date.parse(row.lastAt) > at.getTime() + 60_000) return this.change(row, { lastAt: at.toISOString() });
    const due = nextTime(row.cron, row.timeZone, new Date(row.lastAt));
    if (!due || due > at) return false;
    const [newest] = await this.backups.ofSchedule(row.id, 1);
    if (newest?.state === 'running') return false;
    const taken = this.guarded(row, { lastAt: at.toISOString() });
    const wanted = {
      target: row.target,
      description: `schedule ${row.name}`,
      ...(row.repositories && { repositories: row.repositories }),
    };
    const job = await this.backups.create({ id: newId(), requestKey: null }, wanted, row.id, [taken]);
    await this.schedules.update({ id: row.id }, { lastBackupId: idOfResource(job) });
    return true;
  }

  private async pruneAfter(row: BackupScheduleEntity): Promise<boolean> {
    if (!row.keep) return false;
    const [newest] = await this.backups.ofSchedule(row.id, 1);
    // One that lacks images must not push a whole one out.
    if (newest?.state !== 'complete' || newest.skipped?.length || newest.id === row.prunedBackupId) return false;
    const operation = {
      action: 'prune' as const,
      keep: row.keep,
      scheduleId: row.id,
      dryRun: false,
      waitMinutes: 24 * 60,
    };
    await this.operations.create({ id: newId(), requestKey: null }, { target: row.target, operation }, [
      this.guarded(row, { prunedBackupId: newest.id }),
    ]);
    return true;
  }

  private async tellOfStale(row: BackupScheduleEntity): Promise<boolean> {
    if (row.alertAfterHours === null) return false;
    const newest = await this.backups.newestGood(row.target, row.id);
    const since = newest?.completedAt ?? row.createdAt;
    const isStale = Date.now() - Date.parse(since) > row.alertAfterHours * hourMs;
    if (isStale === (row.staleSince !== null)) return false;
    if (!isStale) return this.change(row, { staleSince: null });
    const data = {
      schedule: row.name,
      scheduleId: row.id,
      target: row.target,
      newestBackupId: newest?.id ?? null,
      newestAt: newest?.completedAt ?? null,
    };
    return this.outbox.emitWith(this.guarded(row, { staleSince: now() }), 'backup.stale', {
      ...data,
      alertAfterHours: row.alertAfterHours,
    });
  }

  /** Changes nothing where another worker was faster. */
  private guarded(row: BackupScheduleEntity, change: Partial<BackupScheduleEntity>) {
    const set = { ...change, version: row.version + 1 };
    return this.schedules.createQueryBuilder().update().set(set).where({ id: row.id, version: row.version });
  }

  private async change(row: BackupScheduleEntity, change: Partial<BackupScheduleEntity>): Promise<true> {
    await this.guarded(row, change).execute();
    return true;
  }
}

function toResource(row: BackupScheduleEntity): BackupSchedule {
  const due = row.enabled ? nextTime(row.cron, row.timeZone, new Date(row.lastAt)) : null;
  return { ...row, nextAt: due?.toISOString() ?? null };
}
