import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { planUpgradeJobType, UpgradeService, upgradeJobType } from './upgrade.service.js';
import { UpgradeCluster } from './upgrade-cluster.service.js';

/** Upgrades wait most of their time; many may run beside each other. */
@JobType(upgradeJobType, 16)
export class UpgradeProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly upgrade: UpgradeCluster,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.upgrade.run(context);
  }
}

/** The plan was made when it was asked for. */
@JobType(planUpgradeJobType)
export class PlanUpgradeProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly upgrades: UpgradeService,
  ) {
    super(jobs);
  }

  protected async run({ resourceId }: JobContext) {
    const { plan } = await this.upgrades.row(resourceId);
    return { plan };
  }
}
