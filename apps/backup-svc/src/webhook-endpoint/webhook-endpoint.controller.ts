import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Body, Controller, Delete, Get, Param, Patch, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import {
  CreatedWebhookEndpoint,
  CreateWebhookEndpoint,
  PatchWebhookEndpoint,
  RotateWebhookSecret,
  WebhookEndpoint,
  WebhookEndpointPage,
} from './webhook-endpoint.schema.js';
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
  @Operation({
    id: 'listWebhookEndpoints',
    summary: 'Endpoints without their secrets, newest first',
    returns: WebhookEndpointPage,
  })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<WebhookEndpoint>> {
    return this.endpoints.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getWebhookEndpoint', summary: 'One endpoint without its secret', returns: WebhookEndpoint })
  get(@Param('id') id: string): Promise<WebhookEndpoint> {
    return this.endpoints.get(id);
  }

  @Patch(':id')
  @Operation({
    id: 'patchWebhookEndpoint',
    summary: 'Change the URL or the events of an endpoint, disable it or enable it again',
    returns: WebhookEndpoint,
  })
  patch(
    @Param('id') id: string,
    @Body({ schema: PatchWebhookEndpoint }) body: PatchWebhookEndpoint,
  ): Promise<WebhookEndpoint> {
    return this.endpoints.patch(id, body);
  }

  @Post(':id/secret-rotations')
  @Idempotent()
  @Operation({
    id: 'rotateWebhookSecret',
    summary: 'Give an endpoint another secret; both sign for a while',
    returns: CreatedWebhookEndpoint,
    status: 201,
  })
  rotate(
    @Param('id') id: string,
    @Body({ schema: RotateWebhookSecret }) body: RotateWebhookSecret,
  ): Promise<CreatedWebhookEndpoint> {
    return this.endpoints.rotate(id, body);
  }

  @Delete(':id')
  @Operation({ id: 'deleteWebhookEndpoint', summary: 'Send no more events there' })
  remove(@Param('id') id: string): Promise<void> {
    return this.endpoints.remove(id);
  }
}
