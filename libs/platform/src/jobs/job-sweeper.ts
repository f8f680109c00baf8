import { Logger, type OnApplicationBootstrap, type OnApplicationShutdown } from '@nestjs/common';
import type { JobsService } from './jobs.service.js';

const sweepMs = 2_000;

/** Runs in workers: jobs whose wake-up or worker was lost are woken up again. */
export class JobSweeper implements OnApplicationBootstrap, OnApplicationShutdown {
  private readonly logger = new Logger('sweeper');
  private timer: NodeJS.Timeout | undefined;
  private stopped = false;

  constructor(private readonly jobs: JobsService) {}

  onApplicationBootstrap(): void {
    void this.sweep();
  }

  onApplicationShutdown(): void {
    this.stopped = true;
    clearTimeout(this.timer);
  }

  private async sweep(): Promise<void> {
    try {
      await this.jobs.sweep();
    } catch (error) {
      this.logger.warn({ err: error }, 'the job table could not be read; trying again');
    }
    if (!this.stopped) this.timer = setTimeout(() => void this.sweep(), sweepMs);
  }
}
