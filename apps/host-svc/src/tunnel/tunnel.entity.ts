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
  /** Told when it was made, and never read: see `TunnelService.target`. */
  @Column('varchar') target!: string;
  /** On 127.0.0.1 of the host. */
  @Column('integer', { nullable: true }) packagePort!: number | null;
  /**
   * What it binds on the host: the ports themselves, or the sockets that a unit of the host hands their connections to.
   */
  @Column('varchar', { default: 'port' }) hostEnd!: 'port' | 'socket';
  @Column('integer') reconnects!: number;
  /** Of the connection that is up, or was last. */
  @Column('float', { nullable: true }) latencyMs!: number | null;
  @Column('bigint', { default: '0' }) bytesSent!: string;
  @Column('integer', { default: 0 }) bytesPerSecond!: number;
  @Column('simple-json', { nullable: true }) error!: Problem | null;
  /** The process on the host that holds the port: see `sessionOf`. */
  @Column('varchar', { nullable: true }) session!: string | null;
  /** The one process that keeps it up, and until when its word is good. */
  @Column('varchar', { nullable: true }) leaseOwner!: string | null;
  @Column('varchar', { nullable: true }) leaseUntil!: string | null;
  @Column('varchar') createdAt!: string;
}
