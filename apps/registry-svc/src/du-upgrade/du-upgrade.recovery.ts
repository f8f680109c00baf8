import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { DuUpgradeService } from './du-upgrade.service.js';

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
