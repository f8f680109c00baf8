import { ServiceClients } from '@airdock/clients/service-clients';
import { OutboundPost } from '@airdock/outbound/outbound-post';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { CONFIG, type Config } from '@airdock/platform/config';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { BackupController } from './backup/backup.controller.js';
import { BackupEntity } from './backup/backup.entity.js';
import { BackupService, backupJobType } from './backup/backup.service.js';
import { BackupCatalogue } from './backup/backup-catalogue.js';
import { backupMigrations } from './backup.migrations.js';
import { backupState } from './backup.state.js';
import { BackupOperationController } from './backup-operation/backup-operation.controller.js';
import { BackupOperationEntity } from './backup-operation/backup-operation.entity.js';
import { BackupOperationService, operationJobTypes } from './backup-operation/backup-operation.service.js';
import { BackupScheduleController } from './backup-schedule/backup-schedule.controller.js';
import { BackupScheduleEntity } from './backup-schedule/backup-schedule.entity.js';
import { BackupScheduleService } from './backup-schedule/backup-schedule.service.js';
import { BackupScheduler } from './backup-schedule/backup-scheduler.js';
import { BackupTargetController } from './backup-target/backup-target.controller.js';
import { BackupTargetEntity } from './backup-target/backup-target.entity.js';
import { BackupTargetService } from './backup-target/backup-target.service.js';
import { DrillSweeper } from './restore/drill-sweeper.js';
import { RestoreController } from './restore/restore.controller.js';
import { RestoreEntity } from './restore/restore.entity.js';
import { RestoreService, restoreJobType } from './restore/restore.service.js';
import { SigningKeyController } from './signing-key/signing-key.controller.js';
import { SigningKeyEntity } from './signing-key/signing-key.entity.js';
import { SigningKeyService } from './signing-key/signing-key.service.js';
import {
  WebhookDeliveryController,
  WebhookEventController,
  WebhookPingController,
} from './webhook-delivery/webhook-delivery.controller.js';
import { WebhookDeliveryEntity, WebhookEventEntity } from './webhook-delivery/webhook-delivery.entity.js';
import { WebhookDeliveryService } from './webhook-delivery/webhook-delivery.service.js';
import { WebhookDispatcher } from './webhook-delivery/webhook-dispatcher.js';
import { WebhookEndpointController } from './webhook-endpoint/webhook-endpoint.controller.js';
import { WebhookEndpointEntity } from './webhook-endpoint/webhook-endpoint.entity.js';
import { WebhookEndpointService } from './webhook-endpoint/webhook-endpoint.service.js';

const outbound = {
  provide: OutboundPost,
  inject: [CONFIG],
  useFactory: ({ webhooks }: Config) => new OutboundPost(webhooks.allowedHosts),
};

const targets = {
  provide: OutboundTargets,
  inject: [CONFIG],
  useFactory: ({ registry }: Config) =>
    new OutboundTargets(registry.allowedHosts, {
      code: 'registry_target_forbidden',
      key: 'airdock.registry.allowedHosts',
    }),
};

/** Backups and restores of the registry's content, and the events that tell of them. */
@Module({})
export class BackupModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: BackupModule,
      name: 'backup',
      entities: [
        BackupTargetEntity,
        SigningKeyEntity,
        BackupEntity,
        RestoreEntity,
        BackupOperationEntity,
        BackupScheduleEntity,
        WebhookEndpointEntity,
        WebhookEventEntity,
        WebhookDeliveryEntity,
      ],
      migrations: backupMigrations,
      controllers: [
        BackupTargetController,
        SigningKeyController,
        BackupController,
        RestoreController,
        BackupOperationController,
        BackupScheduleController,
        WebhookEndpointController,
        WebhookDeliveryController,
        WebhookPingController,
        WebhookEventController,
      ],
      providers: [
        ...serviceClientsProvider(ServiceClients),
        outbound,
        SigningKeyService,
        targets,
        BackupTargetService,
        BackupService,
        RestoreService,
        BackupOperationService,
        BackupScheduleService,
        WebhookEndpointService,
        WebhookDeliveryService,
      ],
      workers: [BackupCatalogue, DrillSweeper, BackupScheduler, WebhookDispatcher],
      history: [RestoreEntity, BackupOperationEntity],
      jobTypes: [backupJobType, restoreJobType, ...Object.values(operationJobTypes)],
      state: backupState,
    });
  }
}
