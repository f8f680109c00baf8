import { readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { BackupBlob, BackupStore } from '@airdock/backup-store/backup-store';
import { isTrusted } from '@airdock/backup-store/record-signature';
import { TarStorage, writeTar } from '@airdock/backup-store/tar-storage';
import { isGone } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex } from '@airdock/core/oci/digest';
import { reasonsToKeep } from '@airdock/core/retention';
import { writeDurably } from '@airdock/disk/files/durable-file';
import { digestOfFile } from '@airdock/disk/files/hash-pool';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now, type Statement } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState, withState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BackupService } from '../backup/backup.service.js';
import { BackupTargetService, lockFor, withoutLock } from '../backup-target/backup-target.service.js';
import { BackupOperationEntity } from './backup-operation.entity.js';
import type {
  ActionOf,
  BackupAction,
  BackupOperation,
  BackupOperationResult,
  CreateBackupOperation,
} from './backup-operation.schema.js';
import { describeLost, heal, readAll, sumOf, whyNotHealed } from './stored-blobs.js';

export const operationJobTypes = {
  verify: 'backup.verify',
  prune: 'backup.prune',
  export: 'backup.export',
  import: 'backup.import',
} as const;

/** What is done with backups beside making and restoring them. Each can be killed at any moment, and goes on. */
@Injectable()
export class BackupOperationService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(BackupOperationEntity, 'backup') private readonly operations: Repository<BackupOperationEntity>,
    private readonly backups: BackupService,
    private readonly targets: BackupTargetService,
    private readonly jobs: JobsService,
  ) {}

  /**
   * Throws `resource_not_found`, `backup_incomplete`, `backup_exchange_dir_missing`, `backup_file_not_found`,
   * `resource_exists`.
   */
  async create(
    request: JobRequest,
    { target: wanted, operation }: CreateBackupOperation,
    changes: Statement[] = [],
  ): Promise<Job> {
    this.targets.assertKnown(wanted);
    const target =
      'backupId' in operation && operation.backupId
        ? (await this.backups.locate(operation.backupId, readingOf(operation))).target
        : wanted;
    if (operation.action === 'export' && (await isFile(this.exchangePath(operation.file))))
      throw new AppError('resource_exists', { detail: `there is a file ${operation.file}` });
    if (operation.action === 'import') await this.findFile(operation.file);
    const id = newId();
    const row = columns<BackupOperationEntity>({
      id,
      target,
      operation,
      result: null,
      jobId: request.id,
      createdAt: now(),
    });
    return this.jobs.submit(
      { ...request, type: operationJobTypes[operation.action], resource: `/v1/backup-operations/${id}` },
      [this.operations.createQueryBuilder().insert().values(row), ...changes],
    );
  }

  list(query: PageQuery): Promise<Page<BackupOperation>> {
    return findPageWithState(this.operations, this.jobs, query, withState);
  }

  get(id: string): Promise<BackupOperation> {
    return getWithState(this.operations, this.jobs, id, withState);
  }

  @RunsJob(operationJobTypes.verify, { concurrency: 1 })
  @RunsJob(operationJobTypes.prune, { concurrency: 1 })
  @RunsJob(operationJobTypes.export, { concurrency: 1 })
  @RunsJob(operationJobTypes.import, { concurrency: 1 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.operations, context.resourceId);
    await using store = await this.backups.openStore(row.target);
    return await this.runners[row.operation.action](row, row.operation as never, store, context);
  }

  private readonly runners: { [A in BackupAction['action']]: Runner<A> } = {
    verify: async (row, { backupId, samplePercent, heal: isHealing, allowUnsigned }, store, context) => {
      const { progress } = context;
      await using lock = await store.lock({ ...lockFor(context), isReader: true });
      const { signal } = lock;
      const listed = backupId
        ? [{ id: backupId, record: await store.readRecord(backupId, { allowUnsigned }), error: undefined }]
        : await store.listRecords({ allowUnsigned });
      const refused = listed.flatMap(({ id, error }) => (error ? [{ id, error }] : []));
      const unreadable = refused.map(({ id, error }) => ({
        backupId: id,
        reason: error.details.detail ?? error.message,
      }));
      const records = listed.flatMap(({ record }) => record ?? []);
      const index = await store.index();
      const blobs = new Map<Digest, BackupBlob>(
        records.flatMap((record) => record.blobs.map((blob) => [blob.digest, blob])),
      );
      const sample = [...blobs.values()].filter((blob) => !index.has(blob) || Math.random() * 100 < samplePercent);
      const damaged = await readAll(store, index, sample, signal, progress);
      const healed: Digest[] = [];
      let why = 'the registry does not have it';
      if (isHealing && damaged.length > 0)
        await heal(this.backups, store, index, damaged, records, healed, { signal, progress }).catch(
          (error: unknown) => {
            why = whyNotHealed(error);
          },
        );
      const lost = damaged.filter(({ digest }) => !healed.includes(digest)).map(({ digest }) => digest);
      const result: BackupOperationResult = {
        blobs: sample.length,
        bytes: sumOf(sample),
        damaged: damaged.map(({ digest }) => digest),
        healed,
        lost: await describeLost(store, records, lost, signal),
        unreadable,
      };
      for (const record of records) {
        const needs = record.blobs.map(({ digest }) => digest).filter((digest) => lost.includes(digest));
        if (samplePercent === 100 || needs.length > 0) await this.backups.noteVerified(record.id, needs);
      }
      await this.save(row, result);
      const operation = `/v1/backup-operations/${row.id}`;
      if (lost.length > 0)
        throw new AppError('backup_corrupt', {
          detail: `damaged, and ${isHealing ? why : 'not healed, as asked'}: ${lost.length} blobs, first ${lost[0]}`,
          operation,
        });
      if (refused[0]) throw new AppError(refused[0].error.code, { ...refused[0].error.details, operation });
      return {
        blobs: sample.length,
        bytes: result.bytes,
        damaged: damaged.length,
        healed: healed.length,
        ...withoutLock(lock),
      };
    },

    prune: async (row, action, store, context) => {
      const { progress } = context;
      const { dryRun, waitMinutes } = action;
      const plan = async () => pruneResult(row, await this.judge(store, action));
      if (dryRun) {
        const result = await plan();
        const unneeded = await store.findUnneeded(new Set(result.removed));
        await this.save(row, { ...result, blobs: unneeded.length, bytes: sumOf(unneeded) });
        return { backups: result.removed?.length ?? 0, blobs: unneeded.length, bytes: sumOf(unneeded) };
      }
      const exclusive = { ...lockFor(context), kind: 'exclusive' as const, waitMs: waitMinutes * 60_000 };
      await using lock = await store.lock(exclusive).catch(async (error: unknown) => {
        if (!isFull(error)) throw error;
        // Not even room for an empty file. Records need no lock to go, and make some.
        const ids = (await plan()).removed ?? [];
        for (const id of ids) await store.deleteRecord(id);
        await this.backups.forget(ids);
        row.result = { ...row.result, removed: ids };
        for (;;)
          try {
            return await store.lock(exclusive);
          } catch (again) {
            context.signal.throwIfAborted();
            // A bucket may count a few bytes as none.
            if (!isFull(again) || !(await store.removeWithoutLock())) throw again;
          }
      });
      const { signal } = lock;
      const result = await plan();
      await this.save(row, result);
      for (const id of result.removed ?? []) {
        signal.throwIfAborted();
        lock.assertHeld();
        await store.deleteRecord(id);
      }
      await this.backups.forget(result.removed ?? []);
      const { blobs, bytes } = await store.prune(lock, {
        signal,
        onBlob: (itemsDone, itemsTotal) => progress({ phase: 'removing blobs', itemsDone, itemsTotal }),
      });
      await this.save(row, { ...result, blobs, bytes });
      return { backups: result.removed?.length ?? 0, blobs, bytes };
    },

    export: async (row, { backupId, file }, store, context) => {
      const { progress } = context;
      const path = this.exchangePath(file);
      await using lock = await store.lock({ ...lockFor(context), isReader: true });
      const { signal } = lock;
      const files = await store.filesOf(backupId);
      const bytesTotal = sumOf(files);
      let bytesDone = 0;
      const part = `${path}.${row.id}.part`;
      // Not beside the name that is waited for, and begun anew after a kill.
      const tar = writeTar(store.storage, files, (count) => {
        bytesDone += count;
        progress({ phase: 'exporting', bytesDone, bytesTotal });
      });
      let sha256: string;
      try {
        await writeDurably(part, tar, { signal });
        sha256 = digestHex(await digestOfFile(part, { signal }));
        await writeDurably(`${path}.sha256`, Buffer.from(`${sha256}  ${file}\n`));
        await rename(part, path);
      } finally {
        await rm(part, { force: true });
      }
      await this.save(row, { backupId, file, sha256, blobs: files.length, bytes: bytesTotal });
      return { backupId, file, sha256, bytes: bytesTotal, ...withoutLock(lock) };
    },

    import: async (row, { file, allowUnsigned }, store, context) => {
      const { progress } = context;
      const path = await this.findFile(file);
      await using lock = await store.lock(lockFor(context));
      const { signal } = lock;
      await using archive = await this.targets.read(await TarStorage.open(path, signal));
      const [id, ...others] = await archive.listIds();
      if (!id || others.length > 0)
        throw new AppError('backup_corrupt', { detail: `${file} has ${id ? 'several records' : 'no record'}` });
      const record = await archive.readRecord(id, { allowUnsigned });
      let bytesDone = 0;
      await store.copyFrom(archive, id, lock, {
        signal,
        allowUnsigned,
        onBytes: (count) => {
          bytesDone += count;
          progress({
            phase: 'importing',
            bytesDone: Math.min(bytesDone, record.totalBytes),
            bytesTotal: record.totalBytes,
          });
        },
      });
      await this.backups.synchronize(row.target);
      await this.save(row, { backupId: id, file, blobs: record.blobs.length, bytes: record.totalBytes });
      return { backupId: id, images: record.references.length, bytes: record.totalBytes };
    },
  };

  /** Why each backup is kept; none for those that may go. Throws what is wrong with one whose needs are not known. */
  private async judge(
    store: BackupStore,
    { keep, scheduleId }: Extract<BackupAction, { action: 'prune' }>,
  ): Promise<Map<string, string[]>> {
    const listed = await store.listRecords({ allowUnsigned: true });
    const broken = listed.find(({ error }) => error);
    // What it needs is not known, so nothing may go.
    if (broken?.error) throw broken.error;
    // What somebody else has put there must not take the place of a backup that is kept, and stays until somebody looks
    // at it.
    const records = listed.flatMap((one) => (one.record && isTrusted(one.signature) ? one.record : []));
    const mine = scheduleId
      ? new Set((await this.backups.ofSchedule(scheduleId, 10_000)).map(({ id }) => id))
      : undefined;
    const judged = mine ? records.filter(({ id }) => mine.has(id)) : records;
    const reasons = keep ? reasonsToKeep(judged, keep) : new Map<string, string[]>();
    reasons.get((await this.backups.heldBackup()) ?? '')?.push('upgrade of the DU');
    return reasons;
  }

  private exchangePath(file: string): string {
    const folder = this.config.backup.exchangeDir;
    if (!folder) throw new AppError('backup_exchange_dir_missing');
    return join(folder, file);
  }

  /** The file, or the first of its parts. Throws `backup_file_not_found`. */
  private async findFile(file: string): Promise<string> {
    const path = this.exchangePath(file);
    if (await isFile(path)) return path;
    const isFirstPart = (name: string) =>
      name.startsWith(`${file}.`) &&
      /^\.(part)?(a+|0*[01]?)$/.test(name.slice(file.length)) &&
      name.length > file.length + 1;
    const [first] = (await readdir(join(path, '..')).catch(goneAs([]))).filter(isFirstPart).sort();
    if (first === undefined)
      throw new AppError('backup_file_not_found', { detail: `no ${file} in ${join(path, '..')}` });
    return join(path, '..', first);
  }

  private async save(row: BackupOperationEntity, result: BackupOperationResult): Promise<void> {
    row.result = result;
    await this.operations.update({ id: row.id }, columns<BackupOperationEntity>({ result }));
  }
}

