import { BackgroundLoop } from '@airdock/platform/background-loop';
import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { DuUpgradeService, upgradeJobType } from './du-upgrade.service.js';

@JobType(upgradeJobType, 1)
export class DuUpgradeProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly upgrades: DuUpgradeService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.upgrades.run(context);
  }
}

/** Finds the upgrade that a file tells of and no table: the DU has lost its tables on the way. */
@Injectable()
export class DuUpgradeRecovery extends BackgroundLoop {
  protected readonly pauseMs = 60_000;

  constructor(private readonly upgrades: DuUpgradeService) {
    super();
  }

  protected round(): Promise<void> {
    return this.upgrades.recover();
  }
}
