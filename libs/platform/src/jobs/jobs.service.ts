import { AppError, type Problem, toProblem } from '@airdock/core/errors';
import { type JobMoment, jobEvent } from '@airdock/core/events';
import { Logger } from '@nestjs/common';
import type { Queue } from 'bullmq';
import { type FindOperator, In, LessThan, Like, Not } from 'typeorm';
import type { QueryDeepPartialEntity } from 'typeorm/query-builder/QueryPartialEntity.js';
import type { ServiceName } from '../config.js';
import {
  atomically,
  columns,
  isUniqueViolation,
  now,
  runUnflushed,
  type ServiceDatabase,
  type Statement,
} from '../database.js';
import type { Outbox } from '../events/outbox.js';
import { cursorId, getRow } from '../http/page.js';
import { newId } from '../ids.js';
import { JobEntity } from './job.entity.js';
import { isEnded, type Job, type JobListQuery } from './job.schema.js';
import { noProgress } from './progress.js';

/**
 * How long a worker's claim on a job is good without being renewed. After a worker was killed, this is how long its
 * jobs wait where nobody knows of its death.
 */
export const leaseMs = 6_000;

/** Owners of leases are named for their process: those whose name begins like this, and all others. */
export const ownedBy = (prefix: string): FindOperator<string> => Like(`${prefix}%`);
/** Matches the owners of jobs that do not begin with `prefix`. */
export const ownedByOthers = (prefix: string): FindOperator<string> => Not(ownedBy(prefix));

/** How long a job that has failed for a while waits at the most before it is tried again. */
export const maxDelayMs = 30_000;
/** A job that so many workers have died with is what they died of, as far as anybody can tell. */
const maxLost = 3;

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
 * A service's jobs. The row is the truth: whatever is said here is first in the table, and only then a wake-up is put
 * on the queue. When Redis is away the wake-up is lost and nothing else: the sweeper puts it there again.
 */
export class JobsService {
  private readonly logger = new Logger('jobs');
  /** Called with the id of each job that this process has changed; what others change is seen by looking. */
  readonly changed = new Set<(id: string) => void>();
  /** Of this process; they register themselves. */
  readonly processors: { start(): void }[] = [];

