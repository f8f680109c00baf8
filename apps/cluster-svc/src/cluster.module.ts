import { ServiceClients } from '@airdock/clients/service-clients';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { ClusterController } from './cluster/cluster.controller.js';
import { ClusterEntity, ClusterNodeEntity } from './cluster/cluster.entity.js';
import { ClusterService, createClusterJobType } from './cluster/cluster.service.js';
import { ClusterConfigurationService } from './cluster/cluster-configuration.service.js';
import { CreateClusterService } from './cluster/create-cluster.service.js';
import { clusterMigrations } from './cluster.migrations.js';
import { clusterState } from './cluster.state.js';
import { ClusterDefaultsController } from './cluster-defaults/cluster-defaults.controller.js';
import { ClusterDefaultsService } from './cluster-defaults/cluster-defaults.service.js';
import { ClusterFacts } from './cluster-facts/cluster-facts.service.js';
import { ProvisionerService } from './provisioner/provisioner.service.js';
import { ReadinessService } from './readiness/readiness.service.js';
import { ReadinessController } from './readiness-check/readiness-check.controller.js';
import { ReadinessCheckEntity } from './readiness-check/readiness-check.entity.js';
import { ReadinessCheckService, readinessCheckJobType } from './readiness-check/readiness-check.service.js';
import { UpgradeController } from './upgrade/upgrade.controller.js';
import { UpgradeEntity } from './upgrade/upgrade.entity.js';
import { planUpgradeJobType, UpgradeService, upgradeJobType } from './upgrade/upgrade.service.js';
import { UpgradeCluster } from './upgrade/upgrade-cluster.service.js';

/** Clusters: what new ones point at, whether one would stand up, creating and upgrading them. */
@Module({})
export class ClusterModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: ClusterModule,
      name: 'cluster',
      entities: [ClusterEntity, ClusterNodeEntity, ReadinessCheckEntity, UpgradeEntity],
      migrations: clusterMigrations,
      controllers: [ClusterDefaultsController, ClusterController, ReadinessController, UpgradeController],
      providers: [
        ...serviceClientsProvider(ServiceClients),
        ClusterDefaultsService,
        ClusterFacts,
        ReadinessService,
        ProvisionerService,
        ClusterService,
        ClusterConfigurationService,
        CreateClusterService,
        ReadinessCheckService,
        UpgradeService,
        UpgradeCluster,
      ],
      history: [ReadinessCheckEntity, UpgradeEntity],
      jobTypes: [createClusterJobType, readinessCheckJobType, upgradeJobType, planUpgradeJobType],
      // An upgrade ends with the DU that ran it; another one goes on from where its nodes are.
      state: clusterState,
    });
  }
}
