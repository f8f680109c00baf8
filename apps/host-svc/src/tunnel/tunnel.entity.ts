import type { Problem } from '@airdock/core/errors';
import { Column, Entity, PrimaryColumn } from 'typeorm';

/** A tunnel that is wanted; its state is what its owner last saw. */
@Entity('tunnel')
export class TunnelEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) hostId!: string;
  @Column('varchar') state!: 'connecting' | 'up' | 'down';
  @Column('varchar') since!: string;
  @Column('integer') hostPort!: number;
  @Column('varchar') target!: string;
  @Column('integer') reconnects!: number;
  @Column('simple-json', { nullable: true }) error!: Problem | null;
  /** The one process that keeps it up, and until when its word is good. */
  @Column('varchar', { nullable: true }) leaseOwner!: string | null;
  @Column('varchar', { nullable: true }) leaseUntil!: string | null;
  @Column('varchar') createdAt!: string;
}
