import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { ReadingRecord, TargetProblem } from './backup-target.schema.js';

/**
 * The store that was seen at a target first, or was adopted since: an empty folder where a disk should be mounted is
 * not taken for it.
 */
@Entity('backup_target')
export class BackupTargetEntity {
  @PrimaryColumn('varchar') name!: string;
  @Column('varchar') storeId!: string;
  /** When the backups that were made before there were signatures were signed; null: not yet. */
  @Column('varchar', { nullable: true }) takenOverAt!: string | null;
  /** What was found there that cannot be used. */
  @Column('simple-json', { nullable: true }) problems!: TargetProblem[] | null;
  /** The record that is being read: who dies of it leaves this behind. */
  @Column('simple-json', { nullable: true }) reading!: ReadingRecord | null;
}
