import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RestoreService, restoreJobType } from './restore.service.js';

@JobType(restoreJobType, 1)
export class RestoreProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly restores: RestoreService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.restores.run(context);
  }
}
