import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { HostCheckResult } from './host-check.schema.js';

@Entity('host_check')
export class HostCheckEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('simple-json') hostIds!: string[];
  @Column('simple-json') pull!: string[];
  @Column('simple-json', { nullable: true }) results!: HostCheckResult[] | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
