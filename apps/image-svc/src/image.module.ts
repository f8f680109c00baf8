import { ServiceClients } from '@airdock/clients/service-clients';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { BundleController } from './bundle/bundle.controller.js';
import { BundleEntity } from './bundle/bundle.entity.js';
import { BundleService, readBundleJobType } from './bundle/bundle.service.js';
import { Housekeeping } from './housekeeping.js';
import { CatalogueService, rebuildJobType } from './image/catalogue.service.js';
import { ImageController } from './image/image.controller.js';
import { ImageEntity, ImageNameEntity } from './image/image.entity.js';
import { ImageService } from './image/image.service.js';
import { ImageUsersService } from './image/image-users.service.js';
import { LocalNamesService } from './image/local-names.service.js';
import { imageMigrations } from './image.migrations.js';
import { imageState } from './image.state.js';
import { ImageSetController } from './image-set/image-set.controller.js';
import { ImageSetEntity } from './image-set/image-set.entity.js';
import { ImageSetService } from './image-set/image-set.service.js';
import { PushController } from './push/push.controller.js';
import { PushEntity } from './push/push.entity.js';
import { PushService, pushJobType } from './push/push.service.js';
import { PushSpaceService } from './push/push-space.service.js';
import { PushPlanService } from './push-plan/push-plan.service.js';
import { UploadController } from './upload/upload.controller.js';
import { UploadService } from './upload/upload.service.js';
import { VerificationController } from './verification/verification.controller.js';
import { VerificationEntity } from './verification/verification.entity.js';
import { VerificationService, verifyJobType } from './verification/verification.service.js';

/** Bundles in, pushes, the catalogue, and which images something needs. */
@Module({})
export class ImageModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: ImageModule,
      name: 'image',
      entities: [BundleEntity, PushEntity, ImageEntity, ImageNameEntity, ImageSetEntity, VerificationEntity],
      migrations: imageMigrations,
      controllers: [
        UploadController,
        BundleController,
        PushController,
        ImageController,
        ImageSetController,
        VerificationController,
      ],
      providers: [
        ...serviceClientsProvider(ServiceClients),
        UploadService,
        LocalNamesService,
        BundleService,
        PushPlanService,
        PushSpaceService,
        PushService,
        ImageService,
        CatalogueService,
        ImageSetService,
        { provide: ImageUsersService, useExisting: ImageSetService },
        VerificationService,
      ],
      workers: [Housekeeping],
      history: [PushEntity, VerificationEntity],
      jobTypes: [readBundleJobType, pushJobType, rebuildJobType, verifyJobType],
      state: imageState,
    });
  }
}
