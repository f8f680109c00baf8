import { type RegistryMode } from '@airdock/core/registry-mode';
import { Column, Entity, Index, PrimaryColumn } from 'typeorm';
import type { PackageFields, RegistryFields } from '../cluster-defaults/cluster-defaults.schema.js';
import type {
  ClusterNetwork,
  ClusterNode,
  ClusterOptions,
  ProvisionerName,
} from '../provisioner/cluster-shape.schema.js';

@Entity('cluster')
export class ClusterEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar') kubernetesVersion!: string;
  @Column('simple-json') network!: ClusterNetwork;
  @Column('simple-json') options!: ClusterOptions;
  @Index()
  @Column('varchar', { nullable: true })
  imageSetId!: string | null;
  /** null: it follows the DU. */
  @Column('varchar', { nullable: true }) wantedMode!: RegistryMode | null;
  @Column('varchar') effectiveMode!: RegistryMode;
  @Column('simple-json') fields!: RegistryFields;
  @Column('simple-json') packages!: PackageFields;
  @Column('varchar') provisioner!: ProvisionerName;
  @Column('varchar', { nullable: true }) provisionerId!: string | null;
  /** It ran before Airdock knew of it. */
  @Column('boolean') existing!: boolean;
  @Column('varchar') jobId!: string;
  /** The upgrade that has not been ended with success; whoever sets it has the cluster. */
  @Column('varchar', { nullable: true }) upgradeId!: string | null;
  @Column('varchar', { nullable: true }) upgradeJobId!: string | null;
  @Index()
  @Column('varchar', { nullable: true })
  targetImageSetId!: string | null;
  /** Since when the upgrade should wait before its next node. */
  @Column('varchar', { nullable: true }) pausedAt!: string | null;
  @Column('varchar') createdAt!: string;
}

/** A host's place in a cluster. The host is the key: it cannot be in two. */
@Entity('cluster_node')
export class ClusterNodeEntity {
  @PrimaryColumn('varchar') hostId!: string;
  @Index()
  @Column('varchar')
  clusterId!: string;
  @Column('varchar') role!: ClusterNode['role'];
  /** As the caller gave them. */
  @Column('integer') position!: number;
  @Column('varchar', { nullable: true }) kubernetesVersion!: string | null;
}
