import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { BackupAction, BackupOperationResult } from './backup-operation.schema.js';

@Entity('backup_operation')
export class BackupOperationEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') target!: string;
  @Column('simple-json') operation!: BackupAction;
  @Column('simple-json', { nullable: true }) result!: BackupOperationResult | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
