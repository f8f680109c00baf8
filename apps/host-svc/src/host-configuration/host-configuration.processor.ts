import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Injectable } from '@nestjs/common';
import { ConfigureFleet, configureHostJobType } from './configure-fleet.service.js';
import { hostConfigurationJobType } from './host-configuration.service.js';

/** Runs rollouts and, for each host of one, a job of its own. */
@Injectable()
export class HostConfigurationProcessor {
  constructor(private readonly fleet: ConfigureFleet) {}

  /** Waits most of its time; many may run beside each other. The failure is of a host, whose own job has tried. */
  @RunsJob(hostConfigurationJobType, { concurrency: 16, maxFailures: 1 })
  run(context: JobContext): Promise<Record<string, unknown>> {
    return this.fleet.run(context);
  }

  /** Whoever asks wants to know at once that a host cannot be reached. */
  @RunsJob(configureHostJobType, { concurrency: 64, maxFailures: 1 })
  runHost(context: JobContext): Promise<Record<string, unknown>> {
    return this.fleet.runHost(context);
  }
}
