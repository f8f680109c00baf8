import { BackgroundLoop } from '@airdock/platform/background-loop';
import { ServiceDatabase } from '@airdock/platform/database';
import { QuietDatabase } from '@airdock/platform/quiet-database';
import { Injectable } from '@nestjs/common';
import { BackupScheduleService } from './backup-schedule.service.js';

/** Runs in workers. */
@Injectable()
export class BackupScheduler extends BackgroundLoop {
  protected readonly pauseMs = 2_000;

  private readonly quiet: QuietDatabase;

  constructor(
    private readonly schedules: BackupScheduleService,
    database: ServiceDatabase,
  ) {
    super();
    this.quiet = new QuietDatabase(database);
  }

  protected round(): Promise<void> {
    return this.quiet.unlessQuiet(async () => (await this.schedules.round()) === 0);
  }
}
