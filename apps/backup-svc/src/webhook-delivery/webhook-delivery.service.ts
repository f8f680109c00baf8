import { atomically, isUniqueViolation, now, ServiceDatabase } from '@airdock/platform/database';
import { findPage, type Page, type PageQuery } from '@airdock/platform/http/page';
import { idOf } from '@airdock/platform/ids';
import { Injectable } from '@nestjs/common';
import { Webhook } from 'standardwebhooks';
import { LessThanOrEqual } from 'typeorm';
import { WebhookEndpointService } from '../webhook-endpoint/webhook-endpoint.service.js';
import { WebhookDeliveryEntity, WebhookEventEntity } from './webhook-delivery.entity.js';
import type { WebhookDelivery, WebhookEvent } from './webhook-delivery.schema.js';

const timeoutMs = 10_000;
const giveUpAfterMs = 24 * 60 * 60 * 1000;
const firstRetryMs = 1_000;
const maxRetryMs = 60 * 60 * 1000;

/** Sends events out: takes what the services hand over, makes one delivery per endpoint, and each delivery until it is accepted or a day is over. */
@Injectable()
export class WebhookDeliveryService {
  constructor(
    private readonly database: ServiceDatabase,
    private readonly endpoints: WebhookEndpointService,
  ) {}

  private get events() {
    return this.database.dataSource.getRepository(WebhookEventEntity);
  }

  private get deliveries() {
    return this.database.dataSource.getRepository(WebhookDeliveryEntity);
  }

  list(query: PageQuery): Promise<Page<WebhookDelivery>> {
    return findPage(this.deliveries, query);
  }

  /** Takes an event; one that is here already is no error. */
  async accept(event: WebhookEvent): Promise<void> {
    try {
      await this.events.insert({ ...event, dispatched: false });
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
    }
  }

  /** One round: makes deliveries of new events, then tries what is due. */
  async round(): Promise<void> {
    for (const event of await this.events.find({ where: { dispatched: false }, order: { id: 'ASC' }, take: 100 })) await this.dispatch(event);
    const due = await this.deliveries.find({ where: { state: 'pending', nextAttemptAt: LessThanOrEqual(now()) }, order: { id: 'ASC' }, take: 20 });
    await Promise.all(due.map((delivery) => this.attempt(delivery)));
  }

  private async dispatch({ id: eventId, type, createdAt }: WebhookEventEntity): Promise<void> {
    const inserts = (await this.endpoints.subscribed(type, createdAt)).map(({ id: endpointId }) => {
      const row = {
        id: idOf(`${eventId} ${endpointId}`),
        eventId,
        endpointId,
        eventType: type,
        state: 'pending' as const,
        attempts: 0,
        responseStatus: null,
        error: null,
      };
      return this.deliveries
        .createQueryBuilder()
        .insert()
        .values({ ...row, createdAt: now(), nextAttemptAt: now(), deliveredAt: null });
    });
    const mark = this.events.createQueryBuilder().update().set({ dispatched: true }).where({ id: eventId, dispatched: false });
    try {
      await atomically(this.database.dataSource, [mark, ...inserts]);
    } catch (error) {
      // Another worker was first.
      if (!isUniqueViolation(error)) throw error;
    }
  }

  private async attempt({ id, eventId, endpointId, attempts, createdAt }: WebhookDeliveryEntity): Promise<void> {
    // Whoever counts the attempt makes it; a worker that dies meanwhile leaves the next one due.
    const waitMs = Math.min(maxRetryMs, firstRetryMs * 4 ** attempts) * (0.75 + Math.random() / 2);
    const nextAttemptAt = new Date(Date.now() + Math.max(waitMs, timeoutMs)).toISOString();
    const { affected } = await this.deliveries.update({ id, attempts, state: 'pending' }, { attempts: attempts + 1, nextAttemptAt });
    if (!affected) return;
    const event = await this.events.findOneByOrFail({ id: eventId });
    const target = await this.endpoints.target(endpointId);
    const outcome = target ? await send(target, eventId, event.payload) : { error: 'the endpoint was deleted' };
    if ('status' in outcome && outcome.status >= 200 && outcome.status < 300) {
      await this.deliveries.update({ id }, { state: 'delivered', responseStatus: outcome.status, error: null, nextAttemptAt: null, deliveredAt: now() });
      return;
    }
    const isOver = !target || Date.now() - Date.parse(createdAt) > giveUpAfterMs;
    const responseStatus = 'status' in outcome ? outcome.status : null;
    const error = 'error' in outcome ? outcome.error : `answered ${outcome.status}`;
    const retryAt = new Date(Date.now() + waitMs).toISOString();
    await this.deliveries.update({ id }, { state: isOver ? 'failed' : 'pending', responseStatus, error, nextAttemptAt: isOver ? null : retryAt });
  }
}

/** One signed POST. Redirects are not followed, the answer's body is not read. Never throws. */
async function send({ url, secret }: { url: string; secret: string }, eventId: string, payload: string): Promise<{ status: number } | { error: string }> {
  const at = new Date();
  const headers = {
    'content-type': 'application/json',
    'user-agent': 'airdock',
    'webhook-id': eventId,
    'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
    'webhook-signature': new Webhook(secret).sign(eventId, at, payload),
  };
  try {
    const response = await fetch(url, { method: 'POST', headers, body: payload, redirect: 'manual', signal: AbortSignal.timeout(timeoutMs) });
    await response.body?.cancel();
    return { status: response.status };
  } catch (error) {
    const cause = (error as { cause?: { code?: string } }).cause;
    return { error: cause?.code ?? (error as Error).name };
  }
}
