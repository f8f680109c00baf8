import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { DuUpgradeController } from './du-upgrade/du-upgrade.controller.js';
import { DuUpgradeEntity } from './du-upgrade/du-upgrade.entity.js';
import { DuUpgradeProcessor, DuUpgradeRecovery } from './du-upgrade/du-upgrade.processor.js';
import { DuUpgradeService, upgradeJobType } from './du-upgrade/du-upgrade.service.js';
import { RegistryController } from './registry/registry.controller.js';
import { RegistryEntity } from './registry/registry.entity.js';
import { RegistryProcessor, RegistrySupervisor } from './registry/registry.processor.js';
import { applyJobType, RegistryService } from './registry/registry.service.js';

/** The registry's life: off and on, health, storage, and upgrades of the DU. */
@Module({})
export class RegistryModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: RegistryModule,
      name: 'registry',
      entities: [RegistryEntity, DuUpgradeEntity],
      controllers: [RegistryController, DuUpgradeController],
      providers: [serviceClientsProvider(ServiceClients), RegistryService, DuUpgradeService],
      workers: [RegistryProcessor, RegistrySupervisor, DuUpgradeProcessor, DuUpgradeRecovery],
      jobTypes: [applyJobType, upgradeJobType],
    });
  }
}
