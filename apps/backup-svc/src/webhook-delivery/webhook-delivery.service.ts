import { AppError } from '@airdock/core/errors';
import { pingEvent } from '@airdock/core/events';
import { OutboundPost, type PostOutcome } from '@airdock/outbound/outbound-post';
import { CONFIG, type Config } from '@airdock/platform/config';
import {
  atomically,
  columns,
  isUniqueViolation,
  now,
  ServiceDatabase,
  type Statement,
} from '@airdock/platform/database';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { Inject, Injectable } from '@nestjs/common';
import { Webhook } from 'standardwebhooks';
import { LessThan, LessThanOrEqual, Not } from 'typeorm';
import { WebhookEndpointService, type WebhookTarget } from '../webhook-endpoint/webhook-endpoint.service.js';
import { WebhookDeliveryEntity, WebhookEventEntity } from './webhook-delivery.entity.js';
import type {
  WebhookDelivery,
  WebhookDeliveryLog,
  WebhookDeliveryQuery,
  WebhookEvent,
} from './webhook-delivery.schema.js';

const maxAnswerBytes = 4_096;
const firstRetryMs = 1_000;
const maxRetryMs = 60 * 60 * 1000;
/** What a worker needs beside the request itself; after that it is taken for dead. */
const graceMs = 5_000;

/**
 * Sends events out: takes what the services hand over, makes one delivery per endpoint, and tries each until it is
 * accepted or the time for it is over.
 */
