import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { VerificationService, verifyJobType } from './verification.service.js';

@JobType(verifyJobType)
export class VerificationProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly verifications: VerificationService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.verifications.run(context);
  }
}
