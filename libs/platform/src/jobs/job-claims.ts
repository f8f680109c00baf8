import { AppError, type Problem, toProblem } from '@airdock/core/errors';
import { type JobMoment, jobEvent } from '@airdock/core/events';
import { Logger } from '@nestjs/common';
import type { Queue } from 'bullmq';
import { type FindOperator, In, Like, Not } from 'typeorm';
import type { QueryDeepPartialEntity } from 'typeorm/query-builder/QueryPartialEntity.js';
import { atomically, columns, now, runUnflushed, type ServiceDatabase, type Statement } from '../database.js';
import type { Outbox } from '../events/outbox.js';
import { JobEntity } from './job.entity.js';

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

/** How a job ended. */
export type JobOutcome = Pick<JobEntity, 'state' | 'error' | 'result'> & { progress?: JobEntity['progress'] };

/**
 * How workers come to the jobs of a service, keep them and end them. The row is the truth: a wake-up on the queue that
 * is lost, since Redis is away, is put there again by the sweeper.
 */
export class JobClaims {
  private readonly logger = new Logger('jobs');
  /** Called with the id of each job that this process has changed; what others change is seen by looking. */
  readonly changed = new Set<(id: string) => void>();

  constructor(
    private readonly database: ServiceDatabase,
    private readonly queues: ReadonlyMap<string, Queue>,
    private readonly outbox: Outbox,
  ) {
    for (const queue of queues.values()) queue.on('error', (error) => this.logger.debug(`queue: ${error.message}`));
  }

  private get rows() {
    return this.database.dataSource.getRepository(JobEntity);
  }

  private find(id: string): Promise<JobEntity | undefined> {
    return this.rows.findOneBy({ id }).then((row) => row ?? undefined);
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
    const hasDied = job.state === 'running' && job.leaseOwner !== null && (job.leaseUntil ?? at) < at;
    const lost = job.lost + (hasDied ? 1 : 0);
    if (lost >= maxLost) {
      await this.giveUp(job, lost, at);
      return undefined;
    }
    const claim = this.updateOfFree(job, at, {
      state: 'running',
      leaseOwner: owner,
      leaseUntil: leaseEnd(),
      startedAt: () => 'COALESCE("startedAt", :at)',
      attempt: () => 'attempt + 1',
      lost,
    });
    const events = job.attempt === 0 ? this.eventOf('started', { ...job, state: 'running' }) : [];
    if (!(await atomically(this.database.dataSource, [claim, ...events]))) return undefined;
    if (hasDied)
      this.logger.warn(
        { jobId: id, attempt: job.attempt, lost },
        `${job.type} is taken up again: its worker ${job.leaseOwner} died`,
      );
    return this.find(id);
  }

  /** Ends a job that too many workers have died with. */
  private async giveUp(job: JobEntity, lost: number, at: string): Promise<void> {
    const { id, type, attempt, progress } = job;
    const outcome = job.cancelRequestedAt
      ? { state: 'cancelled' as const, error: toProblem(new AppError('job_cancelled')) }
      : {
          state: 'failed' as const,
          error: toProblem(new AppError('worker_lost', { detail: `in attempts up to ${attempt}` })),
        };
    const end = {
      ...outcome,
      result: null,
      progress: { ...progress, items: [] },
      finishedAt: at,
      leaseOwner: null,
      leaseUntil: null,
      lost,
    };
    const hasEnded = await atomically(this.database.dataSource, [
      this.updateOfFree(job, at, columns<JobEntity>(end)),
      ...this.eventOf(end.state, { ...job, ...end }),
    ]);
    if (hasEnded) this.logger.error({ jobId: id, attempt }, `${type} is given up: ${lost} workers died with it`);
    this.notify(id);
  }

  /** Changes a job that is due and has no living worker, unless it was claimed since it was read. */
  private updateOfFree({ id, attempt }: JobEntity, at: string, set: QueryDeepPartialEntity<JobEntity>): Statement {
    return this.rows
      .createQueryBuilder()
      .update()
      .set({ ...set, revision: () => 'revision + 1' })
      .where('id = :id AND attempt = :attempt AND state IN (:...states)', {
        id,
        attempt,
        states: ['queued', 'running'],
      })
      .andWhere('("leaseUntil" IS NULL OR "leaseUntil" < :at OR "leaseUntil" > :beyondLease)', {
        beyondLease: beyond(leaseMs),
      })
      .andWhere('("runAfter" IS NULL OR "runAfter" <= :at OR "runAfter" > :beyondDelay)', {
        beyondDelay: beyond(maxDelayMs),
      })
      .setParameter('at', at);
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
    this.notify(id);
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
    if (job?.cancelRequestedAt) await this.endQueued(id);
    else if (job) await this.wake(job);
  }

  /** Ends a job, together with what belongs to its end. False when `where` no longer holds, e.g. the claim was lost. */
  async end(id: string, outcome: JobOutcome, where: { state: 'queued' } | { leaseOwner: string }): Promise<boolean> {
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
      ...this.eventOf(outcome.state as JobMoment, { ...job, ...ended }),
    ]);
    this.notify(id);
    return hasEnded;
  }

  /** The statement that puts an event of a job into the outbox; none for types without events. */
  private eventOf(
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

  /** Ends a job as cancelled that no worker has. False when it is no longer queued. */
  endQueued(id: string): Promise<boolean> {
    return this.end(
      id,
      { state: 'cancelled', error: toProblem(new AppError('job_cancelled')), result: null },
      { state: 'queued' },
    );
  }

  private notify(id: string): void {
    for (const listener of this.changed) listener(id);
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
