import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { createClusterJobType } from './cluster.service.js';
import { CreateClusterService } from './create-cluster.service.js';

@JobType(createClusterJobType, 4)
export class CreateClusterProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly creation: CreateClusterService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.creation.run(context);
  }
}
