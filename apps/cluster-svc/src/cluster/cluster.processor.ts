import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { ClusterService, createClusterJobType } from './cluster.service.js';

@JobType(createClusterJobType)
export class CreateClusterProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly clusters: ClusterService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.clusters.run(context);
  }
}
