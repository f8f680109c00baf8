import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { PushService, pushJobType } from './push.service.js';

@JobType(pushJobType)
export class PushProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly pushes: PushService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.pushes.run(context);
  }
}
