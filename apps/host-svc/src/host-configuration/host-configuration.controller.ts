import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateHostConfiguration, HostConfiguration, HostConfigurationPage } from './host-configuration.schema.js';
import { HostConfigurationService } from './host-configuration.service.js';

@ApiTags('host-configurations')
@Controller({ path: 'host-configurations', version: '1' })
export class HostConfigurationController {
  constructor(private readonly hostConfigurations: HostConfigurationService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createHostConfiguration',
    summary: 'Prepare hosts: checks, tunnel, package repositories, container runtime, images',
    returns: Job,
    status: 202,
  })
  create(
    @Body({ schema: CreateHostConfiguration }) body: CreateHostConfiguration,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.hostConfigurations.create(request, body);
  }

  @Get()
  @Operation({ id: 'listHostConfigurations', summary: 'Configurations, newest first', returns: HostConfigurationPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<HostConfiguration>> {
    return this.hostConfigurations.list(query);
  }

  @Get(':id')
  @Operation({
    id: 'getHostConfiguration',
    summary: 'One configuration with the result of each host',
    returns: HostConfiguration,
  })
  get(@Param('id') id: string): Promise<HostConfiguration> {
    return this.hostConfigurations.get(id);
  }
}
