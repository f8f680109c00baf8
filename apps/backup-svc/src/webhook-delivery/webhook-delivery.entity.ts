import { Column, Entity, Index, PrimaryColumn } from 'typeorm';
import type { WebhookAttempt } from './webhook-delivery.schema.js';

/** An event that a service has handed over from its outbox. */
@Entity('webhook_event')
export class WebhookEventEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') type!: string;
  @Column('text') payload!: string;
  @Column('varchar') createdAt!: string;
  /** Whether its deliveries have been made. */
  @Index()
  @Column('boolean')
  dispatched!: boolean;
}

/** One event on its way to one endpoint. */
@Entity('webhook_delivery')
@Index(['state', 'endpointId', 'nextAttemptAt'])
export class WebhookDeliveryEntity {
  @PrimaryColumn('varchar') id!: string;
  @Index()
  @Column('varchar')
  eventId!: string;
  @Column('varchar') endpointId!: string;
  @Column('varchar') eventType!: string;
  @Column('varchar') state!: 'pending' | 'delivered' | 'failed';
  @Column('varchar', { nullable: true }) redeliveryOf!: string | null;
  @Column('integer') attempts!: number;
  /** The last attempt; the body of the request is the event's payload. */
  @Column('integer', { nullable: true }) responseStatus!: number | null;
  @Column('varchar', { nullable: true }) error!: string | null;
  @Column('simple-json', { nullable: true }) request!: { url: string; headers: Record<string, string> } | null;
  @Column('simple-json', { nullable: true }) response!: { body: string; isCut: boolean } | null;
  /** What came of each attempt; one whose worker died is missing. */
  @Column('simple-json', { nullable: true }) log!: WebhookAttempt[] | null;
  @Column('varchar') createdAt!: string;
  @Column('varchar', { nullable: true }) nextAttemptAt!: string | null;
  @Column('varchar', { nullable: true }) deliveredAt!: string | null;
}