type Runner<A extends BackupAction['action']> = (
  row: BackupOperationEntity,
  action: ActionOf<A>,
  store: BackupStore,
  context: JobContext,
) => Promise<Record<string, unknown>>;

/** An export changes nothing, and is refused where it is imported. */
const readingOf = (operation: BackupAction) => ({
  allowUnsigned: operation.action === 'export' || ('allowUnsigned' in operation && operation.allowUnsigned === true),
});

/** What a prune keeps and removes; an attempt before that was killed may have removed some. */
const pruneResult = ({ result }: BackupOperationEntity, reasons: Map<string, string[]>): BackupOperationResult => ({
  kept: [...reasons].filter(([, why]) => why.length > 0).map(([id, why]) => ({ backupId: id, reasons: why })),
  removed: [
    ...new Set([
      ...(result?.removed ?? []).filter((id) => !reasons.get(id)?.length),
      ...[...reasons].filter(([, why]) => why.length === 0).map(([id]) => id),
    ]),
  ],
});

const isFile = (path: string): Promise<boolean> => stat(path).then((status) => status.isFile(), goneAs(false));

/** What is not there; what cannot be looked at is something else. */
const goneAs =
  <T>(value: T) =>
  (error: NodeJS.ErrnoException): T => {
    if (isGone(error)) return value;
    throw new AppError('bundle_unreadable', { detail: `${error.path}: ${error.code}` }, { cause: error });
  };

const isFull = (error: unknown): boolean => error instanceof AppError && error.code === 'space_insufficient';
