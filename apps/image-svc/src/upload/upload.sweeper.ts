import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { UploadService } from './upload.service.js';

/** Runs in workers: abandoned uploads must not fill the disk. */
@Injectable()
export class UploadSweeper extends BackgroundLoop {
  protected readonly pauseMs = 60 * 60 * 1000;

  constructor(private readonly uploads: UploadService) {
    super();
  }

  protected async round(): Promise<void> {
    const removed = await this.uploads.sweep();
    if (removed > 0) this.logger.log(`${removed} abandoned uploads removed`);
  }
}
