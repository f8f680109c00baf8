import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { NodeOperationService, operateNodeJobType } from './node-operation.service.js';

@JobType(operateNodeJobType, 32)
export class NodeOperationProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly nodeOperations: NodeOperationService,
  ) {
    super(jobs);
  }

  /** Whoever asks wants to know at once that a host cannot be reached. */
  protected override readonly maxFailures = 1;

  protected run(context: JobContext) {
    return this.nodeOperations.run(context);
  }
}
