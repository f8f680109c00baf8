import { Column, Entity, Index, PrimaryColumn } from 'typeorm';

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
export class WebhookDeliveryEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') eventId!: string;
  @Column('varchar') endpointId!: string;
  @Column('varchar') eventType!: string;
  @Index()
  @Column('varchar')
  state!: 'pending' | 'delivered' | 'failed';
  @Column('integer') attempts!: number;
  @Column('integer', { nullable: true }) responseStatus!: number | null;
  @Column('varchar', { nullable: true }) error!: string | null;
  @Column('varchar') createdAt!: string;
  @Column('varchar', { nullable: true }) nextAttemptAt!: string | null;
  @Column('varchar', { nullable: true }) deliveredAt!: string | null;
}
