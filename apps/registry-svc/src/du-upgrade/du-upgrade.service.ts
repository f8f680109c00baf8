import { duCapabilities } from '@airdock/core/du-version';
import { AppError, fromProblem } from '@airdock/core/errors';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { isEnded, type Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Inject, Injectable } from '@nestjs/common';
import { RegistryRowService } from '../registry/registry-row.service.js';
import { DuUpgradeActions } from './du-upgrade.actions.js';
import { DuUpgradeEngine } from './du-upgrade.engine.js';
import type { DuUpgradeEntity } from './du-upgrade.entity.js';
import { actionsOf, type Decision, failureOf, goOn, next, outcomeOf, takeUp } from './du-upgrade.machine.js';
import { DuUpgradeRows } from './du-upgrade.rows.js';
import {
  type CreateDuUpgrade,
  type Du,
  type DuUpgrade,
  endedPhases,
  type FinishDuUpgrade,
} from './du-upgrade.schema.js';

export const upgradeJobType = 'registry.upgrade-du';

/**
 * Carries the registry over an upgrade of the DU, which keeps no image. Which phase follows on which is in
 * `du-upgrade.machine.ts`, what each does in `du-upgrade.actions.ts`; where an upgrade is stands in the row, and in a
 * file beside it.
 */
@Injectable()
export class DuUpgradeService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly upgrades: DuUpgradeRows,
    private readonly actions: DuUpgradeActions,
    private readonly engines: DuUpgradeEngine,
    private readonly rows: RegistryRowService,
    private readonly jobs: JobsService,
  ) {}

  async du(): Promise<Du> {
    const [open, version] = await Promise.all([this.upgrades.open(), this.version()]);
    return { version, ...duCapabilities(version), upgradeId: open?.id ?? null };
  }

  /** An upgrade that was finished has changed it; one that was refused, rolled back, or only tried, has not. */
  private async version(): Promise<string> {
    const { duVersion } = this.config;
    const last = await this.upgrades.lastDone();
    return last && (last.configuredVersion ?? last.fromVersion) === duVersion ? last.toVersion : duVersion;
  }

  /**
   * Throws `du_upgrade_running`, `du_upgrade_file_unreadable`, `bundle_path_forbidden`, `bundle_not_found`,
   * `du_engine_digest_missing`.
   */
  async create(request: JobRequest, wanted: CreateDuUpgrade): Promise<Job> {
    const { step, dryRun } = wanted;
    // What a file tells of and no table is an upgrade too.
    if (!dryRun) await this.recover();
    const open = await this.upgrades.open();
    if (open && !dryRun)
      throw new AppError('du_upgrade_running', {
        detail: `/v1/du/upgrades/${open.id} is at ${open.phase}`,
        upgradeId: open.id,
      });
    const row: DuUpgradeEntity = {
      id: newId(),
      fromVersion: await this.version(),
      toVersion: wanted.toVersion,
      configuredVersion: this.config.duVersion,
      target: wanted.backupTarget,
      engine: wanted.engine ? await this.engines.find(wanted.engine, { needsDigest: !dryRun }) : null,
      dryRun,
      backupId: wanted.backupId ?? null,
      allowUnsigned: wanted.allowUnsigned,
      confirm: wanted.confirm ?? null,
      phase: step === 'finish' && !dryRun ? 'prepared' : 'preflight',
      hasLostTables: step === 'finish',
      goal: step === 'prepare' ? 'prepared' : 'done',
      problems: null,
      restores: 0,
      formerBinary: (await this.rows.load()).engineBinary,
      report: null,
      error: null,
      jobId: request.id,
      createdAt: now(),
      finishedAt: null,
    };
    return this.jobs.submit({ ...request, type: upgradeJobType, resource: `/v1/du/upgrades/${row.id}` }, [
      this.upgrades.table.createQueryBuilder().insert().values(columns<DuUpgradeEntity>(row)),
    ]);
  }

  /** Throws `du_upgrade_state` unless it is prepared, or stopped on its way from there. */
  async finish(
    request: JobRequest,
    id: string,
    { engine: wanted, allowUnsigned, confirm }: FinishDuUpgrade,
  ): Promise<Job> {
    const engine = wanted && (await this.engines.find(wanted, { needsDigest: true }));
    const row = await getRow(this.upgrades.table, id);
    await this.assertIdle(row);
    return this.takeOver(request, row, {
      ...goOn(row, 'done', { hasNewEngine: engine !== undefined }),
      ...(allowUnsigned !== undefined && { allowUnsigned }),
      ...(confirm !== undefined && { confirm }),
      ...(engine && { engine }),
    });
  }

  /** Throws `du_upgrade_state` when it has ended. */
  async rollBack(request: JobRequest, id: string): Promise<Job> {
    const row = await getRow(this.upgrades.table, id);
    await this.assertIdle(row);
    return this.takeOver(request, row, goOn(row, 'rolledBack'));
  }

  private async assertIdle(row: DuUpgradeEntity): Promise<void> {
    const job = await this.jobs.find(row.jobId);
    if (job && !isEnded(job.state))
      throw new AppError('du_upgrade_state', { detail: `its job ${job.id} is ${job.state}` });
  }

  /** Another job has it from now on, unless somebody else's was first. */
  private takeOver(request: JobRequest, row: DuUpgradeEntity, change: Partial<DuUpgradeEntity>): Promise<Job> {
    const update = this.upgrades.table
      .createQueryBuilder()
      .update()
      .set(columns<DuUpgradeEntity>({ ...change, jobId: request.id }) as never)
      .where({ id: row.id, jobId: row.jobId });
    return this.jobs.submit({ ...request, type: upgradeJobType, resource: `/v1/du/upgrades/${row.id}` }, [update]);
  }

  async list(query: PageQuery): Promise<Page<DuUpgrade>> {
    return findPage(this.upgrades.table, query);
  }

  async get(id: string): Promise<DuUpgrade> {
    return getRow(this.upgrades.table, id);
  }

  /** A row for what the file tells of, after the tables were lost. Throws `du_upgrade_file_unreadable`. */
  async recover(): Promise<void> {
    await this.upgrades.recover();
  }

  /** Goes from phase to phase until the goal is reached. */
  @RunsJob(upgradeJobType, { concurrency: 1 })
  async run({ resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.upgrades.table, resourceId);
    let cause: unknown;
    let decision = takeUp(row);
    await this.apply(row, decision);
    while (decision.then === 'proceed') {
      progress({ phase: row.phase });
      try {
        for (const action of actionsOf(row)) await this.actions[action](row, signal);
        decision = next(row, { kind: 'done' });
      } catch (error) {
        signal.throwIfAborted();
        decision = next(row, outcomeOf(error));
        cause = error;
        if (decision.then === 'stop') {
          await this.apply(row, decision);
          throw error;
        }
      }
      await this.apply(row, decision);
    }
    if (row.dryRun && !row.finishedAt) await this.upgrades.save(row, { finishedAt: now() });
    await this.upgrades.forgetEnded(row);
    this.assertNoFailure(row, cause);
    return {
      phase: row.phase,
      backupId: row.backupId,
      images: row.report?.images ?? null,
      restored: row.report?.restored ?? null,
    };
  }

  private async apply(row: DuUpgradeEntity, { change }: Decision): Promise<void> {
    if (Object.keys(change).length === 0) return;
    const hasEnded = change.phase !== undefined && endedPhases.includes(change.phase);
    await this.upgrades.save(row, { ...change, ...(hasEnded && { finishedAt: now() }) });
  }

  private assertNoFailure(row: DuUpgradeEntity, cause: unknown): void {
    const problem = failureOf(row);
    if (!problem) return;
    if (row.phase !== 'rolledBack') throw cause ?? fromProblem(problem);
    // As it is it might be tried again, which is up to somebody who knows why it failed.
    const detail = `${problem.code}: ${problem.detail ?? problem.title}`;
    throw new AppError('du_upgrade_rolled_back', { detail }, { cause: cause ?? fromProblem(problem) });
  }
}
