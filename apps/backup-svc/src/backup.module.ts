import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { OutboundPost } from '@airdock/adapters/http/outbound-post';
import { CONFIG, type Config } from '@airdock/platform/config';
import { defineService, type Roles } from '@airdock/platform/service';
import { serviceClientsProvider } from '@airdock/platform/service-clients';
import { type DynamicModule, Module } from '@nestjs/common';
import { BackupController } from './backup/backup.controller.js';
import { BackupEntity } from './backup/backup.entity.js';
import { BackupProcessor } from './backup/backup.processor.js';
import { BackupService, backupJobType } from './backup/backup.service.js';
import { RestoreController } from './restore/restore.controller.js';
import { RestoreEntity } from './restore/restore.entity.js';
import { RestoreProcessor } from './restore/restore.processor.js';
import { RestoreService, restoreJobType } from './restore/restore.service.js';
import { WebhookDeliveryController, WebhookEventController, WebhookPingController } from './webhook-delivery/webhook-delivery.controller.js';
import { WebhookDeliveryEntity, WebhookEventEntity } from './webhook-delivery/webhook-delivery.entity.js';
import { WebhookDeliveryService } from './webhook-delivery/webhook-delivery.service.js';
import { WebhookDispatcher } from './webhook-delivery/webhook-dispatcher.js';
import { WebhookEndpointController } from './webhook-endpoint/webhook-endpoint.controller.js';
import { WebhookEndpointEntity } from './webhook-endpoint/webhook-endpoint.entity.js';
import { WebhookEndpointService } from './webhook-endpoint/webhook-endpoint.service.js';

const outbound = { provide: OutboundPost, inject: [CONFIG], useFactory: ({ webhooks }: Config) => new OutboundPost(webhooks.allowedHosts) };

/** Backups and restores of the registry's content, and the events that tell of them. */
@Module({})
export class BackupModule {
  static register(roles: Roles): DynamicModule {
    return defineService(roles, {
      module: BackupModule,
      name: 'backup',
      entities: [BackupEntity, RestoreEntity, WebhookEndpointEntity, WebhookEventEntity, WebhookDeliveryEntity],
      controllers: [BackupController, RestoreController, WebhookEndpointController, WebhookDeliveryController, WebhookPingController, WebhookEventController],
      providers: [serviceClientsProvider(ServiceClients), outbound, BackupService, RestoreService, WebhookEndpointService, WebhookDeliveryService],
      workers: [BackupProcessor, RestoreProcessor, WebhookDispatcher],
      jobTypes: [backupJobType, restoreJobType],
    });
  }
}
