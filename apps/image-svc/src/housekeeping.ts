import { BackgroundLoop } from '@airdock/platform/background-loop';
import { Injectable } from '@nestjs/common';
import { BundleService } from './bundle/bundle.service.js';
import { PushService } from './push/push.service.js';
import { UploadService } from './upload/upload.service.js';

/** Runs in workers: abandoned uploads, and what killed workers left, must not fill the disk. */
@Injectable()
export class Housekeeping extends BackgroundLoop {
  protected readonly pauseMs = 60 * 60 * 1000;

  constructor(
    private readonly uploads: UploadService,
    private readonly bundles: BundleService,
    private readonly pushes: PushService,
  ) {
    super();
  }

  protected async round(): Promise<void> {
    const removed =
      (await this.uploads.sweep((id) => this.bundles.hasUpload(id))) +
      (await this.bundles.sweep()) +
      (await this.pushes.sweep());
    if (removed > 0) this.logger.log(`${removed} abandoned files removed`);
  }
}
