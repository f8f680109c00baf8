import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateGarbageCollection, GarbageCollection, GarbageCollectionPage } from './garbage-collection.schema.js';
import { GarbageCollectionService } from './garbage-collection.service.js';

@ApiTags('registry')
@Controller({ path: 'registry/garbage-collections', version: '1' })
export class GarbageCollectionController {
  constructor(private readonly collections: GarbageCollectionService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createGarbageCollection',
    summary: 'Free what nothing in the registry needs, or tell what that would be',
    returns: Job,
    status: 202,
  })
  create(
    @Body({ schema: CreateGarbageCollection }) body: CreateGarbageCollection,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.collections.create(request, body);
  }

  @Get()
  @Operation({
    id: 'listGarbageCollections',
    summary: 'Garbage collections with what they freed, newest first',
    returns: GarbageCollectionPage,
  })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<GarbageCollection>> {
    return this.collections.list(query);
  }

  @Get(':id')
  @Operation({
    id: 'getGarbageCollection',
    summary: 'One garbage collection: estimate, and what was freed',
    returns: GarbageCollection,
  })
  get(@Param('id') id: string): Promise<GarbageCollection> {
    return this.collections.get(id);
  }
}
