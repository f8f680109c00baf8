import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { assertSucceeded, followJob } from '@airdock/clients/follow-job';
import {
  createBackup,
  createRestore,
  getBackup,
  getRestore,
  listBackups,
  listBackupTargets,
  listJobs,
  retryJob,
} from '@airdock/clients/generated/sdk.gen';
import type { Restore } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { compareDuVersions, duCapabilities } from '@airdock/core/du-version';
import { AppError, fromProblem, toProblem } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { writeDurably } from '@airdock/disk/files/durable-file';
import { allowedPath } from '@airdock/platform/allowed-path';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { isEnded, type Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { inspectEngine, installEngine } from '@airdock/registry/engine/engine-store';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, Not, type Repository } from 'typeorm';
import { RegistryService } from '../registry/registry.service.js';
import { RegistryRowService } from '../registry/registry-row.service.js';
import { RegistryEngineService, registryEngine } from '../registry-engine/registry-engine.service.js';
import { RegistryWatchService } from '../registry-engine/registry-watch.service.js';
import { DuUpgradeEntity } from './du-upgrade.entity.js';
import {
  type CreateDuUpgrade,
  type Du,
  type DuUpgrade,
  type DuUpgradePhase,
  endedPhases,
  type FinishDuUpgrade,
  type NewEngine,
  type UpgradeProblem,
} from './du-upgrade.schema.js';

export const upgradeJobType = 'registry.upgrade-du';

/** Jobs of others that an upgrade must not meet. */
const busyTypes =
  /^(image\.(push|rebuild-catalogue)|backup\.(restore|import)|registry\.collect-garbage|cluster\.(create|upgrade)|host\.(configure|operate-node))$/;
/** The phases that change nothing that would have to be undone. */
const harmless: readonly DuUpgradePhase[] = ['preflight', 'backup'];
const rollingBack: readonly DuUpgradePhase[] = ['rollBackEngine', 'rollBackData', 'rollBackOpen'];

/**
 * Carries the registry over an upgrade of the DU, which keeps no image. A chain of phases, each of which may be begun
 * again at any time; where it is stands in the row, and in a file beside it. What fails after pushes were fenced off is
 * rolled back.
 */
