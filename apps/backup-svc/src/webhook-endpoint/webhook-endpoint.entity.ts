import { Column, Entity, PrimaryColumn } from 'typeorm';

@Entity('webhook_endpoint')
export class WebhookEndpointEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') url!: string;
  @Column('simple-json') events!: string[];
  /** Sealed with the id as context. */
  @Column('text') sealedSecret!: string;
  @Column('varchar') createdAt!: string;
}
