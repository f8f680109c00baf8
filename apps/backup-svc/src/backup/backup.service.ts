import { getRegistry } from '@airdock/adapters/api-clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { backupRegistry } from '@airdock/adapters/backup-store/backup-registry';
import { BackupStore } from '@airdock/adapters/backup-store/backup-store';
import { RegistryClient } from '@airdock/adapters/oci-client/registry-client';
import { AppError } from '@airdock/core/errors';
import { CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
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

  async create(jobId: string, { description }: CreateBackup): Promise<Job> {
    await this.registryUrl();
    const id = newId();
    const row: BackupEntity = { id, description: description ?? null, images: null, sizeBytes: null, jobId, createdAt: now(), completedAt: null };
    return this.jobs.submit({ id: jobId, type: backupJobType, resource: `/v1/backups/${id}` }, [this.backups.createQueryBuilder().insert().values(row)]);
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

  /** Where backups are kept. */
  openStore(): Promise<BackupStore> {
    return BackupStore.open(this.config.backupDir);
  }

  /** The registry to read from and to restore into. Throws `registry_off`. */
  async registryUrl(): Promise<string> {
    const { data } = await getRegistry({ client: this.clients.registry, throwOnError: true });
    if (!data.url) throw new AppError('registry_off');
    return data.url;
  }

  /** Copies what the registry holds and the store does not; the record comes last. Continues where an earlier attempt stopped. */
  async run({ resourceId: id, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const store = await this.openStore();
    await using registry = new RegistryClient(await this.registryUrl());
    // A worker that died between the record and the end of its job left a complete backup.
    const isRecorded = (await store.listRecords()).some((listed) => listed.id === id && listed.record);
    const record = isRecorded ? await store.readRecord(id) : await backupRegistry({ registry, store, id, signal, onProgress: progress });
    const summary = { images: record.references.length, sizeBytes: record.totalBytes };
    await this.backups.update({ id }, { images: summary.images, sizeBytes: String(summary.sizeBytes), completedAt: now() });
    return summary;
  }
}

const toResource = (row: BackupEntity, job: JobEntity | undefined): Backup => ({
  ...row,
  sizeBytes: row.sizeBytes === null ? null : Number(row.sizeBytes),
  state: row.completedAt ? 'complete' : job?.state === 'queued' || job?.state === 'running' ? 'running' : 'failed',
});
