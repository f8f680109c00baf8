import { ServiceClients } from '@airdock/clients/service-clients';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { HostController } from './host/host.controller.js';
import { HostEntity } from './host/host.entity.js';
import { HostService } from './host/host.service.js';
import { HostLock } from './host/host-lock.service.js';
import { HostTunnelService } from './host/host-tunnel.service.js';
import { hostMigrations } from './host.migrations.js';
import { hostState } from './host.state.js';
import { HostCheckController } from './host-check/host-check.controller.js';
import { HostCheckEntity } from './host-check/host-check.entity.js';
import { HostCheckService, hostCheckJobType } from './host-check/host-check.service.js';
import { ConfigureFleet, configureHostJobType } from './host-configuration/configure-fleet.service.js';
import { ConfigureHost } from './host-configuration/configure-host.service.js';
import { DriftSchedule } from './host-configuration/drift.js';
import { HostConfigurationController } from './host-configuration/host-configuration.controller.js';
import {
  ConfiguredHostEntity,
  DriftScheduleEntity,
  HostConfigurationEntity,
} from './host-configuration/host-configuration.entity.js';
import { HostConfigurationService, hostConfigurationJobType } from './host-configuration/host-configuration.service.js';
import { UnconfigureHost } from './host-configuration/unconfigure-host.service.js';
import { HostImageService } from './host-image/host-image.service.js';
import { HostImportController } from './host-import/host-import.controller.js';
import { HostImportService } from './host-import/host-import.service.js';
import { HostProbe } from './host-probe/host-probe.service.js';
import { PullProof } from './host-probe/pull-proof.service.js';
import { WorkerVerdicts } from './host-worker/worker-verdicts.js';
import { NodeOperationController } from './node-operation/node-operation.controller.js';
import { NodeOperationEntity } from './node-operation/node-operation.entity.js';
import { NodeOperationService, operateNodeJobType } from './node-operation/node-operation.service.js';
import { PackageRepositoryController } from './package-repository/package-repository.controller.js';
import { PackageRepositoryService } from './package-repository/package-repository.service.js';
import { PackageServer } from './package-repository/package-server.js';
import { CredentialUsersService } from './ssh-credential/credential-users.service.js';
import { SshCredentialController } from './ssh-credential/ssh-credential.controller.js';
import { SshCredentialEntity } from './ssh-credential/ssh-credential.entity.js';
import { SshCredentialService } from './ssh-credential/ssh-credential.service.js';
import { TunnelController } from './tunnel/tunnel.controller.js';
import { TunnelEntity } from './tunnel/tunnel.entity.js';
import { TunnelService } from './tunnel/tunnel.service.js';
import { TunnelSupervisor } from './tunnel/tunnel.supervisor.js';

/** Hosts over SSH: credentials, checks, configure-hosts, tunnels, packages for them. */
@Module({})
export class HostModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: HostModule,
      name: 'host',
      entities: [
        SshCredentialEntity,
        HostEntity,
        HostCheckEntity,
        HostConfigurationEntity,
        ConfiguredHostEntity,
        DriftScheduleEntity,
        TunnelEntity,
        NodeOperationEntity,
      ],
      migrations: hostMigrations,
      controllers: [
        SshCredentialController,
        HostImportController,
        HostController,
        HostCheckController,
        HostConfigurationController,
        TunnelController,
        PackageRepositoryController,
        NodeOperationController,
      ],
      providers: [
        ...serviceClientsProvider(ServiceClients),
        SshCredentialService,
        HostService,
        { provide: CredentialUsersService, useExisting: HostService },
        HostLock,
        HostImportService,
        TunnelService,
        { provide: HostTunnelService, useExisting: TunnelService },
        HostImageService,
        HostProbe,
        PullProof,
        HostCheckService,
        PackageRepositoryService,
        ConfigureHost,
        UnconfigureHost,
        ConfigureFleet,
        HostConfigurationService,
        NodeOperationService,
      ],
      workers: [WorkerVerdicts, DriftSchedule, TunnelSupervisor, PackageServer],
      history: [HostCheckEntity, NodeOperationEntity],
      jobTypes: [hostCheckJobType, hostConfigurationJobType, configureHostJobType, operateNodeJobType],
      state: hostState,
    });
  }
}
