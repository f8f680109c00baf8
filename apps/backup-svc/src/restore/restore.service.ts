import { openBackup } from '@airdock/adapters/backup-store/backup-source';
import { copyImages, failureOf } from '@airdock/adapters/oci-client/copy-image';
import { RegistryClient } from '@airdock/adapters/oci-client/registry-client';
import { now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BackupService } from '../backup/backup.service.js';
import { RestoreEntity } from './restore.entity.js';
import type { CreateRestore, Restore } from './restore.schema.js';

export const restoreJobType = 'backup.restore';

/** Brings the content of a backup back into the registry: what is there is skipped, every blob is checked on its way, tags come last. */
@Injectable()
export class RestoreService {
  constructor(
    @InjectRepository(RestoreEntity, 'backup') private readonly restores: Repository<RestoreEntity>,
    private readonly backups: BackupService,
    private readonly jobs: JobsService,
  ) {}

  /** Throws `resource_not_found`, `backup_incomplete`, `backup_corrupt`, `registry_off`. */
  async create(request: JobRequest, { backupId }: CreateRestore): Promise<Job> {
    await this.backups.assertComplete(backupId);
    await this.backups.registry();
    const id = newId();
    const row: RestoreEntity = { id, backupId, images: null, jobId: request.id, createdAt: now() };
    return this.jobs.submit({ ...request, type: restoreJobType, resource: `/v1/restores/${id}` }, [this.restores.createQueryBuilder().insert().values(row)]);
  }

  async list(query: PageQuery): Promise<Page<Restore>> {
    const { items, nextCursor } = await findPage(this.restores, query);
    const jobs = await this.jobs.byIds(items.map(({ jobId }) => jobId));
    return { items: items.map((row) => toResource(row, jobs.get(row.jobId))), nextCursor };
  }

  async get(id: string): Promise<Restore> {
    const row = await getRow(this.restores, id);
    return toResource(row, await this.jobs.find(row.jobId));
  }

  async run({ resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const { id, backupId } = await getRow(this.restores, resourceId);
    await using source = await openBackup(await this.backups.openStore(), backupId, signal);
    const { url, storage } = await this.backups.registry();
    await using registry = new RegistryClient(url);
    const copied = await copyImages({
      source,
      registry,
      storage,
      images: source.images.map((image) => ({ image, names: image.names.map(parseName) })),
      signal,
      onProgress: (done) => progress({ phase: 'restore', ...done }),
    });
    const failure = failureOf(copied);
    if (failure) throw failure;
    const images = copied.reduce((sum, { names }) => sum + names.length, 0);
    await this.restores.update({ id }, { images });
    return { images };
  }
}

/** `repository:tag`, as backups name images. */
const parseName = (name: string): { repository: string; tag: string } => ({
  repository: name.slice(0, name.lastIndexOf(':')),
  tag: name.slice(name.lastIndexOf(':') + 1),
});

const toResource = (row: RestoreEntity, job: JobEntity | undefined): Restore => ({ ...row, state: job?.state ?? 'failed' });
