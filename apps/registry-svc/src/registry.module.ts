import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { GarbageCollectionController } from './garbage-collection/garbage-collection.controller.js';
import { GarbageCollectionEntity } from './garbage-collection/garbage-collection.entity.js';
import { GarbageCollectionProcessor } from './garbage-collection/garbage-collection.processor.js';
import { collectJobType, GarbageCollectionService } from './garbage-collection/garbage-collection.service.js';
import { RegistryUsers } from './garbage-collection/registry-users.service.js';
import { RegistryController } from './registry/registry.controller.js';
import { RegistryEntity } from './registry/registry.entity.js';
import { RegistryProcessor, RegistrySupervisor } from './registry/registry.processor.js';
import { applyJobType, RegistryService } from './registry/registry.service.js';

/** The registry's life: off and on, health, storage, garbage collection. */
@Module({})
export class RegistryModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: RegistryModule,
      name: 'registry',
      entities: [RegistryEntity, GarbageCollectionEntity],
      controllers: [RegistryController, GarbageCollectionController],
      providers: [serviceClientsProvider(ServiceClients), RegistryService, RegistryUsers, GarbageCollectionService],
      workers: [RegistryProcessor, RegistrySupervisor, GarbageCollectionProcessor],
      jobTypes: [applyJobType, collectJobType],
    });
  }
}
