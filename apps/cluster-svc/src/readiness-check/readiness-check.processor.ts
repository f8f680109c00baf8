import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { ReadinessCheckService, readinessCheckJobType } from './readiness-check.service.js';

@JobType(readinessCheckJobType, 4)
export class ReadinessCheckProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly checks: ReadinessCheckService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.checks.run(context);
  }
}
