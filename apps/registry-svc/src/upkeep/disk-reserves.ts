import { BackgroundLoop } from '@airdock/platform/background-loop';
import { CONFIG, type Config } from '@airdock/platform/config';
import { dataReserve } from '@airdock/platform/service';
import { Inject, Injectable } from '@nestjs/common';
import { RegistryService } from '../registry/registry.service.js';
import { StorageService } from '../registry/storage.service.js';

/**
 * Keeps room on the disks of the data folder and of the registry's storage, and gives it out when they are full. A loop
 * of its own: no other may hold it up.
 */
@Injectable()
export class DiskReserves extends BackgroundLoop {
  protected readonly pauseMs = 2_000;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly registry: RegistryService,
    private readonly storage: StorageService,
  ) {
    super();
  }

  protected async round(): Promise<void> {
    await dataReserve(this.config).keep();
    if (await this.registry.ownsStorage()) await (await this.storage.reserve()).keep();
  }
}
