import { Column, Entity, PrimaryColumn } from 'typeorm';

@Entity('restore')
export class RestoreEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') backupId!: string;
  @Column('integer', { nullable: true }) images!: number | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
