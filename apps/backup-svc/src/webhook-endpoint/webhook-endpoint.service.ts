import { randomBytes } from 'node:crypto';
import { AppError } from '@airdock/core/errors';
import { now } from '@airdock/platform/database';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { SecretBox } from '@airdock/platform/secrets';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { WebhookEndpointEntity } from './webhook-endpoint.entity.js';
import type { CreatedWebhookEndpoint, CreateWebhookEndpoint, WebhookEndpoint } from './webhook-endpoint.schema.js';

/** Who wants to hear of what. */
@Injectable()
export class WebhookEndpointService {
  constructor(
    @InjectRepository(WebhookEndpointEntity, 'backup') private readonly endpoints: Repository<WebhookEndpointEntity>,
    private readonly secrets: SecretBox,
  ) {}

  /** Throws `webhook_target_forbidden`. */
  async create({ url, events }: CreateWebhookEndpoint): Promise<CreatedWebhookEndpoint> {
    const target = URL.parse(url);
    if (!target || !['http:', 'https:'].includes(target.protocol) || target.username || target.password)
      throw new AppError('webhook_target_forbidden', { detail: 'the URL must be http or https, without user and password' });
    const id = newId();
    const secret = `whsec_${randomBytes(32).toString('base64')}`;
    const row = { id, url: target.href, events, sealedSecret: this.secrets.seal(secret, id), createdAt: now() };
    await this.endpoints.insert(row);
    return { ...row, secret };
  }

  list(query: PageQuery): Promise<Page<WebhookEndpoint>> {
    return findPage(this.endpoints, query) as Promise<Page<WebhookEndpoint>>;
  }

  async remove(id: string): Promise<void> {
    await getRow(this.endpoints, id);
    await this.endpoints.delete({ id });
  }

  /** The endpoints that wanted this kind of event when it happened. */
  async subscribed(eventType: string, at: string): Promise<{ id: string }[]> {
    return (await this.endpoints.find()).filter(({ events, createdAt }) => events.includes(eventType) && createdAt <= at);
  }

  /** Address and secret for one delivery; undefined when the endpoint is gone. */
  async target(id: string): Promise<{ url: string; secret: string } | undefined> {
    const row = await this.endpoints.findOneBy({ id });
    return row ? { url: row.url, secret: this.secrets.open(row.sealedSecret, row.id) } : undefined;
  }
}
