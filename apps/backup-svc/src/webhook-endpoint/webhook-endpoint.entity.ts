import { Column, Entity, PrimaryColumn } from 'typeorm';

@Entity('webhook_endpoint')
export class WebhookEndpointEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') url!: string;
  @Column('simple-json') events!: string[];
  /** Sealed with the id as context. */
  @Column('text') sealedSecret!: string;
  /** Signs too until `previousSecretUntil`; sealed in the same way. */
  @Column('text', { nullable: true }) sealedPreviousSecret!: string | null;
  @Column('varchar', { nullable: true }) previousSecretUntil!: string | null;
  @Column('varchar', { nullable: true }) disabledAt!: string | null;
  @Column('varchar', { nullable: true }) disabledReason!: string | null;
  @Column('varchar') createdAt!: string;
}
