import { type RegistryMode } from '@airdock/core/registry-mode';
import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { Readiness } from '../readiness/readiness.schema.js';

@Entity('readiness_check')
export class ReadinessCheckEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { nullable: true }) clusterId!: string | null;
  @Column('varchar') kubernetesVersion!: string;
  @Column('varchar') registryMode!: RegistryMode;
  @Column('varchar', { nullable: true }) imageSetId!: string | null;
  @Column('simple-json') hostIds!: string[];
  @Column('varchar') pull!: Readiness['pull'];
  @Column('boolean') fix!: boolean;
  @Column('simple-json', { nullable: true }) result!: Readiness | null;
  @Column('simple-json') pushed!: string[];
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
