import { Column, Entity, PrimaryColumn } from 'typeorm';

/** A backup that was asked for. What it holds is in its record in the store; this row only remembers how it went. */
@Entity('backup')
export class BackupEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { nullable: true }) description!: string | null;
  @Column('integer', { nullable: true }) images!: number | null;
  @Column('varchar', { nullable: true }) sizeBytes!: string | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
  @Column('varchar', { nullable: true }) completedAt!: string | null;
}
