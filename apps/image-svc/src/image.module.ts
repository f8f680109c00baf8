import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { BundleController } from './bundle/bundle.controller.js';
import { BundleEntity } from './bundle/bundle.entity.js';
import { BundleProcessor } from './bundle/bundle.processor.js';
import { BundleService, readBundleJobType } from './bundle/bundle.service.js';
import { Housekeeping } from './bundle/housekeeping.js';
import { ImageController } from './image/image.controller.js';
import { ImageEntity, ImageNameEntity } from './image/image.entity.js';
import { ImageService } from './image/image.service.js';
import { ImageSetController } from './image-set/image-set.controller.js';
import { ImageSetEntity } from './image-set/image-set.entity.js';
import { ImageSetService } from './image-set/image-set.service.js';
import { PushController } from './push/push.controller.js';
import { PushEntity } from './push/push.entity.js';
import { PushProcessor } from './push/push.processor.js';
import { PushService, pushJobType } from './push/push.service.js';
import { UploadController } from './upload/upload.controller.js';
import { UploadService } from './upload/upload.service.js';

/** Bundles in, pushes, the catalogue, and which images something needs. */
@Module({})
export class ImageModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: ImageModule,
      name: 'image',
      entities: [BundleEntity, PushEntity, ImageEntity, ImageNameEntity, ImageSetEntity],
      controllers: [UploadController, BundleController, PushController, ImageController, ImageSetController],
      providers: [serviceClientsProvider(ServiceClients), UploadService, BundleService, PushService, ImageService, ImageSetService],
      workers: [BundleProcessor, PushProcessor, Housekeeping],
      jobTypes: [readBundleJobType, pushJobType],
    });
  }
}
