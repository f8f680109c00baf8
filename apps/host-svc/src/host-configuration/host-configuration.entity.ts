import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { ConfigurationOptions } from '../host/host.schema.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';

@Entity('host_configuration')
export class HostConfigurationEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('simple-json') hostIds!: string[];
  @Column('simple-json') bundleIds!: string[];
  @Column('boolean') dryRun!: boolean;
  @Column('simple-json') options!: ConfigurationOptions;
  @Column('simple-json', { nullable: true }) results!: HostConfigurationResult[] | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
