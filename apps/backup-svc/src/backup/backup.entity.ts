import type { SkippedReference } from '@airdock/backup-store/registry-content';
import { Column, Entity, Index, PrimaryColumn } from 'typeorm';

/**
 * A backup that was asked for, or was found in a store. What it holds is in its record there; this row only remembers
 * how it went.
 */
@Entity('backup')
export class BackupEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') target!: string;
  @Column('varchar', { nullable: true }) description!: string | null;
  /** Patterns of the request; null for everything. */
  @Column('simple-json', { nullable: true }) repositories!: string[] | null;
  @Column('varchar', { nullable: true }) imageSetId!: string | null;
  @Index()
  @Column('varchar', { nullable: true })
  scheduleId!: string | null;
  @Column('integer', { nullable: true }) images!: number | null;
  @Column('varchar', { nullable: true }) sizeBytes!: string | null;
  @Column('varchar', { nullable: true }) addedBytes!: string | null;
  @Column('simple-json', { nullable: true }) skipped!: SkippedReference[] | null;
  @Column('boolean', { default: false }) hasSettings!: boolean;
  /** Null for one that was found in a store. */
  @Column('varchar', { nullable: true }) jobId!: string | null;
  @Column('varchar') createdAt!: string;
  @Column('varchar', { nullable: true }) completedAt!: string | null;
  @Column('varchar', { nullable: true }) verifiedAt!: string | null;
  /** Digests, by the last verification. */
  @Column('simple-json', { nullable: true }) damaged!: string[] | null;
  /** The key that its record is signed with, or that of the site that it came from; null: none. */
  @Column('varchar', { nullable: true }) signedBy!: string | null;
  /** Its record was in the store once, and is not any more. */
  @Column('boolean', { default: false }) isMissing!: boolean;
}