@Injectable()
export class DuUpgradeService {
  private readonly stateFile: string;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(DuUpgradeEntity, 'registry') private readonly upgrades: Repository<DuUpgradeEntity>,
    private readonly registry: RegistryService,
    private readonly rows: RegistryRowService,
    private readonly engine: RegistryEngineService,
    private readonly watch: RegistryWatchService,
    private readonly jobs: JobsService,
    private readonly clients: ServiceClients,
  ) {
    this.stateFile = join(config.dataDir, 'du-upgrade.json');
  }

  async du(): Promise<Du> {
    const [[open], version] = await Promise.all([this.open(), this.version()]);
    return { version, ...duCapabilities(version), upgradeId: open?.id ?? null };
  }

  /** An upgrade that was finished has changed it; one that was refused, rolled back, or only tried, has not. */
  private async version(): Promise<string> {
    const { duVersion } = this.config;
    const [last] = await this.upgrades.find({
      where: { phase: 'done', dryRun: false },
      order: { finishedAt: 'DESC', id: 'DESC' },
      take: 1,
    });
    return last && (last.configuredVersion ?? last.fromVersion) === duVersion ? last.toVersion : duVersion;
  }

  /**
   * Throws `du_upgrade_running`, `du_upgrade_file_unreadable`, `bundle_path_forbidden`, `bundle_not_found`,
   * `du_engine_digest_missing`.
   */
  async create(
    request: JobRequest,
    { toVersion, step, engine: wanted, backupTarget, backupId, dryRun, allowUnsigned, confirm }: CreateDuUpgrade,
  ): Promise<Job> {
    // What a file tells of and no table is an upgrade too.
    if (!dryRun) await this.recover();
    const [open] = await this.open();
    if (open && !dryRun)
      throw new AppError('du_upgrade_running', {
        detail: `/v1/du/upgrades/${open.id} is at ${open.phase}`,
        upgradeId: open.id,
      });
    const engine = wanted ? await this.found(wanted, dryRun) : null;
    const id = newId();
    const row: DuUpgradeEntity = {
      ...{
        id,
        fromVersion: await this.version(),
        toVersion,
        configuredVersion: this.config.duVersion,
        target: backupTarget,
        engine,
        dryRun,
        backupId: backupId ?? null,
        allowUnsigned,
        confirm: confirm ?? null,
      },
      phase: step === 'finish' ? 'prepared' : 'preflight',
      hasLostTables: step === 'finish',
      goal: step === 'prepare' ? 'prepared' : 'done',
      ...{
        problems: null,
        restores: 0,
        formerBinary: (await this.rows.load()).engineBinary,
        report: null,
        error: null,
        jobId: request.id,
        createdAt: now(),
        finishedAt: null,
      },
    };
    return this.jobs.submit({ ...request, type: upgradeJobType, resource: `/v1/du/upgrades/${id}` }, [
      this.upgrades.createQueryBuilder().insert().values(columns<DuUpgradeEntity>(row)),
    ]);
  }

  /** Throws `du_upgrade_state` unless it is prepared, or stopped on its way from there. */
  async finish(
    request: JobRequest,
    id: string,
    { engine: wanted, allowUnsigned, confirm }: FinishDuUpgrade,
  ): Promise<Job> {
    const engine = wanted && (await this.found(wanted, false));
    const row = await getRow(this.upgrades, id);
    // Another engine has to be put in, also when one was already.
    const isPast = ['migrate', 'restore', 'compare', 'open'].includes(row.phase);
    return this.goOn(request, row, {
      goal: 'done',
      ...(allowUnsigned !== undefined && { allowUnsigned }),
      ...(confirm !== undefined && { confirm }),
      ...(engine && { engine, ...(isPast && { phase: 'engine' as const }) }),
    });
  }

  /** Throws `du_upgrade_state` when it has ended. */
  async rollBack(request: JobRequest, id: string): Promise<Job> {
    return this.goOn(request, await getRow(this.upgrades, id), { goal: 'rolledBack' });
  }

  private async goOn(request: JobRequest, row: DuUpgradeEntity, change: Partial<DuUpgradeEntity>): Promise<Job> {
    const job = await this.jobs.find(row.jobId);
    const refuse = (detail: string) => new AppError('du_upgrade_state', { detail });
    if (endedPhases.includes(row.phase) || row.dryRun) throw refuse(`it has ended: ${row.phase}`);
    if (job && !isEnded(job.state)) throw refuse(`its job ${job.id} is ${job.state}`);
    // Asked for once more, since the data could not be brought back: pushes are let in again all the same, and the
    // report says what is missing.
    const isStuck = change.goal === 'rolledBack' && row.phase === 'rollBackData' && row.error !== null;
    if (change.goal === 'done' && (rollingBack.includes(row.phase) || row.phase === 'preflight'))
      throw refuse(`it is at ${row.phase}`);
    const update = this.upgrades
      .createQueryBuilder()
      .update()
      .set(
        columns<DuUpgradeEntity>({ ...change, ...(isStuck && { phase: 'rollBackOpen' }), jobId: request.id }) as never,
      )
      .where({ id: row.id, jobId: row.jobId });
    return this.jobs.submit({ ...request, type: upgradeJobType, resource: `/v1/du/upgrades/${row.id}` }, [update]);
  }

  async list(query: PageQuery): Promise<Page<DuUpgrade>> {
    return findPage(this.upgrades, query);
  }

  async get(id: string): Promise<DuUpgrade> {
    return getRow(this.upgrades, id);
  }

  private open(): Promise<DuUpgradeEntity[]> {
    return this.upgrades.find({
      where: { phase: Not(In([...endedPhases])), dryRun: false },
      order: { id: 'DESC' },
      take: 1,
    });
  }

  /** Goes from phase to phase until the goal is reached. */
  async run({ resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.upgrades, resourceId);
    if (row.goal === 'rolledBack' && !rollingBack.includes(row.phase))
      await this.moveTo(row, harmless.includes(row.phase) ? 'rolledBack' : 'rollBackEngine');
    // A prepared upgrade that is to be finished goes on from there.
    if (row.goal === 'done' && row.phase === 'prepared') await this.moveTo(row, 'engine');
    let failure =
      row.error && [...rollingBack, 'rolledBack'].includes(row.phase) && row.goal !== 'rolledBack'
        ? fromProblem(row.error)
        : undefined;
    while (row.phase !== row.goal && !endedPhases.includes(row.phase)) {
      progress({ phase: row.phase });
      try {
        const next = await this.steps[row.phase]?.(row, signal);
        if (!next) break;
        await this.moveTo(row, next);
      } catch (error) {
        signal.throwIfAborted();
        const problem = toProblem(error);
        if (isWorthRetrying(error)) {
          if (!rollingBack.includes(row.phase)) await this.save(row, { error: problem });
          throw error;
        }
        if (
          rollingBack.includes(row.phase) ||
          row.goal === 'rolledBack' ||
          (needsSomebody(error) && !harmless.includes(row.phase))
        ) {
          // The state stays as it is; somebody has to look.
          await this.save(row, { error: problem });
          throw error;
        }
        failure = error as AppError;
        await this.save(row, { error: problem });
        await this.moveTo(row, harmless.includes(row.phase) ? 'refused' : 'rollBackEngine');
      }
      if (row.dryRun) break;
    }
    if (failure && row.phase === 'rolledBack') {
      // As it is it might be tried again, which is up to somebody who knows why it failed.
      const detail = `${failure.code}: ${failure.details.detail ?? failure.message}`;
      throw new AppError('du_upgrade_rolled_back', { detail }, { cause: failure });
    }
    if (failure) throw failure;
    if (row.dryRun) await this.save(row, { finishedAt: now() });
    return {
      phase: row.phase,
      backupId: row.backupId,
      images: row.report?.images ?? null,
      restored: row.report?.restored ?? null,
    };
  }

  /**
   * A row for what the file tells of, after the tables were lost. Throws `du_upgrade_file_unreadable`: that it cannot
   * be read says nothing of there being none.
   */
  async recover(): Promise<void> {
    let saved: DuUpgradeEntity;
    try {
      saved = { ...(JSON.parse(await readFile(this.stateFile, 'utf8')) as DuUpgradeEntity), hasLostTables: true };
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      if (code === 'ENOENT') return;
      throw new AppError(
        'du_upgrade_file_unreadable',
        { detail: `${this.stateFile}: ${code ?? 'it holds no upgrade'}` },
        { cause },
      );
    }
    await this.upgrades.createQueryBuilder().insert().values(columns<DuUpgradeEntity>(saved)).orIgnore().execute();
  }

  private readonly steps: Partial<
    Record<DuUpgradePhase, (row: DuUpgradeEntity, signal: AbortSignal) => Promise<DuUpgradePhase | undefined>>
  > = {
    preflight: async (row, signal) => {
      const problems = await this.preflight(row, signal);
      await this.save(row, { problems });
      const failures = problems.filter(({ severity }) => severity === 'failure');
      if (failures.length > 0)
        throw new AppError('du_upgrade_preflight_failed', { detail: failures.map(({ detail }) => detail).join('; ') });
      return row.dryRun ? undefined : 'backup';
    },
    // The large one, while pushes go on; the one behind the fence has little to add.
    backup: async (row, signal) => {
      if (await this.hasRegistry()) await this.backUp(row, 'backup', signal);
      return 'fence';
    },
    fence: async (row, signal) => {
      // From here on only the backup that is made behind the fence counts: names that moved before it must not be
      // turned back.
      await this.save(row, { backupId: null });
      if (await this.hasRegistry()) await this.engine.setFence(row.id, true, signal);
      return 'finalBackup';
    },
    finalBackup: async (row, signal) => {
      if (await this.hasRegistry()) {
        const skipped = await this.backUp(row, 'finalBackup', signal);
        const warning: UpgradeProblem[] = skipped.map((name) => ({
          check: 'backup',
          severity: 'warning',
          detail: `${name} was not complete in the registry`,
        }));
        await this.save(row, { problems: [...(row.problems ?? []), ...warning] });
      }
      return row.goal === 'prepared' ? 'prepared' : 'engine';
    },
    engine: async (row, signal) => {
      if (row.backupId && !(await this.hasRegistry()))
        throw new AppError('registry_off', {
          detail: 'the registry was on before the upgrade: set privateRegistryType',
        });
      // A DU that has lost its tables has lost its fence too.
      if (await this.hasRegistry()) await this.engine.setFence(row.id, true, signal);
      if (row.engine) {
        await this.engine.setEngineBinary(await this.installEngine(row, row.engine, signal), signal);
      } else await this.engine.reconcile(signal);
      return 'migrate';
    },
    // Each service brings its tables up to date when it starts; here they have to answer with them.
    migrate: async (_row, signal) => {
      for (const client of [this.clients.image, this.clients.host, this.clients.cluster, this.clients.backup])
        await listJobs({ client, query: { limit: 1 }, signal, throwOnError: true });
      return 'restore';
    },
    restore: async (row, signal) => {
      await this.restore(row, signal);
      return 'compare';
    },
    compare: async (row, signal) => {
      await this.compare(row, signal);
      return 'open';
    },
    open: async (row, signal) => {
      if ((await this.rows.load()).fence) await this.engine.setFence(row.id, false, signal);
      return 'done';
    },
    rollBackEngine: async (row, signal) => {
      await this.engine.setEngineBinary(row.formerBinary, signal);
      return 'rollBackData';
    },
    rollBackData: async (row, signal) => {
      if (row.backupId) {
        await this.restore(row, signal);
        await this.compare(row, signal);
      }
      return 'rollBackOpen';
    },
    rollBackOpen: async (row, signal) => {
      if ((await this.rows.load()).fence?.upgradeId === row.id) await this.engine.setFence(row.id, false, signal);
      return 'rolledBack';
    },
  };

  private async preflight(row: DuUpgradeEntity, signal: AbortSignal): Promise<UpgradeProblem[]> {
    const problems: UpgradeProblem[] = [];
    const add = (check: string, severity: UpgradeProblem['severity'], detail: string) =>
      problems.push({ check, severity, detail });
    if (compareDuVersions(row.toVersion, row.fromVersion) < 0)
      add('version', 'failure', `${row.toVersion} is older than ${row.fromVersion}`);
    const capabilities = duCapabilities(row.toVersion);
    if (!capabilities.hasRegistry) add('version', 'failure', `a DU of version ${row.toVersion} has no local registry`);
    else if (capabilities.movesClusters && !duCapabilities(row.fromVersion).movesClusters)
      add('version', 'info', 'from 5.3 on clusters that exist can be switched to local mode, by being upgraded');
    const { mode, error } = await this.rows.load();
    if (mode === 'none')
      add(
        'registry',
        'info',
        'the registry is off: there is nothing to carry over; set privateRegistryType to have one afterwards',
      );
    else if (mode === 'external') add('registry', 'info', 'the registry is run by someone else, and is not touched');
    else if (error || !(await registryEngine(this.config, await this.rows.load()).isHealthy()))
      add('registry', 'failure', 'the registry does not answer');
    await this.registry.assertStorage().catch((changed: AppError) => add('registry', 'failure', changed.message));
    if (mode === 'local') problems.push(...(await this.spaceProblems(row, signal)));
    const { registry, image, host, cluster, backup } = this.clients;
    for (const client of [registry, image, host, cluster, backup])
      for (const state of ['running', 'queued'] as const) {
        const { data } = await listJobs({ client, query: { state, limit: 500 }, signal, throwOnError: true });
        for (const { id, type } of data.items)
          if (busyTypes.test(type) && !problems.some(({ detail }) => detail.includes(id)))
            add('jobs', 'failure', `${type} is ${state}: /v1/jobs/${id}`);
      }
    if (row.engine) {
      try {
        const { digest, version } = await inspectEngine(engineFile(row.engine), { folder: this.enginesDir, signal });
        if (row.engine.digest !== undefined && row.engine.digest !== digest)
          throw new AppError('du_engine_digest_wrong', {
            detail: `the program of the new engine has ${digest}, not ${row.engine.digest}`,
          });
        add('engine', 'info', `the registry becomes ${version ?? 'one of unknown version'}: ${digest}`);
      } catch (cause) {
        add(
          'engine',
          'failure',
          cause instanceof AppError ? (cause.details.detail ?? cause.message) : 'the engine cannot be read',
        );
      }
    }
    return problems;
  }

  /** Whether the backup has a place that can be reached and is large enough, as far as that can be told before. */
  private async spaceProblems(row: DuUpgradeEntity, signal: AbortSignal): Promise<UpgradeProblem[]> {
    const client = this.clients.backup;
    const { data: targets } = await listBackupTargets({ client, signal, throwOnError: true });
    const target = targets.items.find(({ name }) => name === row.target);
    if (!target) return [{ check: 'space', severity: 'failure', detail: `there is no backup target ${row.target}` }];
    if (target.error)
      return [
        {
          check: 'space',
          severity: 'failure',
          detail: `the backup target ${row.target} cannot be used: ${target.error.detail ?? target.error.title}`,
        },
      ];
    // What was measured last may be from before a push.
    await this.watch.measure();
    const usedBytes = (await this.rows.load()).storage?.usedBytes ?? 0;
    if (target.freeBytes === null || target.freeBytes >= usedBytes) return [];
    const { data: backups } = await listBackups({
      client,
      query: { target: row.target, limit: 1 },
      signal,
      throwOnError: true,
    });
    const detail = `the registry has ${usedBytes} bytes, and ${target.freeBytes} are free at the backup target ${row.target}`;
    // What an earlier backup has is not copied again.
    return [{ check: 'space', severity: backups.items.length > 0 ? 'warning' : 'failure', detail }];
  }

  private async hasRegistry(): Promise<boolean> {
    return (await this.rows.load()).mode === 'local';
  }

  /** One backup for a phase, however often it is begun. Returns the names that it skipped. */
  private async backUp(row: DuUpgradeEntity, phase: DuUpgradePhase, signal: AbortSignal): Promise<string[]> {
    const client = this.clients.backup;
    const { data: begun } = await createBackup({
      client,
      headers: { 'Idempotency-Key': `${row.id}-${phase}` },
      body: { target: row.target, description: `upgrade of the DU to ${row.toVersion}` },
      signal,
      throwOnError: true,
    });
    const seen = await followJob(client, begun.id, signal);
    // Of an earlier attempt: whoever retries the upgrade has put right what was in its way.
    if (seen.state !== 'succeeded') await retryJob({ client, path: { id: begun.id }, signal, throwOnError: true });
    assertSucceeded(await followJob(client, begun.id, signal));
    const id = begun.resource.split('/').at(-1) ?? '';
    const { data: backup } = await getBackup({ client, path: { id }, signal, throwOnError: true });
    await this.save(row, { backupId: id });
    return (backup.skipped ?? []).map(({ name }) => name);
  }

  /** Brings back what is gone, and nothing else. */
  private async restore(row: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if (!row.backupId || !(await this.hasRegistry())) return;
    // Rows come back only where the tables were lost: what was deleted since then must stay so.
    // With them the fence was lost too: what was pushed meanwhile stays.
    const options = row.hasLostTables ? { onConflict: 'keep' } : { settings: false };
    const seen = await this.restoreJob(row, { ...options, dryRun: true }, signal);
    const isGone =
      (seen.report?.missing.length ?? 0) + (seen.report?.conflicts.length ?? 0) + (seen.report?.missingBytes ?? 0) > 0;
    // What this DU has signed is its own settings: where an attempt before this one has brought half of them, nobody
    // has to confirm the rest.
    const confirm = seen.report?.signature.state === 'own' ? seen.report.planDigest : row.confirm;
    await this.restoreJob(row, { ...options, ...(confirm && { confirm }) }, signal);
    await this.save(row, {
      report: {
        images: 0,
        present: 0,
        missing: [],
        changed: [],
        engineVersion: null,
        restored: isGone || (row.report?.restored ?? false),
      },
    });
  }

  private async restoreJob(row: DuUpgradeEntity, options: object, signal: AbortSignal): Promise<Restore> {
    const client = this.clients.backup;
    const body = { backupId: row.backupId ?? '', allowUnsigned: row.allowUnsigned, ...options };
    const key = createHash('sha256')
      .update(`${row.id} ${row.restores} ${JSON.stringify(body)}`)
      .digest('hex');
    const { data: begun } = await createRestore({
      client,
      headers: { 'Idempotency-Key': key },
      body,
      signal,
      throwOnError: true,
    });
    const ended = await followJob(client, begun.id, signal);
    await this.save(row, { restores: row.restores + 1 });
    assertSucceeded(ended);
    const { data } = await getRestore({
      client,
      path: { id: begun.resource.split('/').at(-1) ?? '' },
      signal,
      throwOnError: true,
    });
    return data;
  }

  /** Throws `du_upgrade_incomplete` unless everything of the backup is there, by count and digest. */
  private async compare(row: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if (!row.backupId || !(await this.hasRegistry())) return;
    const { report } = await this.restoreJob(row, { dryRun: true }, signal);
    const { data: backup } = await getBackup({
      client: this.clients.backup,
      path: { id: row.backupId },
      signal,
      throwOnError: true,
    });
    const [missing, changed] = [
      [...(report?.missing ?? []), ...(report?.broken ?? []).map(({ name }) => name)],
      report?.conflicts ?? [],
    ];
    const { engineVersion } = await this.rows.load();
    await this.save(row, {
      report: {
        images: backup.images ?? 0,
        present: report?.present ?? 0,
        missing,
        changed,
        restored: row.report?.restored ?? false,
        engineVersion,
      },
    });
    if (missing.length + (row.hasLostTables ? 0 : changed.length + (report?.missingBytes ?? 0)) > 0) {
      throw new AppError('du_upgrade_incomplete', {
        detail: `${missing.length} of ${backup.images ?? 0} names are missing, ${changed.length} lead to something else`,
      });
    }
  }

  /** A copy of the program, checked before it runs for the first time, that nobody changes or removes. */
  private async installEngine(row: DuUpgradeEntity, engine: NewEngine, signal: AbortSignal): Promise<string> {
    if (engine.digest === undefined)
      throw new AppError('du_engine_digest_missing', { detail: engineFile(engine).path });
    // Another program has another path: that is how the engine sees that it has to be started anew.
    const installed = await installEngine(engineFile(engine), {
      folder: this.enginesDir,
      name: row.id,
      digest: engine.digest as Digest,
      signal,
    });
    await registryEngine(this.config, { engineBinary: installed }).version();
    return installed;
  }

  private get enginesDir(): string {
    return join(this.config.dataDir, 'registry', 'engines');
  }

  /**
   * With the real path of the file, which is looked for this once only. Throws `bundle_path_forbidden`,
   * `bundle_not_found`, `du_engine_digest_missing`.
   */
  private async found(engine: NewEngine, dryRun: boolean): Promise<NewEngine> {
    const { path: wanted } = engineFile(engine);
    const { path, refusal, why } = { why: undefined, ...(await allowedPath(this.config.bundleDirs, wanted)) };
    if (refusal === 'unreadable') throw new AppError('bundle_unreadable', { detail: `${wanted}: ${why}` });
    if (path === undefined)
      throw new AppError(refusal === 'missing' ? 'bundle_not_found' : 'bundle_path_forbidden', { detail: wanted });
    if (engine.digest === undefined && !dryRun) throw new AppError('du_engine_digest_missing', { detail: wanted });
    return 'binary' in engine ? { ...engine, binary: path } : { ...engine, image: path };
  }

  /** First the file, then the row: whichever is newer after a kill, the phase is begun again. */
  private async save(row: DuUpgradeEntity, change: Partial<DuUpgradeEntity>): Promise<void> {
    Object.assign(row, change);
    if (!row.dryRun) await writeDurably(this.stateFile, Buffer.from(`${JSON.stringify(row, null, 2)}\n`));
    await this.upgrades.update({ id: row.id }, columns<DuUpgradeEntity>(change));
  }

  private async moveTo(row: DuUpgradeEntity, phase: DuUpgradePhase): Promise<void> {
    // An error that was got over is none any more.
    const error = rollingBack.includes(phase) || ['rolledBack', 'refused'].includes(phase) ? row.error : null;
    await this.save(row, { phase, error, ...(endedPhases.includes(phase) && { finishedAt: now() }) });
    if (endedPhases.includes(phase)) await rm(this.stateFile, { force: true });
  }
}

const engineFile = (engine: NewEngine) =>
  'binary' in engine
    ? ({ kind: 'program', path: engine.binary } as const)
    : ({ kind: 'image', path: engine.image } as const);

/**
 * What rolling back would fail with too: a key, a disk, a store that somebody has to bring. Then the job is retried.
 */
const needsSomebody = (error: unknown): boolean =>
  error instanceof AppError &&
  /^(registry_off|restore_unconfirmed|secrets_key_mismatch|space_insufficient|backup_.*)$/.test(error.code);

/** What waiting may cure; a program that does not run now will not do so later. */
const isWorthRetrying = (error: unknown): boolean =>
  error instanceof AppError && error.family === 'unavailable' && !error.code.startsWith('registry_start');
