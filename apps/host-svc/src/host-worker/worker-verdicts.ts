import { join } from 'node:path';
import { CONFIG, type Config } from '@airdock/platform/config';
import { ownedBy } from '@airdock/platform/jobs/job-claims';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Inject, Injectable, type OnModuleInit } from '@nestjs/common';
import { HostService } from '../host/host.service.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import { findVerdicts } from './worker-verdict.js';

/**
 * Acts on what is known of the workers before this one, before anything here speaks to a host: quarantines whom they
 * died of, and frees what they held.
 */
@Injectable()
export class WorkerVerdicts implements OnModuleInit {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly hosts: HostService,
    private readonly tunnels: TunnelService,
    private readonly jobs: JobsService,
  ) {}

  async onModuleInit(): Promise<void> {
    for (const { value, done } of findVerdicts(join(this.config.dataDir, 'run'))) {
      if (value.hostId) await this.hosts.strike(value.hostId, value.reason, value.at);
      const owners = ownedBy(value.owner);
      await this.tunnels.releaseDead(owners);
      // A quarantine bounds what the named host can do; jobs of others have nothing to do with it.
      await this.jobs.claims.releaseDead(owners, { isExplained: value.hostId !== null });
      done();
    }
  }
}
