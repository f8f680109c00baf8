import { getRow } from '@airdock/platform/http/page';
import { isEnded } from '@airdock/platform/jobs/job.schema';
import { JobWatch } from '@airdock/platform/jobs/job-watch';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { IsNull, type Repository } from 'typeorm';
import { HostEntity } from './host.entity.js';

/** One job at a time changes a host. */
@Injectable()
export class HostLock {
  constructor(
    @InjectRepository(HostEntity, 'host') private readonly hosts: Repository<HostEntity>,
    private readonly jobs: JobsService,
  ) {}

  /**
   * Waits until the job that holds the lock of the host has ended, and takes the lock. A job holds it to its end, on
   * whichever worker it runs. Throws `resource_not_found`.
   */
  async acquire(hostId: string, jobId: string, signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      const { turnJobId } = await getRow(this.hosts, hostId);
      if (turnJobId === jobId) return;
      const other = turnJobId ? await this.jobs.find(turnJobId) : undefined;
      if (other && !isEnded(other.state)) {
        using watch = new JobWatch(this.jobs, new Set([other.id]));
        await watch.wait(signal);
      } else {
        const { affected } = await this.hosts.update(
          { id: hostId, turnJobId: turnJobId ?? IsNull() },
          { turnJobId: jobId },
        );
        if (affected) return;
      }
    }
  }
}