@Injectable()
export class WebhookDeliveryService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly database: ServiceDatabase,
    private readonly endpoints: WebhookEndpointService,
    private readonly outbound: OutboundPost,
  ) {}

  private get events() {
    return this.database.dataSource.getRepository(WebhookEventEntity);
  }

  private get deliveries() {
    return this.database.dataSource.getRepository(WebhookDeliveryEntity);
  }

  list({ endpointId, eventId, eventType, state, ...page }: WebhookDeliveryQuery): Promise<Page<WebhookDelivery>> {
    const filters = Object.entries({ endpointId, eventId, eventType, state }).filter(
      ([, value]) => value !== undefined,
    );
    return findPage(this.deliveries, page, Object.fromEntries(filters));
  }

  async get(id: string): Promise<WebhookDeliveryLog> {
    const row = await getRow(this.deliveries, id);
    const { request, response, responseStatus } = row;
    const { payload: body } = await this.events.findOneByOrFail({ id: row.eventId });
    return {
      ...row,
      request: request && { ...request, body },
      response: response && responseStatus !== null ? { ...response, status: responseStatus } : null,
      log: row.log ?? [],
    };
  }

  /**
   * Sends an event again, as if it had just happened. Throws `webhook_delivery_pending`, `webhook_endpoint_disabled`.
   */
  async redeliver(id: string): Promise<WebhookDelivery> {
    const { eventId, endpointId, eventType, state } = await getRow(this.deliveries, id);
    if (state === 'pending') throw new AppError('webhook_delivery_pending');
    const { enabled, disabledReason } = await this.endpoints.get(endpointId);
    if (!enabled && eventType !== pingEvent)
      throw new AppError('webhook_endpoint_disabled', { detail: disabledReason ?? '' });
    const row = newDelivery({ eventId, endpointId, eventType, redeliveryOf: id });
    await this.deliveries.insert(columns(row));
    return row;
  }

  /** One try, also of an endpoint that is disabled. */
  async ping(endpointId: string): Promise<WebhookDelivery> {
    await this.endpoints.get(endpointId);
    const createdAt = now();
    const data = { endpointId, endpoint: `/v1/webhook-endpoints/${endpointId}` };
    const payload = JSON.stringify({ type: pingEvent, timestamp: createdAt, data });
    const event: WebhookEventEntity = { id: newId(), type: pingEvent, payload, createdAt, dispatched: true };
    const row = newDelivery({ eventId: event.id, endpointId, eventType: pingEvent });
    await atomically(this.database.dataSource, [
      this.events.createQueryBuilder().insert().values(event),
      this.insert(row),
    ]);
    return row;
  }

  /** Takes an event; one that is here already is no error. */
  async accept(event: WebhookEvent): Promise<void> {
    try {
      await this.events.insert({ ...event, dispatched: false });
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
    }
  }

  /** Makes the deliveries of new events. */
  async dispatch(): Promise<void> {
    for (const { id: eventId, type, createdAt } of await this.events.find({
      where: { dispatched: false },
      order: { id: 'ASC' },
      take: 100,
    })) {
      const subscribed = await this.endpoints.subscribed(type, createdAt);
      const inserts = subscribed.map(({ id: endpointId }) =>
        this.insert(newDelivery({ eventId, endpointId, eventType: type })),
      );
      // Nothing happens where another worker was first.
      const mark = this.events
        .createQueryBuilder()
        .update()
        .set({ dispatched: true })
        .where({ id: eventId, dispatched: false });
      await atomically(this.database.dataSource, [mark, ...inserts]);
    }
  }

  private insert(row: WebhookDeliveryEntity): Statement {
    return this.deliveries.createQueryBuilder().insert().values(columns(row));
  }

  /** An event without its deliveries, or a delivery that is not over, whenever it is due. */
  async hasPending(): Promise<boolean> {
    return (
      (await this.events.existsBy({ dispatched: false })) || (await this.deliveries.existsBy({ state: 'pending' }))
    );
  }

  /** The endpoints that something is due for. */
  async dueEndpoints(): Promise<string[]> {
    const due = this.deliveries.createQueryBuilder('delivery').select('DISTINCT delivery.endpointId', 'endpointId');
    const rows = await due
      .where({ state: 'pending', nextAttemptAt: LessThanOrEqual(now()) })
      .getRawMany<{ endpointId: string }>();
    return rows.map(({ endpointId }) => endpointId);
  }

  /**
   * Takes up to `limit` due deliveries of an endpoint. Whoever counts an attempt makes it; of a worker that dies
   * meanwhile the next one is due when it would have ended.
   */
  async claim(endpointId: string, limit: number): Promise<WebhookDeliveryEntity[]> {
    const where = { endpointId, state: 'pending' as const, nextAttemptAt: LessThanOrEqual(now()) };
    const claimed: WebhookDeliveryEntity[] = [];
    for (const row of await this.deliveries.find({ where, order: { nextAttemptAt: 'ASC' }, take: limit })) {
      const attempts = row.attempts + 1;
      const nextAttemptAt = new Date(Date.now() + this.timeoutMs + graceMs).toISOString();
      const { affected } = await this.deliveries.update(
        { id: row.id, attempts: row.attempts, state: 'pending' },
        { attempts, nextAttemptAt },
      );
      if (affected) claimed.push({ ...row, attempts });
    }
    return claimed;
  }

  private get timeoutMs(): number {
    return this.config.webhooks.timeoutSeconds * 1000;
  }

  /**
   * Makes the attempt that was claimed, and notes what came of it. When `signal` aborts before there is an answer it
   * counts as not made.
   */
  async attempt(delivery: WebhookDeliveryEntity, signal: AbortSignal): Promise<void> {
    const { eventId, eventType } = delivery;
    const target = await this.targetOf(delivery);
    if ('refused' in target) {
      await this.deliveries.update(heldBy(delivery), { state: 'failed', error: target.refused, nextAttemptAt: null });
      return;
    }
    const at = new Date();
    const { payload } = await this.events.findOneByOrFail({ id: eventId });
    const headers = {
      'content-type': 'application/json',
      'user-agent': 'airdock',
      'webhook-id': eventId,
      'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
    };
    const outcome =
      'unusable' in target ? { error: target.unusable } : await this.send(target, { at, headers, payload, signal });
    if (signal.aborted && !('status' in outcome)) {
      const attempts = delivery.attempts - 1;
      await this.deliveries.update(heldBy(delivery), { attempts, nextAttemptAt: now() });
      return;
    }
    const url = 'unusable' in target ? undefined : target.url;
    const made = madeOf(delivery, at, url === undefined ? null : { url, headers }, outcome);
    if (made.error === null) return this.noteDelivered(delivery, made);
    const giveUpAt = Date.parse(delivery.createdAt) + this.config.webhooks.giveUpAfterHours * 3_600_000;
    if (eventType === pingEvent || made.responseStatus === gone || Date.now() >= giveUpAt)
      return this.giveUp(delivery, made, url);
    const nextAttemptAt = new Date(Math.min(Date.now() + retryWaitMs(delivery.attempts), giveUpAt)).toISOString();
    await this.deliveries.update(heldBy(delivery), columns<WebhookDeliveryEntity>({ ...made, nextAttemptAt }));
  }

  /** Where a delivery goes; `refused` for good, or `unusable` as long as its secrets cannot be read. */
  private async targetOf({
    endpointId,
    eventType,
  }: WebhookDeliveryEntity): Promise<WebhookTarget | { refused: string } | { unusable: string }> {
    try {
      const target = await this.endpoints.target(endpointId);
      if (!target) return { refused: 'the endpoint was deleted' };
      return target.isEnabled || eventType === pingEvent ? target : { refused: 'the endpoint is disabled' };
    } catch (error) {
      if (error instanceof AppError && error.code === 'secrets_key_invalid') return { unusable: error.message };
      throw error;
    }
  }

  private async noteDelivered(delivery: WebhookDeliveryEntity, made: Attempt): Promise<void> {
    const change: Partial<WebhookDeliveryEntity> = { state: 'delivered', nextAttemptAt: null, deliveredAt: now() };
    await this.deliveries.update(heldBy(delivery), columns<WebhookDeliveryEntity>({ ...made, ...change }));
  }

  /** It is not tried again, and an endpoint that takes nothing for days is disabled. */
  private async giveUp(delivery: WebhookDeliveryEntity, made: Attempt, url: string | undefined): Promise<void> {
    const { id, endpointId, eventType } = delivery;
    const failed = this.deliveries
      .createQueryBuilder()
      .update()
      .set(columns<WebhookDeliveryEntity>({ ...made, state: 'failed', nextAttemptAt: null }))
      .where(heldBy(delivery));
    const why = `${eventType} could not be delivered: ${made.error}`;
    const disabling = eventType === pingEvent || !url ? [] : this.endpoints.disabling(endpointId, url, why, id);
    // Another delivery may have been the last straw.
    if (!(await atomically(this.database.dataSource, [failed, ...disabling])))
      await atomically(this.database.dataSource, [failed]);
  }

  private send(
    { url, secrets }: WebhookTarget,
    {
      at,
      headers,
      payload,
      signal,
    }: { at: Date; headers: Record<string, string>; payload: string; signal: AbortSignal },
  ): Promise<PostOutcome> {
    const signature = secrets
      .map((secret) => new Webhook(secret).sign(headers['webhook-id'] ?? '', at, payload))
      .join(' ');
    const options = { body: payload, timeoutMs: this.timeoutMs, maxAnswerBytes, signal };
    return this.outbound.post(url, { headers: { ...headers, 'webhook-signature': signature }, ...options });
  }

  /**
   * Removes what is older than `airdock.webhooks.keepDays`; what is still on its way stays, and so does what a delivery
   * repeats.
   */
  async forgetOld(): Promise<void> {
    const createdAt = LessThan(new Date(Date.now() - this.config.webhooks.keepDays * 86_400_000).toISOString());
    const table = this.deliveries.metadata.tablePath;
    const again = this.deliveries.createQueryBuilder('again').select('1').where(`again.redeliveryOf = ${table}.id`);
    await this.deliveries
      .createQueryBuilder()
      .delete()
      .where({ createdAt, state: Not('pending') })
      .andWhere(`NOT EXISTS (${again.getQuery()})`)
      .execute();
    const unfinished = this.deliveries
      .createQueryBuilder('delivery')
      .select('1')
      .where(`delivery.eventId = ${this.events.metadata.tablePath}.id`);
    await this.events
      .createQueryBuilder()
      .delete()
      .where({ createdAt, dispatched: true })
      .andWhere(`NOT EXISTS (${unfinished.getQuery()})`)
      .execute();
    await this.endpoints.forgetSecrets();
  }
}

