import type { Problem } from '@airdock/core/errors';
import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { DuUpgradeGoal, DuUpgradePhase, DuUpgradeReport, NewEngine, UpgradeProblem } from './du-upgrade.schema.js';

/** An upgrade of the DU, and how far it is. The same is kept in a file, for a DU whose tables did not survive. */
@Entity('du_upgrade')
export class DuUpgradeEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') fromVersion!: string;
  @Column('varchar') toVersion!: string;
  /** What the configuration file said: of a DU whose file says something new it knows the version no more. */
  @Column('varchar', { nullable: true }) configuredVersion!: string | null;
  @Column('varchar') target!: string;
  @Column('simple-json', { nullable: true }) engine!: NewEngine | null;
  @Column('varchar') phase!: DuUpgradePhase;
  /** What the job that has it is to reach. */
  @Column('varchar') goal!: DuUpgradeGoal;
  @Column('boolean') dryRun!: boolean;
  /** Data may come back from a backup that nobody known has signed. */
  @Column('boolean', { default: false }) allowUnsigned!: boolean;
  /** What of its settings somebody has confirmed. */
  @Column('varchar', { nullable: true }) confirm!: string | null;
  /** Settings have to come back with the images. */
  @Column('boolean', { default: false }) hasLostTables!: boolean;
  @Column('simple-json', { nullable: true }) problems!: UpgradeProblem[] | null;
  /** Of the backup that was made last: what has to be there afterwards. */
  @Column('varchar', { nullable: true }) backupId!: string | null;
  /** Attempts to bring it back that are over: after a kill the next run finds the restore of the one that is not. */
  @Column('integer', { default: 0 }) restores!: number;
  /** The engine's program before the upgrade; null for the configured one. */
  @Column('varchar', { nullable: true }) formerBinary!: string | null;
  @Column('simple-json', { nullable: true }) report!: DuUpgradeReport | null;
  @Column('simple-json', { nullable: true }) error!: Problem | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
  @Column('varchar', { nullable: true }) finishedAt!: string | null;
}
