import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Body, Controller, Get, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { WebhookDelivery, WebhookDeliveryPage, WebhookEvent } from './webhook-delivery.schema.js';
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

@ApiTags('webhook-deliveries')
@Controller({ path: 'webhook-events', version: '1' })
export class WebhookEventController {
  constructor(private readonly deliveries: WebhookDeliveryService) {}

  @Post()
  @Operation({ id: 'createWebhookEvent', summary: 'Tell endpoints of something: for the services of Airdock, which may say it twice', status: 204 })
  accept(@Body({ schema: WebhookEvent }) body: WebhookEvent): Promise<void> {
    return this.deliveries.accept(body);
  }
}