/** Of the one who has counted the attempt. */
const heldBy = ({ id, attempts }: WebhookDeliveryEntity) => ({ id, attempts, state: 'pending' as const });

/** What an attempt leaves in its row. */
type Attempt = Pick<WebhookDeliveryEntity, 'responseStatus' | 'error' | 'request' | 'response' | 'log'>;

function madeOf(
  { log }: WebhookDeliveryEntity,
  at: Date,
  request: WebhookDeliveryEntity['request'],
  outcome: PostOutcome,
): Attempt {
  const responseStatus = 'status' in outcome ? outcome.status : null;
  const error = 'status' in outcome ? refusal(outcome.status) : outcome.error;
  const durationMs = Math.round(Date.now() - at.getTime());
  return {
    responseStatus,
    error,
    request,
    response: 'status' in outcome ? { body: outcome.body, isCut: outcome.isCut } : null,
    log: [...(log ?? []), { at: at.toISOString(), durationMs, status: responseStatus, error }],
  };
}

/** The receiver wants no more, as Standard Webhooks says. */
const gone = 410;

/** Why an answer does not count as accepted; null when it does. */
function refusal(status: number): string | null {
  if (status >= 200 && status < 300) return null;
  return status >= 300 && status < 400 ? `answered ${status}: redirects are not followed` : `answered ${status}`;
}

/** The pause after that many attempts: 1, 4, 16, 64, 256, 1024 s, then an hour, each more or less by a quarter. */
const retryWaitMs = (attempts: number): number =>
  Math.min(maxRetryMs, firstRetryMs * 4 ** (attempts - 1)) * (0.75 + Math.random() / 2);

const newDelivery = (
  of: Pick<WebhookDeliveryEntity, 'eventId' | 'endpointId' | 'eventType'> & { redeliveryOf?: string },
): WebhookDeliveryEntity => ({
  ...{ id: newId(), redeliveryOf: null, ...of },
  ...{ state: 'pending', attempts: 0, createdAt: now(), nextAttemptAt: now(), deliveredAt: null },
  ...{ responseStatus: null, error: null, request: null, response: null, log: null },
});