  constructor(
    readonly service: ServiceName,
    private readonly database: ServiceDatabase,
    private readonly queues: ReadonlyMap<string, Queue>,
    private readonly outbox: Outbox,
  ) {
    for (const queue of queues.values()) queue.on('error', (error) => this.logger.debug(`queue: ${error.message}`));
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
    together: Statement[] = [],
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
        ...together,
        this.rows.createQueryBuilder().insert().values(columns(row)),
      ]);
      if (!stored) throw new AppError('resource_changed', { detail: 'someone else was faster' });
    } catch (error) {
      const first = isUniqueViolation(error) ? await this.findRequested(requestKey) : undefined;
      if (!first) throw error;
      return first;
    }
    await this.wake(row);
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
      if (job.state === 'queued' && (await this.endCancelled(id))) return this.get(id);
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

  private endCancelled(id: string): Promise<boolean> {
    return this.end(
      id,
      { state: 'cancelled', error: toProblem(new AppError('job_cancelled')), result: null },
      { state: 'queued' },
    );
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
    await this.wake(await getRow(this.rows, id));
    return this.get(id);
  }

  /**
   * Puts a wake-up on the queue. Its id names the attempt that it is for, so that repeating it is harmless while one
   * waits, and a new one gets past the rest of a worker that was killed. Never throws, never waits long: the sweeper
   * repeats it.
   */
  async wake({ id, type, attempt, runAfter }: Pick<JobEntity, 'id' | 'type' | 'attempt' | 'runAfter'>): Promise<void> {
    const delay = runAfter && runAfter < beyond(maxDelayMs) ? Math.max(0, Date.parse(runAfter) - Date.now()) : 0;
    // One that waits must not stand for one that is due: the clock that it waits by may have been set back.
    const jobId = `${id}-${attempt}${delay > 0 ? '-later' : ''}`;
    const added = this.queues
      .get(type)
      ?.add(type, { jobId: id }, { jobId, delay, removeOnComplete: true, removeOnFail: true });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((_, reject) => {
      timer = setTimeout(() => reject(new Error('no answer from Redis')), 500);
    });
    try {
      await Promise.race([added, late]);
    } catch (error) {
      added?.catch(() => undefined);
      this.logger.warn(`wake-up of job ${id} waits for the sweeper: ${(error as Error).message}`);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Wakes every job up that is due and has no living worker. Safe to run anywhere, any time. True when all jobs have
   * ended.
   */
  async sweep(): Promise<boolean> {
    const due = await this.rows
      .createQueryBuilder('job')
      .where('job.state IN (:...states)', { states: ['queued', 'running'] })
      .andWhere('(job.leaseUntil IS NULL OR job.leaseUntil < :now OR job.leaseUntil > :beyondLease)', {
        now: now(),
        beyondLease: beyond(leaseMs),
      })
      .andWhere('(job.runAfter IS NULL OR job.runAfter < :now OR job.runAfter > :beyondDelay)', {
        beyondDelay: beyond(maxDelayMs),
      })
      .orderBy('job.id')
      .take(500)
      .getMany();
    for (const job of due) await this.wake(job);
    return due.length === 0 && !(await this.rows.existsBy({ state: In(['queued', 'running']) }));
  }

  /**
   * Takes a job for this worker; the first time is an event. Undefined when it has ended, is not due, or another worker
   * has it; so also when three workers have died with it and it got no further: then it ends with `worker_lost`.
   */
  async claim(id: string, owner: string): Promise<JobEntity | undefined> {
    const at = now();
    const job = await this.find(id);
    if (!job) return undefined;
    // Whoever hands a job back takes its name off. A lease that ends too late is of a clock that was set back, not of a
    // worker that died.
    const lost = job.lost + (job.state === 'running' && job.leaseOwner !== null && (job.leaseUntil ?? at) < at ? 1 : 0);
    const isGivenUp = lost >= maxLost;
    const ended = job.cancelRequestedAt
      ? { state: 'cancelled' as const, error: toProblem(new AppError('job_cancelled')) }
      : {
          state: 'failed' as const,
          error: toProblem(new AppError('worker_lost', { detail: `in attempts up to ${job.attempt}` })),
        };
    const end = {
      ...ended,
      result: null,
      progress: { ...job.progress, items: [] },
      finishedAt: at,
      leaseOwner: null,
      leaseUntil: null,
      lost,
    };
    const claim = this.rows
      .createQueryBuilder()
      .update()
      .set(
        isGivenUp
          ? { ...columns<JobEntity>(end), revision: () => 'revision + 1' }
          : {
              state: 'running',
              leaseOwner: owner,
              leaseUntil: leaseEnd(),
              startedAt: () => 'COALESCE("startedAt", :at)',
              attempt: () => 'attempt + 1',
              lost,
              revision: () => 'revision + 1',
            },
      )
      .where('id = :id AND attempt = :attempt AND state IN (:...states)', {
        id,
        attempt: job.attempt,
        states: ['queued', 'running'],
      })
      .andWhere('("leaseUntil" IS NULL OR "leaseUntil" < :at OR "leaseUntil" > :beyondLease)', {
        beyondLease: beyond(leaseMs),
      })
      .andWhere('("runAfter" IS NULL OR "runAfter" <= :at OR "runAfter" > :beyondDelay)', {
        beyondDelay: beyond(maxDelayMs),
      })
      .setParameter('at', at);
    const told = isGivenUp
      ? this.told(ended.state, { ...job, ...end })
      : job.attempt === 0
        ? this.told('started', { ...job, state: 'running' })
        : [];
    const claimed = await atomically(this.database.dataSource, [claim, ...told]);
    if (isGivenUp) {
      if (claimed)
        this.logger.error({ jobId: id, attempt: job.attempt }, `${job.type} is given up: ${lost} workers died with it`);
      this.tell(id);
      return undefined;
    }
    if (claimed && lost > job.lost)
      this.logger.warn(
        { jobId: id, attempt: job.attempt, lost },
        `${job.type} is taken up again: its worker ${job.leaseOwner} died`,
      );
    return claimed ? this.find(id) : undefined;
  }

  /**
   * Lets the jobs of processes that are known to be dead go on at once, instead of when their leases have ended.
   * `owners` matches their owners. Where it is known what a process died of, `isExplained`, that is dealt with by
   * itself, and the death counts for none of them: they only ran beside it.
   */
  async releaseDead(owners: FindOperator<string>, { isExplained }: { isExplained: boolean }): Promise<void> {
    const handedBack = { leaseOwner: null, leaseUntil: null };
    const lapsed = { leaseUntil: '1970-01-01T00:00:00.000Z' };
    await this.rows.update({ leaseOwner: owners, state: 'running' }, isExplained ? handedBack : lapsed);
  }

  /** Renews the claim. `lost` when another worker has the job now or it was ended. */
  async renew(id: string, owner: string): Promise<'held' | 'cancelRequested' | 'lost'> {
    if (!(await this.note(id, owner, { leaseUntil: leaseEnd() }))) return 'lost';
    return (await this.find(id))?.cancelRequestedAt ? 'cancelRequested' : 'held';
  }

  /**
   * Stores progress, if the claim still holds. One that is further than it was when it was claimed forgets which
   * workers died before.
   */
  async saveProgress(
    id: string,
    owner: string,
    progress: JobEntity['progress'],
    { hasAdvanced }: { hasAdvanced: boolean },
  ): Promise<void> {
    await this.note(id, owner, { progress, ...(hasAdvanced && { lost: 0 }), revision: () => 'revision + 1' });
    this.tell(id);
  }

  /** What a power cut may undo: then the worker is gone as well. */
  private note(id: string, owner: string, set: QueryDeepPartialEntity<JobEntity>): Promise<number> {
    return runUnflushed(
      this.database.dataSource,
      this.rows.createQueryBuilder().update().set(set).where({ id, leaseOwner: owner, state: 'running' }),
    );
  }

  /**
   * Puts a running job back into the queue, after a transient failure or because its worker shuts down. One that was to
   * be cancelled ends instead.
   */
  async release(
    id: string,
    owner: string,
    { runAfter, failures, progress }: Pick<JobEntity, 'runAfter' | 'failures' | 'progress'>,
  ): Promise<void> {
    const { affected } = await this.rows.update(
      { id, leaseOwner: owner, state: 'running' },
      {
        state: 'queued',
        leaseOwner: null,
        leaseUntil: null,
        runAfter,
        failures,
        progress,
        revision: () => 'revision + 1',
      },
    );
    const job = affected ? await this.find(id) : undefined;
    if (job?.cancelRequestedAt) await this.endCancelled(id);
    else if (job) await this.wake(job);
  }

  /** Ends a job, together with what belongs to its end. False when `where` no longer holds, e.g. the claim was lost. */
  async end(
    id: string,
    outcome: Pick<JobEntity, 'state' | 'error' | 'result'> & { progress?: JobEntity['progress'] },
    where: { state: 'queued' } | { leaseOwner: string },
  ): Promise<boolean> {
    const job = await this.find(id);
    if (!job) return false;
    const ended = { ...outcome, finishedAt: now(), leaseOwner: null, leaseUntil: null };
    const guard = 'leaseOwner' in where ? { leaseOwner: where.leaseOwner, state: 'running' } : where;
    const update = this.rows
      .createQueryBuilder()
      .update()
      .set({ ...columns<JobEntity>(ended), revision: () => 'revision + 1' })
      .where({ id, ...guard });
    const hasEnded = await atomically(this.database.dataSource, [
      update,
      ...this.told(outcome.state as JobMoment, { ...job, ...ended }),
    ]);
    this.tell(id);
    return hasEnded;
  }

  /** The statement that puts an event of a job into the outbox; none for types that nobody is told of. */
  private told(
    moment: JobMoment,
    { id: jobId, type: jobType, state, resource, result, error }: JobEntity,
  ): Statement[] {
    const type = jobEvent(jobType, moment);
    if (!type) return [];
    const data = {
      jobId,
      job: `/v1/jobs/${jobId}`,
      resource,
      state,
      result: withinLimit(result),
      error: error && essence(error),
    };
    return [this.outbox.statement(type, data)];
  }

  /**
   * Removes a job and its children, together with the rows that they were for, all or none. False, with nothing
   * changed, when one of them has not ended.
   */
  remove(id: string, together: Statement[]): Promise<boolean> {
    const { sql, parameters } = this.noneOpenWhere('open.id = :id OR open.parentId = :id', { id });
    const jobs = this.rows.createQueryBuilder().delete().where(`(id = :id OR "parentId" = :id) AND ${sql}`, parameters);
    return atomically(this.database.dataSource, [jobs, ...together]);
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

  private tell(id: string): void {
    for (const listener of this.changed) listener(id);
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

const maxResultBytes = 16_384;
const maxDetailLength = 2_000;

/** A result that is a long list stays with the job, whose path is in the event. */
const withinLimit = (result: JobEntity['result']): JobEntity['result'] =>
  JSON.stringify(result).length > maxResultBytes ? null : result;

/** Of a problem, what says what to do; its facts may be long lists. */
const essence = ({ code, title, detail, nextStep }: Problem) => ({
  code,
  title,
  detail: detail?.slice(0, maxDetailLength),
  nextStep,
});

/**
 * Later than what is given for so long can end: that was written before the clock was set back, and must keep nobody
 * waiting.
 */
const beyond = (ms: number): string => new Date(Date.now() + 2 * ms).toISOString();

const leaseEnd = (): string => new Date(Date.now() + leaseMs).toISOString();
