import { AppError } from '@airdock/core/errors';
import type { Queue } from 'bullmq';
import { In, LessThan } from 'typeorm';
import type { ServiceName } from '../config.js';
import { atomically, columns, isUniqueViolation, now, type ServiceDatabase, type Statement } from '../database.js';
import type { Outbox } from '../events/outbox.js';
import { cursorId, getRow } from '../http/page.js';
import { newId } from '../ids.js';
import { JobEntity } from './job.entity.js';
import { isEnded, type Job, type JobListQuery } from './job.schema.js';
import { JobClaims } from './job-claims.js';
import { noProgress } from './progress.js';

interface Condition {
  sql: string;
  parameters: Record<string, unknown>;
}

/** A job to be submitted. */
export interface NewJob {
  id?: string;
  /** Repeating a job with the same key returns the first one. */
  requestKey?: string | null;
  type: string;
  /** Path of the resource that the job works on; its last part is the id that the processor gets. */
  resource: string;
  parentId?: string;
  createdBy?: string;
}

/**
 * A service's jobs, as requests see them: submitted, listed, cancelled, retried, removed. The row is the truth: whatever
 * is said here is first in the table, and only then a wake-up is put on the queue.
 */
export class JobsService {
  /** How this service's workers take jobs, keep them and end them. */
  readonly claims: JobClaims;
  /** Of this process; they register themselves. */
  readonly processors: { start(): void }[] = [];

  constructor(
    readonly service: ServiceName,
    private readonly database: ServiceDatabase,
    private readonly queues: ReadonlyMap<string, Queue>,
    outbox: Outbox,
  ) {
    this.claims = new JobClaims(database, queues, outbox);
  }

  private get rows() {
    return this.database.dataSource.getRepository(JobEntity);
  }

  /**
   * Stores a job together with the rows that it needs, all or none, and wakes a worker up. Repeating it with the same
   * key returns the first job.
   */
  async submit(
    { id = newId(), requestKey = null, type, resource, parentId, createdBy = 'airdock' }: NewJob,
    changes: Statement[] = [],
  ): Promise<Job> {
    if (!this.queues.has(type)) throw new Error(`no queue for job type ${type}`);
    const row: JobEntity = {
      id,
      requestKey,
      type,
      resource,
      createdBy,
      state: 'queued',
      progress: noProgress,
      error: null,
      result: null,
      parentId: parentId ?? null,
      createdAt: now(),
      startedAt: null,
      finishedAt: null,
      cancelRequestedAt: null,
      attempt: 0,
      failures: 0,
      lost: 0,
      runAfter: null,
      leaseOwner: null,
      leaseUntil: null,
      revision: 0,
    };
    try {
      const stored = await atomically(this.database.dataSource, [
        ...changes,
        this.rows.createQueryBuilder().insert().values(columns(row)),
      ]);
      if (!stored) throw new AppError('resource_changed', { detail: 'someone else was faster' });
    } catch (error) {
      const first = isUniqueViolation(error) ? await this.findRequested(requestKey) : undefined;
      if (!first) throw error;
      return first;
    }
    await this.claims.wake(row);
    return this.toResource(row);
  }

  /** The job that an earlier request with the same Idempotency-Key created. */
  async findRequested(requestKey: string | null): Promise<Job | undefined> {
    const first = requestKey ? await this.rows.findOneBy({ requestKey }) : null;
    return first ? this.toResource(first) : undefined;
  }

  async get(id: string): Promise<Job> {
    return this.toResource(await getRow(this.rows, id));
  }

  /** The row, or undefined when the job is another service's. */
  async find(id: string): Promise<JobEntity | undefined> {
    return (await this.rows.findOneBy({ id })) ?? undefined;
  }

  /** The jobs with these ids, by id. */
  async byIds(ids: string[]): Promise<Map<string, JobEntity>> {
    if (ids.length === 0) return new Map();
    return new Map((await this.rows.findBy({ id: In(ids) })).map((row) => [row.id, row]));
  }

