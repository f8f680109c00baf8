import { Column, Entity, PrimaryColumn } from 'typeorm';

/** A remembered answer of a POST with an Idempotency-Key. */
@Entity('idempotency_key')
export class IdempotencyKeyEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') requestDigest!: string;
  @Column('varchar') createdAt!: string;
  @Column('integer', { nullable: true }) status!: number | null;
  @Column('simple-json', { nullable: true }) headers!: Record<string, string> | null;
  /** Sealed. */
  @Column('text', { nullable: true }) body!: string | null;
}
