import { BackgroundLoop } from '../background-loop.js';
import type { JobsService } from './jobs.service.js';

/** Runs in workers: jobs whose wake-up or worker was lost are woken up again. */
export class JobSweeper extends BackgroundLoop {
  protected readonly pauseMs = 2_000;

  constructor(private readonly jobs: JobsService) {
    super();
  }

  protected round(): Promise<void> {
    return this.jobs.sweep();
  }
}
