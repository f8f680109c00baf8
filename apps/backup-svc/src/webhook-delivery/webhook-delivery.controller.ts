import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Controller, Get, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { WebhookDelivery, WebhookDeliveryPage } from './webhook-delivery.schema.js';
import { WebhookDeliveryService } from './webhook-delivery.service.js';

@ApiTags('webhook-deliveries')
@Controller({ path: 'webhook-deliveries', version: '1' })
export class WebhookDeliveryController {
  constructor(private readonly deliveries: WebhookDeliveryService) {}

  @Get()
  @Operation({ id: 'listWebhookDeliveries', summary: 'Deliveries, newest first', returns: WebhookDeliveryPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<WebhookDelivery>> {
    return this.deliveries.list(query);
  }
}
