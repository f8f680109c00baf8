import { BackgroundLoop } from '@airdock/platform/background-loop';
import { CONFIG, type Config } from '@airdock/platform/config';
import type { DiskReserve } from '@airdock/platform/disk-reserve';
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
  private readonly reserves = new Map<string, DiskReserve>();

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly registry: RegistryService,
    private readonly storage: StorageService,
  ) {
    super();
  }

  protected async round(): Promise<void> {
    const data = this.kept(dataReserve(this.config));
    await data.keep();
    if (!(await this.registry.ownsStorage())) return;
    // Where both share a disk it is the same one.
    const storage = this.kept(await this.storage.reserve());
    if (storage !== data) await storage.keep();
  }

  /** The same object in each round: it knows what it has seen. */
  private kept(reserve: DiskReserve): DiskReserve {
    const known = this.reserves.get(reserve.folder) ?? reserve;
    this.reserves.set(known.folder, known);
    return known;
  }
}
