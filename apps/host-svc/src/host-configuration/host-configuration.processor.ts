import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { ConfigureFleet, configureHostJobType } from './configure-fleet.service.js';
import { hostConfigurationJobType } from './host-configuration.service.js';

/** Rollouts wait most of their time; many may run beside each other. */
@JobType(hostConfigurationJobType, 16)
export class HostConfigurationProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly fleet: ConfigureFleet,
  ) {
    super(jobs);
  }

  /** The failure is of a host, whose own job has tried. */
  protected override readonly maxFailures = 1;

  protected run(context: JobContext) {
    return this.fleet.run(context);
  }
}

@JobType(configureHostJobType, 64)
export class ConfigureHostProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly fleet: ConfigureFleet,
  ) {
    super(jobs);
  }

  /** Whoever asks wants to know at once that a host cannot be reached. */
  protected override readonly maxFailures = 1;

  protected run(context: JobContext) {
    return this.fleet.runHost(context);
  }
}
