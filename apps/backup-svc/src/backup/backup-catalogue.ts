import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { BackupTargetService } from '../backup-target/backup-target.service.js';
import { BackupService } from './backup.service.js';

/**
 * Runs in workers: finds the backups that others have put into the stores, first of all those of a DU that is not there
 * any more.
 */
@Injectable()
export class BackupCatalogue extends BackgroundLoop {
  protected readonly pauseMs = 60_000;

  constructor(
    private readonly targets: BackupTargetService,
    private readonly backups: BackupService,
  ) {
    super();
  }

  protected async round(): Promise<void> {
    const results = await Promise.allSettled(this.targets.names.map((name) => this.backups.synchronize(name)));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }
}
