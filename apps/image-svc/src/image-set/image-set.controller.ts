import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import type { Page } from '@airdock/platform/http/page';
import { Body, Controller, Delete, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import {
  CreateImageSet,
  DeleteImageSetQuery,
  ImageSet,
  ImageSetListQuery,
  ImageSetPage,
  MissingImages,
} from './image-set.schema.js';
import { ImageSetService } from './image-set.service.js';

@ApiTags('image-sets')
@Controller({ path: 'image-sets', version: '1' })
export class ImageSetController {
  constructor(private readonly imageSets: ImageSetService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createImageSet',
    summary: 'Define which images a Kubernetes version or an add-on needs',
    returns: ImageSet,
    status: 201,
  })
  create(@Body({ schema: CreateImageSet }) body: CreateImageSet): Promise<ImageSet> {
    return this.imageSets.create(body);
  }

  @Get()
  @Operation({ id: 'listImageSets', summary: 'Image sets, newest first', returns: ImageSetPage })
  list(@Query({ schema: ImageSetListQuery }) query: ImageSetListQuery): Promise<Page<ImageSet>> {
    return this.imageSets.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getImageSet', summary: 'One image set', returns: ImageSet })
  get(@Param('id') id: string): Promise<ImageSet> {
    return this.imageSets.get(id);
  }

  @Get(':id/missing')
  @Operation({
    id: 'getMissingImages',
    summary: 'Which images of the set the registry cannot serve now, and which bundles contain them',
    returns: MissingImages,
  })
  missing(@Param('id') id: string): Promise<MissingImages> {
    return this.imageSets.missing(id);
  }

  @Delete(':id')
  @Operation({ id: 'deleteImageSet', summary: 'Forget an image set; the images stay' })
  remove(@Param('id') id: string, @Query({ schema: DeleteImageSetQuery }) query: DeleteImageSetQuery): Promise<void> {
    return this.imageSets.remove(id, query);
  }
}
