import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateHostCheck, HostCheck, HostCheckPage } from './host-check.schema.js';
import { HostCheckService } from './host-check.service.js';

@ApiTags('host-checks')
@Controller({ path: 'host-checks', version: '1' })
export class HostCheckController {
  constructor(private readonly hostChecks: HostCheckService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createHostCheck',
    summary: 'Look at hosts, and let them pull; changes nothing',
    returns: Job,
    status: 202,
  })
  create(@Body({ schema: CreateHostCheck }) body: CreateHostCheck, @JobRequest() request: JobRequest): Promise<Job> {
    return this.hostChecks.create(request, body);
  }

  @Get()
  @Operation({ id: 'listHostChecks', summary: 'Checks, newest first', returns: HostCheckPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<HostCheck>> {
    return this.hostChecks.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getHostCheck', summary: 'One check with the result of each host', returns: HostCheck })
  get(@Param('id') id: string): Promise<HostCheck> {
    return this.hostChecks.get(id);
  }
}
