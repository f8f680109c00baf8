import { BackgroundLoop } from '@airdock/platform/background-loop';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { Injectable } from '@nestjs/common';
import { DuUpgradeService, upgradeJobType } from './du-upgrade.service.js';

/** Runs upgrades, and finds the one that a file tells of and no table: the DU has lost its tables on the way. */
@Injectable()
export class DuUpgradeProcessor extends BackgroundLoop {
  protected readonly pauseMs = 60_000;

  constructor(private readonly upgrades: DuUpgradeService) {
    super();
  }

  @RunsJob(upgradeJobType, { concurrency: 1 })
  upgrade(context: JobContext): Promise<Record<string, unknown>> {
    return this.upgrades.run(context);
  }

  protected round(): Promise<void> {
    return this.upgrades.recover();
  }
}
