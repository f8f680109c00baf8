import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { rotateSecretsKeyJobType, SecretsKeyService } from './secrets-key.service.js';

@JobType(rotateSecretsKeyJobType, 1)
export class SecretsKeyProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly secretsKey: SecretsKeyService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext): Promise<Record<string, unknown>> {
    return this.secretsKey.run(context);
  }
}
