import { randomBytes } from 'node:crypto';
import { AppError } from '@airdock/core/errors';
import { matchesEventFilter } from '@airdock/core/events';
import { OutboundPost } from '@airdock/outbound/outbound-post';
import { now, type Statement } from '@airdock/platform/database';
import { Outbox } from '@airdock/platform/events/outbox';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { SecretBox } from '@airdock/platform/secrets';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { IsNull, LessThanOrEqual, type Repository } from 'typeorm';
import { WebhookEndpointEntity } from './webhook-endpoint.entity.js';
import type {
  CreatedWebhookEndpoint,
  CreateWebhookEndpoint,
  PatchWebhookEndpoint,
  RotateWebhookSecret,
  WebhookEndpoint,
} from './webhook-endpoint.schema.js';

/** Where a delivery goes, and what signs it; only ever in memory. */
export interface WebhookTarget {
  url: string;
  /** The one of now first. */
  secrets: string[];
  isEnabled: boolean;
}

/** Who wants to hear of what. */
@Injectable()
export class WebhookEndpointService {
  constructor(
    @InjectRepository(WebhookEndpointEntity, 'backup') private readonly endpoints: Repository<WebhookEndpointEntity>,
    private readonly secrets: SecretBox,
    private readonly outbound: OutboundPost,
    private readonly outbox: Outbox,
  ) {}

  /** Throws `webhook_target_forbidden`. */
  async create({ url, events, secret = newSecret() }: CreateWebhookEndpoint): Promise<CreatedWebhookEndpoint> {
    const id = newId();
    const row: WebhookEndpointEntity = {
      ...{ id, url: await this.outbound.check(url), events, createdAt: now() },
      ...{ sealedSecret: this.secrets.seal(secret, id), sealedPreviousSecret: null, previousSecretUntil: null },
      ...{ disabledAt: null, disabledReason: null },
    };
    await this.endpoints.insert(row);
    return { ...toResource(row), secret };
  }

  async list(query: PageQuery): Promise<Page<WebhookEndpoint>> {
    const { items, nextCursor } = await findPage(this.endpoints, query);
    return { items: items.map(toResource), nextCursor };
  }

  async get(id: string): Promise<WebhookEndpoint> {
    return toResource(await getRow(this.endpoints, id));
  }

  /** Throws `webhook_target_forbidden`. */
  async patch(id: string, { url, events, enabled }: PatchWebhookEndpoint): Promise<WebhookEndpoint> {
    await getRow(this.endpoints, id);
    const set = {
      ...(url === undefined ? {} : { url: await this.outbound.check(url) }),
      ...(events === undefined ? {} : { events }),
    };
    if (Object.keys(set).length > 0) await this.endpoints.update({ id }, set);
    if (enabled === true) await this.endpoints.update({ id }, { disabledAt: null, disabledReason: null });
    if (enabled === false)
      await this.endpoints.update(
        { id, disabledAt: IsNull() },
        { disabledAt: now(), disabledReason: 'it was switched off' },
      );
    return this.get(id);
  }

  /**
   * A new secret; the one of now goes on signing beside it for a while, the one before that ends. Throws
   * `resource_changed`.
   */
  async rotate(
    id: string,
    { secret = newSecret(), keepPreviousHours }: RotateWebhookSecret,
  ): Promise<CreatedWebhookEndpoint> {
    const { sealedSecret } = await getRow(this.endpoints, id);
    const isKept = keepPreviousHours > 0;
    const { affected } = await this.endpoints.update(
      { id, sealedSecret },
      {
        sealedSecret: this.secrets.seal(secret, id),
        sealedPreviousSecret: isKept ? sealedSecret : null,
        previousSecretUntil: isKept ? new Date(Date.now() + keepPreviousHours * 3_600_000).toISOString() : null,
      },
    );
    if (!affected) throw new AppError('resource_changed', { detail: 'the secret was rotated at the same time' });
    return { ...(await this.get(id)), secret };
  }

  async remove(id: string): Promise<void> {
    await getRow(this.endpoints, id);
    await this.endpoints.delete({ id });
  }

  /** The endpoints that wanted this kind of event when it happened. */
  async subscribed(eventType: string, at: string): Promise<{ id: string }[]> {
    const enabled = await this.endpoints.findBy({ disabledAt: IsNull() });
    return enabled.filter(
      ({ events, createdAt }) => createdAt <= at && events.some((filter) => matchesEventFilter(filter, eventType)),
    );
  }

  /** What one delivery needs; undefined when the endpoint is gone. Throws `secrets_key_invalid`. */
  async target(id: string): Promise<WebhookTarget | undefined> {
    const row = await this.endpoints.findOneBy({ id });
    if (!row) return undefined;
    const previous =
      row.sealedPreviousSecret && row.previousSecretUntil && row.previousSecretUntil > now()
        ? [row.sealedPreviousSecret]
        : [];
    return {
      url: row.url,
      secrets: [row.sealedSecret, ...previous].map((sealed) => this.secrets.open(sealed, id)),
      isEnabled: row.disabledAt === null,
    };
  }

  /**
   * The statements that disable an endpoint and tell the others, for the commit of why. The first changes nothing when
   * it is disabled already, or gone.
   */
  disabling(id: string, url: string, disabledReason: string, deliveryId: string): Statement[] {
    const disable = this.endpoints
      .createQueryBuilder()
      .update()
      .set({ disabledAt: now(), disabledReason })
      .where({ id, disabledAt: IsNull() });
    const endpoint = {
      endpointId: id,
      endpoint: `/v1/webhook-endpoints/${id}`,
      delivery: `/v1/webhook-deliveries/${deliveryId}`,
    };
    // The rest of a URL may be a secret between two others.
    return [
      disable,
      this.outbox.statement('webhook.disabled', { ...endpoint, origin: new URL(url).origin, reason: disabledReason }),
    ];
  }

  /** Forgets secrets that no longer sign. */
  async forgetSecrets(): Promise<void> {
    await this.endpoints.update(
      { previousSecretUntil: LessThanOrEqual(now()) },
      { sealedPreviousSecret: null, previousSecretUntil: null },
    );
  }
}

const newSecret = () => `whsec_${randomBytes(32).toString('base64')}`;

const toResource = (row: WebhookEndpointEntity): WebhookEndpoint => ({ ...row, enabled: row.disabledAt === null });
