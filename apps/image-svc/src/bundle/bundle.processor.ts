import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { BundleService, readBundleJobType } from './bundle.service.js';

@JobType(readBundleJobType)
export class BundleProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly bundles: BundleService,
  ) {
    super(jobs);
  }

  protected async run(context: JobContext) {
    return this.bundles.read(context.resourceId, context);
  }
}
