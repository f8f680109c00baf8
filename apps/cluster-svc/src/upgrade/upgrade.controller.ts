import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateUpgrade, Upgrade, UpgradePage } from './upgrade.schema.js';
import { UpgradeService } from './upgrade.service.js';

@ApiTags('upgrades')
@Controller({ path: 'clusters/:clusterId/upgrades', version: '1' })
export class UpgradeController {
  constructor(private readonly upgrades: UpgradeService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createClusterUpgrade',
    summary: 'Upgrade a cluster, or with dryRun tell the plan; one from before the registry joins it by this',
    returns: Job,
    status: 202,
  })
  create(
    @Param('clusterId') clusterId: string,
    @Body({ schema: CreateUpgrade }) body: CreateUpgrade,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.upgrades.create(clusterId, request, body);
  }

  @Get()
  @Operation({ id: 'listClusterUpgrades', summary: 'Upgrades of a cluster, newest first', returns: UpgradePage })
  list(@Param('clusterId') clusterId: string, @Query({ schema: PageQuery }) query: PageQuery): Promise<Page<Upgrade>> {
    return this.upgrades.list(clusterId, query);
  }

  @Get(':id')
  @Operation({ id: 'getClusterUpgrade', summary: 'One upgrade: its plan, and how far each node is', returns: Upgrade })
  get(@Param('clusterId') clusterId: string, @Param('id') id: string): Promise<Upgrade> {
    return this.upgrades.get(clusterId, id);
  }

  @Post(':id/pause')
  @Operation({
    id: 'pauseClusterUpgrade',
    summary: 'Hold the upgrade before its next node',
    returns: Upgrade,
    status: 200,
  })
  pause(@Param('clusterId') clusterId: string, @Param('id') id: string): Promise<Upgrade> {
    return this.upgrades.setPaused(clusterId, id, true);
  }

  @Post(':id/resume')
  @Operation({ id: 'resumeClusterUpgrade', summary: 'Let a paused upgrade go on', returns: Upgrade, status: 200 })
  resume(@Param('clusterId') clusterId: string, @Param('id') id: string): Promise<Upgrade> {
    return this.upgrades.setPaused(clusterId, id, false);
  }
}
