import { hostname } from 'node:os';
import { AppError, isTransient, toProblem } from '@airdock/core/errors';
import { OnWorkerEvent, WorkerHost } from '@nestjs/bullmq';
import { type BeforeApplicationShutdown, Logger } from '@nestjs/common';
import type { Job as QueueJob } from 'bullmq';
import { translateDatabaseError } from '../database.js';
import { newId } from '../ids.js';
import type { JobEntity } from './job.entity.js';
import { type JobClaims, type JobOutcome, leaseMs, maxDelayMs } from './job-claims.js';
import { idOfResource } from './job-resource.js';
import type { JobsService } from './jobs.service.js';
import { ProgressMeter, type ProgressUpdate } from './progress.js';

/** What a job's method is given. */
export interface JobContext {
  jobId: string;
  /** The id in the job's `resource`. */
  resourceId: string;
  /** 1 on the first run; more when it continues an earlier one. */
  attempt: number;
  /**
   * Aborts on cancel, on shutdown and when the claim is lost; its reason is an AppError. Pass it to everything that
   * waits.
   */
  signal: AbortSignal;
  /** Cheap to call often; stored a few times a second. */
  progress(update: ProgressUpdate): void;
  /** Resolves when what was reported is stored: before something is noted elsewhere that the next run does not do again. */
  saved(): Promise<void>;
}

/**
 * The job, for a phase of it that is from `from` to `to` percent of the whole: without it a phase of one item would
 * bring the job to its end. What has no items counts by its end.
 */
export function phaseOf(context: JobContext, from: number, to: number): JobContext {
  let total = 0;
  let done = 0;
  const progress = (update: ProgressUpdate) => {
    total = update.itemsTotal ?? total;
    done = Math.max(done, update.itemsDone ?? 0);
    context.progress({ ...update, percent: from + (to - from) * (total > 0 ? Math.min(1, done / total) : 0) });
  };
  return { ...context, progress };
}

const heartbeatMs = 1_000;
const flushMs = 300;

/** Thrown into a job whose worker shuts down or lost its claim: the job goes on elsewhere. */
class Interrupted extends Error {}

/**
 * Does the work; the value becomes the job's `result`. It may be started again at any time, and continues from what is
 * already done. Transient errors (family `unavailable`) are tried again with backoff.
 */
export type JobRun = (context: JobContext) => Promise<Record<string, unknown> | undefined>;

/** When a job is given up. */
export interface JobLimits {
  /** How many transient failures in a row end the job. Default 8. */
  maxFailures?: number | undefined;
  /** A run that reports nothing for so long is aborted with `job_stalled`, and tried again, ms. Default 2 hours. */
  stallMs?: number | undefined;
}

/** One run of a job that this worker has claimed: keeps the claim alive, stores progress, and writes the end. */
class ClaimedRun {
  private readonly controller = new AbortController();
  private readonly meter: ProgressMeter;
  private renewedAt = performance.now();
  private reportedAt = performance.now();
  /** Whether something was reported that is not stored. */
  private isDirty = false;
  private saving: Promise<void> = Promise.resolve();

  constructor(
    private readonly job: JobEntity,
    private readonly owner: string,
    private readonly claims: JobClaims,
    private readonly limits: Required<JobLimits>,
    private readonly logger: Logger,
  ) {
    this.meter = new ProgressMeter(job.progress);
  }

  /** Lets the job go on elsewhere. */
  interrupt(why: string): void {
    this.controller.abort(new Interrupted(why));
  }

  /** Resolves when the row says what became of the run. */
  async finish(run: JobRun): Promise<void> {
    const { signal } = this.controller;
    const loops = [this.every(heartbeatMs, () => this.renew()), this.every(flushMs, () => this.save())];
    const stopLoops = () => Promise.all(loops.map((loop) => loop.stop()));
    const watchdog = setInterval(() => this.abortWhenSilent(), heartbeatMs / 2);
    try {
      if (this.job.cancelRequestedAt) this.controller.abort(new AppError('job_cancelled'));
      signal.throwIfAborted();
      const result = await run(this.context());
      signal.throwIfAborted();
      await stopLoops();
      await this.succeed(result ?? null);
    } catch (thrown) {
      await stopLoops();
      await this.giveBackOrEnd(signal.aborted ? signal.reason : translateDatabaseError(thrown));
    } finally {
      clearInterval(watchdog);
    }
  }

  private context(): JobContext {
    return {
      jobId: this.job.id,
      resourceId: idOfResource(this.job),
      attempt: this.job.attempt,
      signal: this.controller.signal,
      progress: (update) => {
        this.meter.update(update);
        this.reportedAt = performance.now();
        this.isDirty = true;
      },
      saved: () => this.save(),
    };
  }

  private async renew(): Promise<void> {
    const askedAt = performance.now();
    const claim = await this.claims.renew(this.job.id, this.owner);
    this.renewedAt = askedAt;
    if (claim === 'cancelRequested') this.controller.abort(new AppError('job_cancelled'));
    if (claim === 'lost') this.interrupt('the claim was lost');
  }

