import { AppError } from '@airdock/core/errors';
import { isEnded } from '@airdock/platform/jobs/job.schema';
import { idOfResource } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { IsNull, type Repository } from 'typeorm';
import { RegistryEntity } from './registry.entity.js';
import { registryRowId as id, RegistryRowService } from './registry-row.service.js';

/** Which garbage collection has the registry: there is one at a time. */
@Injectable()
export class CollectionClaimService {
  constructor(
    @InjectRepository(RegistryEntity, 'registry') private readonly registries: Repository<RegistryEntity>,
    private readonly rows: RegistryRowService,
    private readonly jobs: JobsService,
  ) {}

  /** The job of the garbage collection that has not ended. */
  async open(): Promise<string | undefined> {
    const { collectionJobId } = await this.rows.load();
    return collectionJobId !== null && (await this.isOpen(collectionJobId)) ? collectionJobId : undefined;
  }

  /** Makes a job the only garbage collection, if no other was begun meanwhile. Throws `collection_running`. */
  async claim(jobId: string) {
    const { collectionJobId: last } = await this.rows.load();
    if (last !== null && (await this.isOpen(last))) {
      const job = await this.jobs.get(last);
      throw new AppError('collection_running', {
        detail: job.resource,
        jobId: last,
        collectionId: idOfResource(job),
      });
    }
    const { sql, parameters } = this.jobs.noneOpen(last === null ? [] : [last]);
    return this.registries
      .createQueryBuilder()
      .update()
      .set({ collectionJobId: jobId })
      .where({ id, collectionJobId: last ?? IsNull() })
      .andWhere(sql, parameters);
  }

  /** A job that was retried is the only garbage collection again. Throws `collection_running`. */
  async retake(jobId: string): Promise<void> {
    if ((await this.rows.load()).collectionJobId === jobId) return;
    const { affected } = await (await this.claim(jobId)).execute();
    if (affected === 0) throw new AppError('collection_running', { detail: 'another one was begun' });
  }

  /** Whether this garbage collection keeps others away. Of a job that has ended the mark counts no more. */
  async setCollecting(jobId: string, isCollecting: boolean): Promise<void> {
    await this.registries.update({ id, collectionJobId: jobId }, { collectingJobId: isCollecting ? jobId : null });
  }

  /** Whether a job has not ended. */
  async isOpen(jobId: string): Promise<boolean> {
    const job = await this.jobs.find(jobId);
    return job !== undefined && !isEnded(job.state);
  }
}
