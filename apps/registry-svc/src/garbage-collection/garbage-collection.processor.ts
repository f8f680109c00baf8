import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { collectJobType, GarbageCollectionService } from './garbage-collection.service.js';

@JobType(collectJobType, 1)
export class GarbageCollectionProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly collections: GarbageCollectionService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.collections.run(context);
  }
}
