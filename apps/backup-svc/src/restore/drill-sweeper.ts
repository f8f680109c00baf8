import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { RestoreService } from './restore.service.js';

/** Runs in workers: no registry of a drill stays behind. */
@Injectable()
export class DrillSweeper extends BackgroundLoop {
  protected readonly pauseMs = 60_000;

  constructor(private readonly restores: RestoreService) {
    super();
  }

  protected round(): Promise<void> {
    return this.restores.sweepDrills();
  }
}
