import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateRestore, Restore, RestorePage } from './restore.schema.js';
import { RestoreService } from './restore.service.js';

@ApiTags('restores')
@Controller({ path: 'restores', version: '1' })
export class RestoreController {
  constructor(private readonly restores: RestoreService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createRestore',
    summary: 'Bring the content of a backup back into the registry',
    returns: Job,
    status: 202,
  })
  create(@Body({ schema: CreateRestore }) body: CreateRestore, @JobRequest() request: JobRequest): Promise<Job> {
    return this.restores.create(request, body);
  }

  @Get()
  @Operation({ id: 'listRestores', summary: 'Restores, newest first', returns: RestorePage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<Restore>> {
    return this.restores.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getRestore', summary: 'One restore', returns: Restore })
  get(@Param('id') id: string): Promise<Restore> {
    return this.restores.get(id);
  }
}
