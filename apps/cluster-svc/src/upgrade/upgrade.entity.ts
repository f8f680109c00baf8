import { type RegistryMode } from '@airdock/core/registry-mode';
import { Column, Entity, Index, PrimaryColumn } from 'typeorm';
import type { PackageFields, RegistryFields } from '../cluster-defaults/cluster-defaults.schema.js';
import type { UpgradeBatchOptions, UpgradedNode, UpgradePlan } from './upgrade.schema.js';

@Entity('cluster_upgrade')
export class UpgradeEntity {
  @PrimaryColumn('varchar') id!: string;
  @Index()
  @Column('varchar')
  clusterId!: string;
  @Column('varchar') from!: string;
  @Column('varchar') to!: string;
  @Column('boolean') dryRun!: boolean;
  @Column('simple-json') batch!: UpgradeBatchOptions;
  /** A wish of the request; null: the cluster's stays. */
  @Column('varchar', { nullable: true }) wantedMode!: RegistryMode | null;
  /** What the cluster has afterwards. */
  @Column('varchar') registryMode!: RegistryMode;
  @Column('varchar', { nullable: true }) imageSetId!: string | null;
  @Column('simple-json') fields!: RegistryFields;
  @Column('simple-json') packages!: PackageFields;
  @Column('simple-json') plan!: UpgradePlan;
  /** Written by the job alone, before and after each node. */
  @Column('simple-json') nodes!: UpgradedNode[];
  /** When every node had every image. */
  @Column('varchar', { nullable: true }) pulledAt!: string | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
