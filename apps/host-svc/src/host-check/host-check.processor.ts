import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { HostCheckService, hostCheckJobType } from './host-check.service.js';

/** They wait most of their time, each for its slowest host. */
@JobType(hostCheckJobType, 32)
export class HostCheckProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly hostChecks: HostCheckService,
  ) {
    super(jobs);
  }

  /** Whoever asks wants to know at once that a host cannot be reached. */
  protected override readonly maxFailures = 1;

  protected run(context: JobContext) {
    return this.hostChecks.run(context);
  }
}
