import { defineService, type Roles } from '@airdock/platform/service';
import { type DynamicModule, Module } from '@nestjs/common';
import { RegistryController } from './registry/registry.controller.js';
import { RegistryEntity } from './registry/registry.entity.js';
import { RegistryProcessor, RegistrySupervisor } from './registry/registry.processor.js';
import { applyJobType, RegistryService } from './registry/registry.service.js';

/** The registry's life: off and on, health, storage. */
@Module({})
export class RegistryModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: RegistryModule,
      name: 'registry',
      entities: [RegistryEntity],
      controllers: [RegistryController],
      providers: [RegistryService],
      workers: [RegistryProcessor, RegistrySupervisor],
      jobTypes: [applyJobType],
    });
  }
}
