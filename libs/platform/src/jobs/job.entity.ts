import type { Problem } from '@airdock/core/errors';
import { Column, Entity, Index, PrimaryColumn } from 'typeorm';
import { OutboxEventEntity } from '../events/outbox.entity.js';
import { IdempotencyKeyEntity } from '../http/idempotency.entity.js';
import type { JobState } from './job.schema.js';
import type { StoredProgress } from './progress.js';

/** A job's row: the truth about it. The queue only wakes workers up. */
@Entity('job')
@Index(['state'])
export class JobEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') type!: string;
  @Column('varchar') state!: JobState;
  @Column('simple-json') progress!: StoredProgress;
  @Column('simple-json', { nullable: true }) error!: Problem | null;
  @Column('simple-json', { nullable: true }) result!: Record<string, unknown> | null;
  @Column('varchar') resource!: string;
  @Index()
  @Column('varchar', { nullable: true })
  parentId!: string | null;
  @Column('varchar') createdBy!: string;
  @Column('varchar') createdAt!: string;
  @Column('varchar', { nullable: true }) startedAt!: string | null;
  @Column('varchar', { nullable: true }) finishedAt!: string | null;
  @Column('varchar', { nullable: true }) cancelRequestedAt!: string | null;
  /** How often a worker has claimed it. */
  @Column('integer') attempt!: number;
  /** Transient failures since the last claim that made progress. */
  @Column('integer') failures!: number;
  /** How many workers have died with it since it was queued or retried, or since it last got further. */
  @Column('integer', { default: 0 }) lost!: number;
  /** Not before this time, after a transient failure. */
  @Column('varchar', { nullable: true }) runAfter!: string | null;
  /** Which worker runs it, and until when its word is good. */
  @Column('varchar', { nullable: true }) leaseOwner!: string | null;
  @Column('varchar', { nullable: true }) leaseUntil!: string | null;
  /** Of the request that created it, if that had an Idempotency-Key. */
  @Column('varchar', { nullable: true, unique: true }) requestKey!: string | null;
  /** Grows with every change; what watchers compare. */
  @Column('integer') revision!: number;
}

/** The tables that every service has beside its own. */
export const platformEntities = [JobEntity, IdempotencyKeyEntity, OutboxEventEntity];
