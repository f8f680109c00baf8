import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { CatalogueService, rebuildJobType } from './catalogue.service.js';

@JobType(rebuildJobType)
export class CatalogueProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly catalogue: CatalogueService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.catalogue.rebuild(context);
  }
}
