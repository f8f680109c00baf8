import { Column, Entity, Index, PrimaryColumn } from 'typeorm';
import type { ConfigurationOptions } from '../host/host.schema.js';
import type { Action, Bandwidth, HostConfigurationResult, Rollout } from './host-configuration.schema.js';

@Entity('host_configuration')
export class HostConfigurationEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { default: 'configure' }) action!: Action;
  @Column('simple-json') bundleIds!: string[];
  @Column('boolean') dryRun!: boolean;
  @Column('simple-json') options!: ConfigurationOptions;
  @Column('simple-json') rollout!: Rollout;
  @Column('simple-json') bandwidth!: Bandwidth;
  /** By the drift schedule, not by a caller. */
  @Column('boolean', { default: false }) scheduled!: boolean;
  @Column('varchar') jobId!: string;
  /** When its job ended without success: a run after that is a retry of what failed. */
  @Column('varchar', { nullable: true }) failedAt!: string | null;
  @Column('varchar') createdAt!: string;
}

/** One host of a configuration. */
@Entity('host_configuration_host')
@Index(['configurationId', 'position'], { unique: true })
export class ConfiguredHostEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') configurationId!: string;
  @Column('integer') position!: number;
  @Index()
  @Column('varchar')
  hostId!: string;
  @Column('varchar') hostName!: string;
  /** Of the child job; null until it is the host's turn. */
  @Column('varchar', { nullable: true }) jobId!: string | null;
  @Column('simple-json', { nullable: true }) result!: HostConfigurationResult | null;
}

/**
 * When all hosts were last looked at for drift: one row, whose change decides which of several workers begins the next
 * look.
 */
@Entity('drift_schedule')
export class DriftScheduleEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') lastAt!: string;
  /** What was begun then. */
  @Column('varchar', { nullable: true }) configurationId!: string | null;
}
