import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreatePush, Push, PushPage } from './push.schema.js';
import { PushService } from './push.service.js';

@ApiTags('pushes')
@Controller({ path: 'pushes', version: '1' })
export class PushController {
  constructor(private readonly pushes: PushService) {}

  @Post()
  @Idempotent()
  @Operation({ id: 'createPush', summary: 'Push the images of a bundle into the registry', returns: Job, status: 202 })
  create(@Body({ schema: CreatePush }) body: CreatePush, @JobRequest() request: JobRequest): Promise<Job> {
    return this.pushes.create(request, body);
  }

  @Get()
  @Operation({ id: 'listPushes', summary: 'Pushes, newest first', returns: PushPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<Push>> {
    return this.pushes.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getPush', summary: 'One push with the result of each image', returns: Push })
  get(@Param('id') id: string): Promise<Push> {
    return this.pushes.get(id);
  }
}
