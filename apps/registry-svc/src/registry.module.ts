import { ServiceClients } from '@airdock/clients/service-clients';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { CONFIG, type Config } from '@airdock/platform/config';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { DuUpgradeActions } from './du-upgrade/du-upgrade.actions.js';
import { DuUpgradeController } from './du-upgrade/du-upgrade.controller.js';
import { DuUpgradeData } from './du-upgrade/du-upgrade.data.js';
import { DuUpgradeEngine } from './du-upgrade/du-upgrade.engine.js';
import { DuUpgradeEntity } from './du-upgrade/du-upgrade.entity.js';
import { DuUpgradePreflight } from './du-upgrade/du-upgrade.preflight.js';
import { DuUpgradeRecovery } from './du-upgrade/du-upgrade.recovery.js';
import { DuUpgradeRows } from './du-upgrade/du-upgrade.rows.js';
import { DuUpgradeService, upgradeJobType } from './du-upgrade/du-upgrade.service.js';
import { GarbageCollectionController } from './garbage-collection/garbage-collection.controller.js';
import { GarbageCollectionEntity } from './garbage-collection/garbage-collection.entity.js';
import { collectJobType, GarbageCollectionService } from './garbage-collection/garbage-collection.service.js';
import { RegistryUsers } from './garbage-collection/registry-users.service.js';
import { CollectionClaimService } from './registry/collection-claim.service.js';
import { ExternalRegistryService } from './registry/external-registry.service.js';
import { RegistryController } from './registry/registry.controller.js';
import { RegistryEntity } from './registry/registry.entity.js';
import { applyJobType, RegistryService } from './registry/registry.service.js';
import { RegistryRowService } from './registry/registry-row.service.js';
import { StorageService } from './registry/storage.service.js';
import { registryMigrations } from './registry.migrations.js';
import { RegistryEngineService } from './registry-engine/registry-engine.service.js';
import { RegistryWatchService } from './registry-engine/registry-watch.service.js';
import { SecretsKeyController } from './secrets-key/secrets-key.controller.js';
import { rotateSecretsKeyJobType, SecretsKeyService } from './secrets-key/secrets-key.service.js';
import { DiskReserves } from './upkeep/disk-reserves.js';
import { RegistryUpkeep } from './upkeep/registry-upkeep.js';

const targets = {
  provide: OutboundTargets,
  inject: [CONFIG],
  useFactory: ({ registry }: Config) =>
    new OutboundTargets(registry.allowedHosts, {
      code: 'registry_target_forbidden',
      key: 'airdock.registry.allowedHosts',
    }),
};

/** The registry's life: off and on, health, storage, garbage collection, and upgrades of the DU. */
@Module({})
export class RegistryModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: RegistryModule,
      name: 'registry',
      entities: [RegistryEntity, GarbageCollectionEntity, DuUpgradeEntity],
      migrations: registryMigrations,
      controllers: [SecretsKeyController, RegistryController, GarbageCollectionController, DuUpgradeController],
      providers: [
        ...serviceClientsProvider(ServiceClients),
        targets,
        StorageService,
        RegistryRowService,
        ExternalRegistryService,
        CollectionClaimService,
        RegistryService,
        RegistryEngineService,
        RegistryWatchService,
        RegistryUsers,
        GarbageCollectionService,
        DuUpgradeRows,
        DuUpgradeEngine,
        DuUpgradePreflight,
        DuUpgradeData,
        DuUpgradeActions,
        DuUpgradeService,
        SecretsKeyService,
      ],
      workers: [RegistryUpkeep, DiskReserves, DuUpgradeRecovery],
      jobTypes: [applyJobType, collectJobType, upgradeJobType, rotateSecretsKeyJobType],
      history: [GarbageCollectionEntity],
      noticeSource: RegistryWatchService,
    });
  }
}
