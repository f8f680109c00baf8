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

  protected async run({ resourceId, signal, progress }: JobContext) {
    progress({ phase: 'read', itemsTotal: 1 });
    const images = await this.bundles.read(resourceId, signal);
    return { images: images.length };
  }
}
