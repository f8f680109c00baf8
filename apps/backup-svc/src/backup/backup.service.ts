import { type RequiredRegistry, requireRegistry } from '@airdock/adapters/api-clients/require-registry';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { backupRegistry } from '@airdock/adapters/backup-store/backup-registry';
import { BackupStore } from '@airdock/adapters/backup-store/backup-store';
import { RegistryClient } from '@airdock/adapters/oci-client/registry-client';
import { AppError } from '@airdock/core/errors';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BackupEntity } from './backup.entity.js';
import type { Backup, CreateBackup } from './backup.schema.js';

export const backupJobType = 'backup.create';

/** Backups of the registry's content: see docs/design/backup-format.md. */
@Injectable()
export class BackupService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(BackupEntity, 'backup') private readonly backups: Repository<BackupEntity>,
    private readonly jobs: JobsService,
    private readonly clients: ServiceClients,
  ) {}

  async create(request: JobRequest, { description }: CreateBackup): Promise<Job> {
    await this.registry();
    const id = newId();
    const row: BackupEntity = { id, description: description ?? null, images: null, sizeBytes: null, jobId: request.id, createdAt: now(), completedAt: null };
    return this.jobs.submit({ ...request, type: backupJobType, resource: `/v1/backups/${id}` }, [this.backups.createQueryBuilder().insert().values(row)]);
  }

  async list(query: PageQuery): Promise<Page<Backup>> {
    const { items, nextCursor } = await findPage(this.backups, query);
    const jobs = await this.jobs.byIds(items.map(({ jobId }) => jobId));
    return { items: items.map((row) => toResource(row, jobs.get(row.jobId))), nextCursor };
  }

  async get(id: string): Promise<Backup> {
    const row = await getRow(this.backups, id);
    return toResource(row, await this.jobs.find(row.jobId));
  }

  /** Throws `resource_not_found`, `backup_incomplete`. A backup is complete when the store has its record: this service's row may be lost. */
  async assertComplete(id: string): Promise<void> {
    if (await readRecord(await this.openStore(), id)) return;
    const { state } = await this.get(id);
    throw new AppError('backup_incomplete', { detail: `the backup is ${state}, and the store has no record of it` });
  }

  /** Where backups are kept. */
  openStore(): Promise<BackupStore> {
    return BackupStore.open(this.config.backupDir);
  }

  /** The registry to read from and to restore into. Throws `registry_off`, `registry_unavailable`. */
  registry(): Promise<RequiredRegistry> {
    return requireRegistry(this.clients.registry);
  }

  /** Copies what the registry holds and the store does not; the record comes last. Continues where an earlier attempt stopped. */
  async run({ resourceId: id, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const store = await this.openStore();
    await using registry = new RegistryClient((await this.registry()).url);
    // A worker that died between the record and the end of its job left a complete backup.
    const record = (await readRecord(store, id)) ?? (await backupRegistry({ registry, store, id, signal, onProgress: progress }));
    const summary = { images: record.references.length, sizeBytes: record.totalBytes };
    await this.backups.update({ id }, { images: summary.images, sizeBytes: String(summary.sizeBytes), completedAt: now() });
    return summary;
  }
}

/** The record of a complete backup; undefined when the store has none with this id. Throws `backup_corrupt`. */
async function readRecord(store: BackupStore, id: string): Promise<BackupRecord | undefined> {
  try {
    return await store.readRecord(id);
  } catch (error) {
    if (error instanceof AppError && error.code === 'resource_not_found') return undefined;
    throw error;
  }
}

const toResource = (row: BackupEntity, job: JobEntity | undefined): Backup => ({
  ...row,
  sizeBytes: row.sizeBytes === null ? null : Number(row.sizeBytes),
  state: row.completedAt ? 'complete' : job?.state === 'queued' || job?.state === 'running' ? 'running' : 'failed',
});
