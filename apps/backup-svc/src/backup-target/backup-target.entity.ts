import { Column, Entity, PrimaryColumn } from 'typeorm';

/** The store that was seen at a target first, or was adopted since: an empty folder where a disk should be mounted is not taken for it. */
@Entity('backup_target')
export class BackupTargetEntity {
  @PrimaryColumn('varchar') name!: string;
  @Column('varchar') storeId!: string;
}
