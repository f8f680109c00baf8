import { Column, Entity, PrimaryColumn } from 'typeorm';

/**
 * The outbox of a service: an event, written together with the state change that it tells of, until backup-svc has it.
 */
@Entity('outbox_event')
export class OutboxEventEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') type!: string;
  /** JSON, as webhook endpoints get it. */
  @Column('text') payload!: string;
  @Column('varchar') createdAt!: string;
}
