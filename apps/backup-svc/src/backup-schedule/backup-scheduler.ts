import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { BackupScheduleService } from './backup-schedule.service.js';

/** Runs in workers. */
@Injectable()
export class BackupScheduler extends BackgroundLoop {
  protected readonly pauseMs = 2_000;

  constructor(private readonly schedules: BackupScheduleService) {
    super();
  }

  protected round(): Promise<void> {
    return this.schedules.round();
  }
}
