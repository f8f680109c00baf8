import type { RegistryMode } from '@airdock/platform/config';
import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { RegistryFields } from '../cluster-defaults/cluster-defaults.schema.js';

@Entity('cluster')
export class ClusterEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar') kubernetesVersion!: string;
  @Column('varchar', { nullable: true }) imageSetId!: string | null;
  @Column('varchar') registryMode!: RegistryMode;
  @Column('simple-json') fields!: RegistryFields;
  @Column('varchar') provisioner!: 'external';
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}

/** A host's place in a cluster. The host is the key: it cannot be in two. */
@Entity('cluster_node')
export class ClusterNodeEntity {
  @PrimaryColumn('varchar') hostId!: string;
  @Column('varchar') clusterId!: string;
  @Column('varchar') role!: 'controlPlane' | 'worker';
}
