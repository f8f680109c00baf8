import { AppError } from '@airdock/core/errors';
import { CONFIG, type Config } from '@airdock/platform/config';
import { isEnded } from '@airdock/platform/jobs/job.schema';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { LessThan, Not, type Repository } from 'typeorm';
import { PushPlanService } from '../push-plan/push-plan.service.js';
import { PushEntity } from './push.entity.js';

/** Space on the registry's disk, promised to a push before its first byte. All numbers are bytes. */
@Injectable()
export class PushSpaceService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(PushEntity, 'image') private readonly pushes: Repository<PushEntity>,
    private readonly jobs: JobsService,
    private readonly plans: PushPlanService,
  ) {}

  /** Of pushes that run at the same time the earlier ones go first. Throws `space_insufficient` with the numbers. */
  async reserve(pushId: string, missingBytes: number, folder: string): Promise<void> {
    await this.pushes.update({ id: pushId }, { reservedBytes: String(missingBytes) });
    const earlier = await this.pushes.findBy({ id: LessThan(pushId), reservedBytes: Not('0') });
    const jobs = await this.jobs.byIds(earlier.map(({ jobId }) => jobId));
    const promisedBytes = earlier.reduce((sum, { jobId, reservedBytes }) => {
      const job = jobs.get(jobId);
      return job && !isEnded(job.state)
        ? sum + Math.ceil(Number(reservedBytes) * (1 - job.progress.percent / 100))
        : sum;
    }, 0);
    const freeBytes = await this.plans.freeBytes(folder);
    if (missingBytes + promisedBytes <= freeBytes) return;
    throw new AppError('space_insufficient', {
      detail: `the push needs ${missingBytes} bytes, other pushes ${promisedBytes}; the disk of ${folder} has ${freeBytes} that may be used`,
      missingBytes,
      promisedBytes,
      freeBytes,
      minFreeBytes: this.config.registry.minFreeBytes,
    });
  }

  async release(pushId: string): Promise<void> {
    await this.pushes.update({ id: pushId }, { reservedBytes: '0' });
  }
}