  /**
   * Without a claim another worker may have the job: a database that cannot be reached, or a process that was frozen,
   * must not go on writing.
   */
  private abortWhenSilent(): void {
    if (performance.now() - this.renewedAt > leaseMs - heartbeatMs) this.interrupt('the claim could not be renewed');
    const silentMs = performance.now() - this.reportedAt;
    if (silentMs <= this.limits.stallMs) return;
    const detail = `nothing since ${Math.round(silentMs / 60_000)} min, in "${this.meter.value.phase}"`;
    this.controller.abort(new AppError('job_stalled', { detail }));
  }

  /** One after the other: whoever asks has what was reported stored, also while a flush is under way. */
  private save(): Promise<void> {
    const saveNow = () => this.saveNow();
    this.saving = this.saving.then(saveNow, saveNow);
    return this.saving;
  }

  private async saveNow(): Promise<void> {
    if (!this.isDirty) return;
    this.isDirty = false;
    try {
      await this.claims.saveProgress(this.job.id, this.owner, this.meter.value, this.meter);
    } catch (error) {
      this.isDirty = true;
      throw error;
    }
  }

  private async succeed(result: JobEntity['result']): Promise<void> {
    const progress = { ...this.meter.value, phase: 'done', percent: 100, etaSeconds: 0, items: [] };
    await this.end({ state: 'succeeded', error: null, result, progress });
  }

  private async giveBackOrEnd(error: unknown): Promise<void> {
    const failures = this.meter.hasAdvanced ? 1 : this.job.failures + 1;
    if (error instanceof Interrupted) return this.release(null, this.job.failures);
    if (isTransient(error) && failures < this.limits.maxFailures) return this.tryLater(error, failures);
    // What another job's cancellation has kept this one from is a failure.
    const isCancelled = this.controller.signal.aborted && !isTransient(error);
    if (!isCancelled) this.logger.error({ jobId: this.job.id, err: error }, `${this.job.type} failed`);
    await this.end({
      state: isCancelled ? 'cancelled' : 'failed',
      error: toProblem(error),
      result: null,
      progress: { ...this.meter.value, items: [] },
    });
  }

  private async tryLater(error: unknown, failures: number): Promise<void> {
    const delayMs = Math.min(maxDelayMs, 500 * 2 ** failures) * (0.75 + Math.random() / 2);
    this.logger.warn(
      { jobId: this.job.id, err: error },
      `try ${failures} failed, the next in ${Math.round(delayMs)} ms`,
    );
    await this.release(new Date(Date.now() + delayMs).toISOString(), failures);
  }

  private async release(runAfter: string | null, failures: number): Promise<void> {
    await this.claims.release(this.job.id, this.owner, { runAfter, failures, progress: this.meter.value });
  }

  private async end(outcome: JobOutcome): Promise<void> {
    await this.claims.end(this.job.id, outcome, { leaseOwner: this.owner });
  }

  /**
   * Repeats `action`, one at a time; `stop` waits for the running one. A failing database does not end the loop: the
   * lease decides.
   */
  private every(ms: number, action: () => Promise<void>): { stop(): Promise<void> } {
    let current: Promise<void> = Promise.resolve();
    const timer = setInterval(() => {
      current = current
        .then(action)
        .catch((error: unknown) => this.logger.warn({ err: error }, 'the job row could not be updated'));
    }, ms);
    return {
      stop: () => {
        clearInterval(timer);
        return current;
      },
    };
  }
}

/** Takes jobs of one type: claims the row, runs the job, and hands what runs back at shutdown. */
export class JobProcessor extends WorkerHost implements BeforeApplicationShutdown {
  private readonly owner = `${hostname()}/${process.pid}/${newId()}`;
  private readonly running = new Map<ClaimedRun, Promise<void>>();
  private readonly limits: Required<JobLimits>;
  private readonly logger: Logger;

  private isClosing = false;

  constructor(
    private readonly jobs: JobsService,
    type: string,
    private readonly run: JobRun,
    { maxFailures = 8, stallMs = 2 * 60 * 60 * 1000 }: JobLimits = {},
  ) {
    super();
    this.limits = { maxFailures, stallMs };
    this.logger = new Logger(type);
    jobs.processors.push(this);
  }

  /** Begins to take jobs. */
  start(): void {
    void this.worker.run();
  }

  async process(wakeUp: QueueJob<{ jobId: string }>): Promise<void> {
    const { claims } = this.jobs;
    // What is handed back at shutdown is for others.
    const job = this.isClosing ? undefined : await claims.claim(wakeUp.data.jobId, this.owner);
    if (!job) return;
    const claimed = new ClaimedRun(job, this.owner, claims, this.limits, this.logger);
    const done = claimed.finish(this.run).finally(() => this.running.delete(claimed));
    this.running.set(claimed, done);
    await done;
  }

  /** Redis going away is no error of the job's. */
  @OnWorkerEvent('error')
  onWorkerError(error: Error): void {
    this.logger.debug(`queue: ${error.message}`);
  }

  /**
   * Lets running jobs go back to the queue while the database is still open, so that another worker continues them at
   * once.
   */
  async beforeApplicationShutdown(): Promise<void> {
    this.isClosing = true;
    for (const claimed of this.running.keys()) claimed.interrupt('the worker shuts down');
    await Promise.all(this.running.values());
  }
}
