import type { ReadOptions } from '@airdock/backup-store/backup-records';
import { backupRegistry } from '@airdock/backup-store/backup-registry';
import type { BackupStore } from '@airdock/backup-store/backup-store';
import { duVersionNow } from '@airdock/clients/du-version';
import { getDu, getDuUpgrade, getState } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { matchesPattern } from '@airdock/core/oci/select-images';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now, type Statement } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { type RegistryUse, type RequiredRegistry, requireRegistry } from '@airdock/registry/access/require-registry';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, type Repository } from 'typeorm';
import { z } from 'zod';
import { BackupTargetService, lockFor } from '../backup-target/backup-target.service.js';
import { SigningKeyService } from '../signing-key/signing-key.service.js';
import { BackupEntity } from './backup.entity.js';
import type { Backup, BackupListQuery, CreateBackup } from './backup.schema.js';
import { emptyRow, isAsKnown, patternsOf, signatureOf, signedBy, stateOf, summaryOf } from './backup-row.js';
import { CatalogueNames } from './catalogue-names.js';
import { RecordFinder } from './record-finder.js';

export const backupJobType = 'backup.create';

/** Whose state belongs to a backup, in the order in which a restore brings it back. */
export const settingsServices = ['image', 'host', 'cluster', 'backup'] as const;

/** Which names of a registry are meant. */
export type NameFilter = (name: { repository: string; tag: string }) => boolean;

