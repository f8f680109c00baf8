import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Body, Controller, Delete, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreatedWebhookEndpoint, CreateWebhookEndpoint, WebhookEndpoint, WebhookEndpointPage } from './webhook-endpoint.schema.js';
import { WebhookEndpointService } from './webhook-endpoint.service.js';

@ApiTags('webhook-endpoints')
@Controller({ path: 'webhook-endpoints', version: '1' })
export class WebhookEndpointController {
  constructor(private readonly endpoints: WebhookEndpointService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createWebhookEndpoint',
    summary: 'Have events sent to a URL, signed as Standard Webhooks says',
    returns: CreatedWebhookEndpoint,
    status: 201,
  })
  create(@Body({ schema: CreateWebhookEndpoint }) body: CreateWebhookEndpoint): Promise<CreatedWebhookEndpoint> {
    return this.endpoints.create(body);
  }

  @Get()
  @Operation({ id: 'listWebhookEndpoints', summary: 'Endpoints without their secrets, newest first', returns: WebhookEndpointPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<WebhookEndpoint>> {
    return this.endpoints.list(query);
  }

  @Delete(':id')
  @Operation({ id: 'deleteWebhookEndpoint', summary: 'Send no more events there' })
  remove(@Param('id') id: string): Promise<void> {
    return this.endpoints.remove(id);
  }
}
