import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import type { Page } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Controller, Delete, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CatalogueService } from './catalogue.service.js';
import {
  DeleteImageQuery,
  DigestParameter,
  type Image,
  ImageDeletion,
  ImageInUse,
  ImageListQuery,
  ImagePage,
} from './image.schema.js';
import { ImageService } from './image.service.js';

@ApiTags('images')
@Controller({ path: 'images', version: '1' })
export class ImageController {
  constructor(
    private readonly images: ImageService,
    private readonly catalogue: CatalogueService,
  ) {}

  @Get()
  @Operation({ id: 'listImages', summary: 'Images in the registry, newest first', returns: ImagePage })
  list(@Query({ schema: ImageListQuery }) query: ImageListQuery): Promise<Page<Image>> {
    return this.images.list(query);
  }

  @Post('rebuild')
  @Idempotent()
  @Operation({
    id: 'rebuildCatalogue',
    summary: 'Make the catalogue anew from what the registry holds',
    returns: Job,
    status: 202,
  })
  rebuild(@JobRequest() request: JobRequest): Promise<Job> {
    return this.catalogue.start(request);
  }

  @Get(':id')
  @Operation({ id: 'getImage', summary: 'One image, and which clusters and image sets need it', returns: ImageInUse })
  get(@Param('id') id: string): Promise<ImageInUse> {
    return this.catalogue.get(id);
  }

  @Delete('by-digest/:digest')
  @Operation({
    id: 'deleteImagesByDigest',
    summary: 'Remove a digest from the registry, with all names that lead to it',
    returns: ImageDeletion,
  })
  removeDigest(
    @Param('digest', { schema: DigestParameter }) digest: string,
    @Query({ schema: DeleteImageQuery }) query: DeleteImageQuery,
  ): Promise<ImageDeletion> {
    return this.catalogue.removeDigest(digest, query);
  }

  @Delete(':id')
  @Operation({
    id: 'deleteImage',
    summary: 'Remove the names of one upstream reference from the registry',
    returns: ImageDeletion,
  })
  remove(
    @Param('id') id: string,
    @Query({ schema: DeleteImageQuery }) query: DeleteImageQuery,
  ): Promise<ImageDeletion> {
    return this.catalogue.remove(id, query);
  }
}
