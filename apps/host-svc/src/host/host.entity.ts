import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { ConfigurationOptions, HostFacts } from './host.schema.js';

@Entity('host')
export class HostEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar') address!: string;
  @Column('integer') port!: number;
  @Column('varchar') credentialId!: string;
  @Column('varchar') hostKeyFingerprint!: string;
  @Column('simple-json', { nullable: true }) facts!: HostFacts | null;
  @Column('simple-json', { nullable: true }) configuration!: ConfigurationOptions | null;
  @Column('varchar', { nullable: true }) configuredAt!: string | null;
  @Column('varchar') createdAt!: string;
}