  async list({ limit, cursor, state, type }: JobListQuery): Promise<Job[]> {
    const where = {
      ...(state ? { state } : {}),
      ...(type ? { type } : {}),
      ...(cursor ? { id: LessThan(cursorId(cursor)) } : {}),
    };
    return this.toResources(await this.rows.find({ where, order: { id: 'DESC' }, take: limit }));
  }

  /** Id and revision of the jobs named: what long-polls and event streams compare. */
  async revisions(ids: string[]): Promise<Map<string, number>> {
    return new Map(
      (await this.rows.find({ where: { id: In(ids) }, select: { id: true, revision: true } })).map(
        ({ id, revision }) => [id, revision],
      ),
    );
  }

  /**
   * Stops a job: at once when it is queued, at the next heartbeat of its worker (one second) when it runs. Throws
   * `job_finished`.
   */
  async cancel(id: string): Promise<Job> {
    // Between two looks a worker may take the job or hand it back.
    for (let attempt = 0; attempt < 10; attempt++) {
      const job = await getRow(this.rows, id);
      if (isEnded(job.state)) throw new AppError('job_finished', { detail: `the job has ${job.state}` });
      if (job.state === 'queued' && (await this.claims.endQueued(id))) return this.get(id);
      if (job.state === 'running') {
        const { affected } = await this.rows.update(
          { id, state: 'running' },
          { cancelRequestedAt: now(), revision: () => 'revision + 1' },
        );
        if (affected) return this.get(id);
      }
    }
    throw new AppError('dependency_unavailable', { detail: 'the job changes too fast; try again' });
  }

  /** Queues a failed or cancelled job again; it continues from what is already done. Throws `job_not_retryable`. */
  async retry(id: string): Promise<Job> {
    const job = await getRow(this.rows, id);
    const { affected } = await this.rows.update(
      { id, state: In(['failed', 'cancelled']) },
      {
        state: 'queued',
        error: null,
        finishedAt: null,
        cancelRequestedAt: null,
        runAfter: null,
        failures: 0,
        lost: 0,
        leaseOwner: null,
        leaseUntil: null,
        revision: () => 'revision + 1',
      },
    );
    if (affected === 0) throw new AppError('job_not_retryable', { detail: `the job is ${job.state}` });
    await this.claims.wake(await getRow(this.rows, id));
    return this.get(id);
  }

  /**
   * Removes a job and its children, together with the rows that they were for, all or none. False, with nothing
   * changed, when one of them has not ended.
   */
  remove(id: string, changes: Statement[]): Promise<boolean> {
    const { sql, parameters } = this.noneOpenWhere('open.id = :id OR open.parentId = :id', { id });
    const jobs = this.rows.createQueryBuilder().delete().where(`(id = :id OR "parentId" = :id) AND ${sql}`, parameters);
    return atomically(this.database.dataSource, [jobs, ...changes]);
  }

  /**
   * A condition that holds while none of these jobs is queued or running: for a statement that must not meet one, which
   * a retry may have begun again.
   */
  noneOpen(jobIds: string[]): Condition {
    return jobIds.length === 0
      ? { sql: '1 = 1', parameters: {} }
      : this.noneOpenWhere('open.id IN (:...jobIds)', { jobIds });
  }

  private noneOpenWhere(jobs: string, parameters: Condition['parameters']): Condition {
    const open = this.rows.createQueryBuilder('open').select('1').where(`(${jobs}) AND open.state IN (:...openStates)`);
    return { sql: `NOT EXISTS (${open.getQuery()})`, parameters: { ...parameters, openStates: ['queued', 'running'] } };
  }

  async toResource(row: JobEntity): Promise<Job> {
    const [job] = await this.toResources([row]);
    return job as Job;
  }

  private async toResources(rows: JobEntity[]): Promise<Job[]> {
    const children =
      rows.length > 0
        ? await this.rows.find({
            where: { parentId: In(rows.map(({ id }) => id)) },
            select: { id: true, parentId: true },
            order: { id: 'ASC' },
          })
        : [];
    return rows.map((row) => ({
      ...row,
      children: children.filter(({ parentId }) => parentId === row.id).map(({ id }) => id),
    }));
  }
}
