import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { HostConfigurationService, hostConfigurationJobType } from './host-configuration.service.js';

@JobType(hostConfigurationJobType)
export class HostConfigurationProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly hostConfigurations: HostConfigurationService,
  ) {
    super(jobs);
  }

  /** Whoever asks wants to know at once that a host cannot be reached. */
  protected override readonly maxFailures = 1;

  protected run(context: JobContext) {
    return this.hostConfigurations.run(context);
  }
}
