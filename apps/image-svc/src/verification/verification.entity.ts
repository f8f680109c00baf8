import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { VerificationProblem } from './verification.schema.js';

@Entity('verification')
export class VerificationEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('simple-json', { nullable: true }) images!: string[] | null;
  @Column('boolean') quarantine!: boolean;
  @Column('simple-json', { nullable: true }) problems!: VerificationProblem[] | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
