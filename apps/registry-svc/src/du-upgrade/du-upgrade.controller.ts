import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateDuUpgrade, Du, DuUpgrade, DuUpgradePage, FinishDuUpgrade } from './du-upgrade.schema.js';
import { DuUpgradeService } from './du-upgrade.service.js';

@ApiTags('du')
@Controller({ path: 'du', version: '1' })
export class DuUpgradeController {
  constructor(private readonly upgrades: DuUpgradeService) {}

  @Get()
  @Operation({ id: 'getDu', summary: 'Version of the DU, and whether it is being upgraded', returns: Du })
  du(): Promise<Du> {
    return this.upgrades.du();
  }

  @Post('upgrades')
  @Idempotent()
  @Operation({
    id: 'createDuUpgrade',
    summary: 'Carry the registry and all data over an upgrade of the DU, or prepare for one',
    returns: Job,
    status: 202,
  })
  create(@Body({ schema: CreateDuUpgrade }) body: CreateDuUpgrade, @JobRequest() request: JobRequest): Promise<Job> {
    return this.upgrades.create(request, body);
  }

  @Get('upgrades')
  @Operation({ id: 'listDuUpgrades', summary: 'Upgrades of the DU, newest first', returns: DuUpgradePage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<DuUpgrade>> {
    return this.upgrades.list(query);
  }

  @Get('upgrades/:id')
  @Operation({
    id: 'getDuUpgrade',
    summary: 'One upgrade: its phase, what the preflight found, and what was compared',
    returns: DuUpgrade,
  })
  get(@Param('id') id: string): Promise<DuUpgrade> {
    return this.upgrades.get(id);
  }

  @Post('upgrades/:id/finish')
  @Idempotent()
  @Operation({
    id: 'finishDuUpgrade',
    summary: 'Go on with a prepared upgrade: engine, data, comparison, and pushes again',
    returns: Job,
    status: 202,
  })
  finish(
    @Param('id') id: string,
    @Body({ schema: FinishDuUpgrade }) body: FinishDuUpgrade,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.upgrades.finish(request, id, body);
  }

  @Post('upgrades/:id/rollback')
  @Idempotent()
  @Operation({
    id: 'rollBackDuUpgrade',
    summary: 'Undo a prepared or stopped upgrade: the engine of before, all images, pushes again',
    returns: Job,
    status: 202,
  })
  rollBack(@Param('id') id: string, @JobRequest() request: JobRequest): Promise<Job> {
    return this.upgrades.rollBack(request, id);
  }
}
