import type { HostAdditions } from '@airdock/host/work/host-work';
import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { ConfigurationOptions, Drift, HostFacts, Quarantine } from './host.schema.js';

@Entity('host')
export class HostEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar') address!: string;
  @Column('integer') port!: number;
  @Column('varchar') credentialId!: string;
  /** Null until the first connection, when that may pin it. */
  @Column('varchar', { nullable: true }) hostKeyFingerprint!: string | null;
  @Column('varchar', { default: 'pinned' }) hostKeySource!: 'pinned' | 'firstUse';
  @Column('varchar', { nullable: true }) jumpHostId!: string | null;
  @Column('simple-json', { nullable: true }) labels!: Record<string, string> | null;
  @Column('simple-json', { nullable: true }) facts!: HostFacts | null;
  @Column('simple-json', { nullable: true }) configuration!: ConfigurationOptions | null;
  /** What configurations have brought that no file of the host tells. */
  @Column('simple-json', { nullable: true }) brought!: HostAdditions | null;
  @Column('varchar', { nullable: true }) configuredAt!: string | null;
  @Column('simple-json', { nullable: true }) drift!: Drift | null;
  /** Of the last time that the host stopped the process that serves hosts; also when it is over. */
  @Column('simple-json', { nullable: true }) quarantine!: Quarantine | null;
  /** The job that changes the host, or was the last that did. */
  @Column('varchar', { nullable: true }) turnJobId!: string | null;
  @Column('varchar') createdAt!: string;
}
