import { Internal } from '@airdock/platform/http/access';
import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import type { Page } from '@airdock/platform/http/page';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import {
  WebhookDelivery,
  WebhookDeliveryLog,
  WebhookDeliveryPage,
  WebhookDeliveryQuery,
  WebhookEvent,
} from './webhook-delivery.schema.js';
import { WebhookDeliveryService } from './webhook-delivery.service.js';

@ApiTags('webhook-deliveries')
@Controller({ path: 'webhook-deliveries', version: '1' })
export class WebhookDeliveryController {
  constructor(private readonly deliveries: WebhookDeliveryService) {}

  @Get()
  @Operation({ id: 'listWebhookDeliveries', summary: 'Deliveries, newest first', returns: WebhookDeliveryPage })
  list(@Query({ schema: WebhookDeliveryQuery }) query: WebhookDeliveryQuery): Promise<Page<WebhookDelivery>> {
    return this.deliveries.list(query);
  }

  @Get(':id')
  @Operation({
    id: 'getWebhookDelivery',
    summary: 'One delivery with its last request and response, and all attempts',
    returns: WebhookDeliveryLog,
  })
  get(@Param('id') id: string): Promise<WebhookDeliveryLog> {
    return this.deliveries.get(id);
  }

  @Post(':id/redeliver')
  @Idempotent()
  @Operation({
    id: 'redeliverWebhook',
    summary: 'Send an event once more, in a delivery of its own',
    returns: WebhookDelivery,
    status: 202,
  })
  redeliver(@Param('id') id: string): Promise<WebhookDelivery> {
    return this.deliveries.redeliver(id);
  }
}

@ApiTags('webhook-endpoints')
@Controller({ path: 'webhook-endpoints/:id/pings', version: '1' })
export class WebhookPingController {
  constructor(private readonly deliveries: WebhookDeliveryService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'pingWebhookEndpoint',
    summary: 'Try an endpoint out with one webhook.ping; the delivery tells how it went',
    returns: WebhookDelivery,
    status: 202,
  })
  ping(@Param('id') id: string): Promise<WebhookDelivery> {
    return this.deliveries.ping(id);
  }
}

@ApiTags('webhook-deliveries')
@Controller({ path: 'webhook-events', version: '1' })
export class WebhookEventController {
  constructor(private readonly deliveries: WebhookDeliveryService) {}

  @Post()
  @Internal()
  @Operation({
    id: 'createWebhookEvent',
    summary: 'Tell endpoints of something: for the services of Airdock, which may say it twice',
    status: 204,
  })
  accept(@Body({ schema: WebhookEvent }) body: WebhookEvent): Promise<void> {
    return this.deliveries.accept(body);
  }
}