/** Backups of the registry's content and Airdock's own state: see docs/design/backup-format.md. */
@Injectable()
export class BackupService {
  private readonly catalogue: CatalogueNames;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(BackupEntity, 'backup') private readonly backups: Repository<BackupEntity>,
    private readonly jobs: JobsService,
    private readonly clients: ServiceClients,
    private readonly targets: BackupTargetService,
    private readonly signingKeys: SigningKeyService,
  ) {
    this.catalogue = new CatalogueNames(clients.image);
  }

  /** Throws `resource_not_found` for the target and the image set, `registry_off`. */
  async create(
    request: JobRequest,
    wanted: CreateBackup,
    scheduleId: string | null = null,
    changes: Statement[] = [],
  ): Promise<Job> {
    this.targets.assertKnown(wanted.target);
    await this.registry('read');
    if (wanted.imageSetId) await this.catalogue.ofImageSet(wanted.imageSetId);
    const id = newId();
    const row = columns<BackupEntity>({
      ...emptyRow(id, wanted.target),
      description: wanted.description ?? null,
      repositories: wanted.repositories ?? null,
      imageSetId: wanted.imageSetId ?? null,
      scheduleId,
      jobId: request.id,
    });
    return this.jobs.submit({ ...request, type: backupJobType, resource: `/v1/backups/${id}` }, [
      this.backups.createQueryBuilder().insert().values(row),
      ...changes,
    ]);
  }

  async list({ target, scheduleId, ...query }: BackupListQuery): Promise<Page<Backup>> {
    const { items, nextCursor } = await findPage(this.backups, query, {
      ...(target && { target }),
      ...(scheduleId && { scheduleId }),
    });
    return { items: await this.toResources(items), nextCursor };
  }

  async get(id: string): Promise<Backup> {
    const [resource] = await this.toResources([await getRow(this.backups, id)]);
    return resource as Backup;
  }

  /** Newest first. */
  async ofSchedule(scheduleId: string, limit: number): Promise<Backup[]> {
    return this.toResources(await this.backups.find({ where: { scheduleId }, order: { id: 'DESC' }, take: limit }));
  }

  /** The newest complete one of a target, also one that was found there. */
  async newestGood(target: string, scheduleId: string): Promise<Backup | undefined> {
    const rows = await this.backups.find({ where: { target, scheduleId }, order: { id: 'DESC' }, take: 50 });
    return (await this.toResources(rows)).find(({ state, skipped }) => state === 'complete' && !skipped?.length);
  }

  /** Removes the record; what no other backup needs goes with the next prune. Throws `resource_in_use`. */
  async remove(id: string): Promise<void> {
    const row = await getRow(this.backups, id);
    const [{ state } = { state: 'failed' }] = await this.toResources([row]);
    if (state === 'running')
      throw new AppError('resource_in_use', { detail: 'the backup is being made; cancel its job first' });
    if ((await this.heldBackup()) === id)
      throw new AppError('resource_in_use', { detail: 'an upgrade of the DU has begun with it' });
    await using store = await this.targets.open(row.target);
    await store.deleteRecord(id);
    await this.backups.delete({ id });
  }

  private duVersion(): Promise<string> {
    return duVersionNow(this.clients.registry, this.config.duVersion);
  }

  /** That an upgrade of the DU has to bring back, until it has ended. */
  async heldBackup(): Promise<string | null> {
    const client = this.clients.registry;
    try {
      const { upgradeId } = (await getDu({ client, throwOnError: true })).data;
      return upgradeId
        ? (await getDuUpgrade({ client, path: { id: upgradeId }, throwOnError: true })).data.backupId
        : null;
    } catch (error) {
      if (error instanceof AppError && error.code === 'resource_not_found') return null;
      throw error;
    }
  }

  /**
   * Where a complete backup is, whether this service has a row of it or not. Throws `resource_not_found`,
   * `backup_incomplete`, `backup_corrupt`, and without `allowUnsigned` for one that nobody known has signed.
   */
  async locate(id: string, reading: ReadOptions = {}): Promise<{ target: string; record: BackupRecord }> {
    const row = await this.backups.findOneBy({ id });
    // A copy of a lost store may be another target.
    const failures: unknown[] = [];
    for (const target of new Set([...(row ? [row.target] : []), ...this.targets.names])) {
      try {
        // Just started with the data of a version that did not sign.
        if ((await this.targets.stateOf(target))?.takenOverAt === null) await this.synchronize(target);
        await using store = await this.targets.find(target);
        const record = store && (await readRecord(store, id, reading));
        if (record) return { target, record };
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
    const { state } = await this.get(id);
    throw new AppError('backup_incomplete', { detail: `the backup is ${state}, and the store has no record of it` });
  }

  openStore(target: string): Promise<BackupStore> {
    return this.targets.open(target);
  }

  /**
   * Throws `registry_off`, `registry_unavailable`, `registry_storage_changed`, `registry_storage_read_only`: a backup
   * of another disk is none.
   */
  registry(use: RegistryUse): Promise<RequiredRegistry> {
    return requireRegistry(this.clients.registry, { waits: false, use });
  }

  /**
   * For a job that reads from it or restores into it, after the garbage collection if one is under way. Throws as
   * `registry`, and `registry_collecting`.
   */
  registryForJob(
    { signal, progress }: Pick<JobContext, 'signal' | 'progress'>,
    use: RegistryUse,
  ): Promise<RequiredRegistry> {
    return requireRegistry(this.clients.registry, {
      use,
      signal,
      onWait: () => progress({ phase: 'waiting for a garbage collection' }),
    });
  }

  /**
   * Copies what the registry holds and the store does not; the record comes last. Continues where an earlier attempt
   * stopped.
   */
  @RunsJob(backupJobType, { concurrency: 1 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const { resourceId: id, progress } = context;
    const row = await getRow(this.backups, id);
    await using store = await this.targets.open(row.target);
    // Also when nothing is left to do: the lock of a worker that died keeps prunes away.
    await using lock = await store.lock(lockFor(context));
    const { signal } = lock;
    // A worker that died between the record and the end of its job left a complete backup.
    const done = await readRecord(store, id);
    if (done)
      return await this.noteComplete(done, {
        addedBytes: row.addedBytes === null ? null : Number(row.addedBytes),
        skipped: row.skipped,
      });
    const { address, storage } = await this.registryForJob({ signal, progress }, 'read');
    await using registry = new RegistryClient(address);
    const isAll = !row.repositories && !row.imageSetId;
    const reading = isAll ? this.readSettings(signal) : Promise.resolve([]);
    // Waited for below.
    reading.catch(() => undefined);
    const { record, skipped, addedBytes } = await backupRegistry({
      ...{ registry, storage, store, lock, id, signal, onProgress: progress },
      filter: await this.filterOf(row),
      untagged: await this.catalogue.untagged(),
      settings: await reading,
      beforeRecord: async (result) => {
        // Of a disk that went away meanwhile it would be a backup of nothing, or of a part. A garbage collection is not
        // waited for: it waits for us.
        await this.registry('read');
        await this.backups.update(
          { id },
          columns<BackupEntity>({ skipped: result.skipped, addedBytes: String(result.addedBytes) }),
        );
      },
      about: {
        duVersion: await this.duVersion(),
        description: row.description ?? undefined,
        repositories: patternsOf(row) ?? undefined,
      },
    });
    return await this.noteComplete(record, { addedBytes, skipped });
  }

  /**
   * Rows for backups that a store has and this service does not know: of a DU before, or carried in. Those whose record
   * has gone are marked.
   */
  async synchronize(target: string): Promise<void> {
    await using store = await this.targets.find(target);
    if (!store) return;
    const ids = await this.idsIn(target, store);
    if (!ids) return;
    const rows = await this.backups.findBy({ target });
    const known = new Map(rows.map((row) => [row.id, row]));
    await this.takeOver(target, store, rows);
    for (const id of ids) if (known.get(id)?.isMissing) await this.backups.update({ id }, { isMissing: false });
    const finder = new RecordFinder(this.targets, target, store);
    for await (const { record, signature } of finder.read([...ids].filter((id) => !known.has(id)))) {
      const found = {
        ...emptyRow(record.id, target),
        signedBy: signedBy(signature),
        createdAt: record.createdAt,
        completedAt: record.createdAt,
        description: record.description ?? null,
      };
      await this.backups
        .createQueryBuilder()
        .insert()
        .values(columns<BackupEntity>({ ...found, repositories: record.repositories ?? null, ...summaryOf(record) }))
        .orIgnore()
        .execute();
    }
    const missing = rows.filter((row) => row.completedAt && !row.isMissing && !ids.has(row.id)).map(({ id }) => id);
    if (missing.length > 0) await this.backups.update({ id: In(missing) }, { isMissing: true });
  }

  /** Undefined for a store that is not to be read, which the target tells of. */
  private async idsIn(target: string, store: BackupStore): Promise<Set<string> | undefined> {
    try {
      return new Set((await store.listIds()).filter((id) => z.uuid().safeParse(id).success));
    } catch (error) {
      if (!(error instanceof AppError) || error.family === 'unavailable') throw error;
      await this.targets.noteProblems(target, [
        { backupId: null, code: error.code, detail: error.details.detail ?? error.message, fingerprint: '' },
      ]);
      return undefined;
    }
  }

  /**
   * Signs the backups that this DU made before there were signatures, once for each store: those that its own table
   * knows, whose every name leads to the digest that the catalogue has too. Nothing here knows what settings they held,
   * and who had the disk could have changed those: backups with settings stay unsigned. From then on what is not signed
   * is for somebody to allow.
   */
  private async takeOver(target: string, store: BackupStore, rows: readonly BackupEntity[]): Promise<void> {
    if ((await this.targets.stateOf(target))?.takenOverAt !== null) return;
    const candidates = rows.filter(
      ({ jobId, completedAt, signedBy: by }) => jobId !== null && completedAt !== null && by === null,
    );
    let known: Map<string, string> | undefined;
    for (const row of candidates) {
      try {
        if (!row.hasSettings) known ??= await this.catalogue.digests();
        if (await store.signAsOwn(row.id, (record) => isAsKnown(record, row, known ?? new Map())))
          await this.backups.update({ id: row.id }, { signedBy: this.signingKeys.ownKeyId });
      } catch (error) {
        // Of a disk that takes no writes, or is away again, or of image-svc: the next round.
        if (!(error instanceof AppError)) throw error;
        if (error.family === 'unavailable' || ['backup_target_read_only', 'space_insufficient'].includes(error.code))
          return;
      }
    }
    await this.targets.noteTakenOver(target);
  }

  /** What a verification found. */
  async noteVerified(id: string, damaged: string[]): Promise<void> {
    await this.backups.update({ id }, columns<BackupEntity>({ verifiedAt: now(), damaged }));
  }

  /** Rows of backups whose records were removed. */
  async forget(ids: string[]): Promise<void> {
    if (ids.length > 0) await this.backups.delete({ id: In(ids) });
  }

  private async noteComplete(
    record: BackupRecord,
    { addedBytes, skipped }: { addedBytes: number | null; skipped: Backup['skipped'] },
  ) {
    const summary = summaryOf(record);
    await this.backups.update(
      { id: record.id },
      columns<BackupEntity>({
        ...summary,
        signedBy: this.signingKeys.ownKeyId,
        addedBytes: addedBytes === null ? null : String(addedBytes),
        skipped,
        completedAt: now(),
      }),
    );
    return { images: summary.images, sizeBytes: record.totalBytes, addedBytes, skipped: skipped?.length ?? 0 };
  }

  private async filterOf({ repositories, imageSetId }: BackupEntity): Promise<NameFilter> {
    if (imageSetId) {
      const names = await this.catalogue.ofImageSet(imageSetId);
      return ({ repository, tag }) => names.has(`${repository}:${tag}`);
    }
    return filterByRepository(repositories);
  }

  private async readSettings(signal: AbortSignal): Promise<{ service: string; bytes: Buffer }[]> {
    return Promise.all(
      settingsServices.map(async (service) => {
        const { data } = await getState({
          client: this.clients[service],
          path: { service },
          signal,
          throwOnError: true,
        });
        return { service, bytes: Buffer.from(JSON.stringify(data)) };
      }),
    );
  }

  private async toResources(rows: BackupEntity[]): Promise<Backup[]> {
    const jobs = await this.jobs.byIds(rows.flatMap(({ jobId }) => jobId ?? []));
    const keys = await this.signingKeys.recordKeys();
    return rows.map((row) => ({
      ...row,
      signature: signatureOf(row, keys),
      sizeBytes: row.sizeBytes === null ? null : Number(row.sizeBytes),
      addedBytes: row.addedBytes === null ? null : Number(row.addedBytes),
      state: stateOf(row, row.jobId ? jobs.get(row.jobId) : undefined),
    }));
  }
}

/** Names in repositories that one of the patterns matches; without any: all. */
export const filterByRepository =
  (patterns: readonly string[] | null | undefined): NameFilter =>
  ({ repository }) =>
    !patterns || patterns.some((pattern) => matchesPattern(repository, pattern));

/** The record of a complete backup; undefined when the store has none with this id. Throws `backup_corrupt`. */
async function readRecord(
  store: BackupStore,
  id: string,
  reading: ReadOptions = {},
): Promise<BackupRecord | undefined> {
  try {
    return await store.readRecord(id, reading);
  } catch (error) {
    if (error instanceof AppError && error.code === 'resource_not_found') return undefined;
    throw error;
  }
}
