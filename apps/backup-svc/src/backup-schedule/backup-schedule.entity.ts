import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { RetentionPolicy } from '../backup-operation/backup-operation.schema.js';

@Entity('backup_schedule')
export class BackupScheduleEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar') cron!: string;
  @Column('varchar') timeZone!: string;
  @Column('varchar') target!: string;
  @Column('simple-json', { nullable: true }) repositories!: string[] | null;
  @Column('simple-json', { nullable: true }) keep!: RetentionPolicy | null;
  @Column('float', { nullable: true }) alertAfterHours!: number | null;
  @Column('boolean') enabled!: boolean;
  /** Of the last time that a backup was begun, or that it was made or changed: what was due since then is due now. */
  @Column('varchar') lastAt!: string;
  @Column('varchar', { nullable: true }) lastBackupId!: string | null;
  /** Whose end was followed by a prune. */
  @Column('varchar', { nullable: true }) prunedBackupId!: string | null;
  /** When somebody was told that the newest good backup is too old. */
  @Column('varchar', { nullable: true }) staleSince!: string | null;
  @Column('varchar') createdAt!: string;
  @Column('integer', { default: 1 }) version!: number;
}
