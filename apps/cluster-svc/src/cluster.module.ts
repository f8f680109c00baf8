import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { ClusterController } from './cluster/cluster.controller.js';
import { ClusterEntity, ClusterNodeEntity } from './cluster/cluster.entity.js';
import { CreateClusterProcessor } from './cluster/cluster.processor.js';
import { ClusterService, createClusterJobType } from './cluster/cluster.service.js';
import { ClusterDefaultsController } from './cluster-defaults/cluster-defaults.controller.js';
import { ClusterDefaultsService } from './cluster-defaults/cluster-defaults.service.js';

/** Clusters: what new ones point at, whether one would stand up, and creating it. */
@Module({})
export class ClusterModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: ClusterModule,
      name: 'cluster',
      entities: [ClusterEntity, ClusterNodeEntity],
      controllers: [ClusterDefaultsController, ClusterController],
      providers: [serviceClientsProvider(ServiceClients), ClusterDefaultsService, ClusterService],
      workers: [CreateClusterProcessor],
      jobTypes: [createClusterJobType],
    });
  }
}
