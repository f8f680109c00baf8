import { Operation } from '@airdock/platform/http/operation';
import type { Page } from '@airdock/platform/http/page';
import { Controller, Get, Param, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { Image, ImageListQuery, ImagePage } from './image.schema.js';
import { ImageService } from './image.service.js';

@ApiTags('images')
@Controller({ path: 'images', version: '1' })
export class ImageController {
  constructor(private readonly images: ImageService) {}

  @Get()
  @Operation({ id: 'listImages', summary: 'Images that were pushed, newest first', returns: ImagePage })
  list(@Query({ schema: ImageListQuery }) query: ImageListQuery): Promise<Page<Image>> {
    return this.images.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getImage', summary: 'One image', returns: Image })
  get(@Param('id') id: string): Promise<Image> {
    return this.images.get(id);
  }
}
