import { hostname } from 'node:os';
import { AppError, isTransient, toProblem } from '@airdock/core/errors';
import { OnWorkerEvent, WorkerHost } from '@nestjs/bullmq';
import { type BeforeApplicationShutdown, Logger } from '@nestjs/common';
import type { Job as QueueJob } from 'bullmq';
import { translateDatabaseError } from '../database.js';
import { newId } from '../ids.js';
import type { JobEntity } from './job.entity.js';
import { idOfResource } from './job-resource.js';
import { type JobsService, leaseMs, maxDelayMs } from './jobs.service.js';
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
  /** Resolves when what was told is stored: before something is noted elsewhere that the next run does not do again. */
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

/** Runs jobs of one type: claims the row, keeps the claim alive, stores progress, and writes the end. */
export class JobProcessor extends WorkerHost implements BeforeApplicationShutdown {
  private readonly owner = `${hostname()}/${process.pid}/${newId()}`;
  private readonly running = new Map<AbortController, Promise<void>>();
  private readonly maxFailures: number;
  private readonly stallMs: number;
  private readonly logger: Logger;

  private isClosing = false;

  constructor(
    private readonly jobs: JobsService,
    type: string,
    private readonly run: JobRun,
    { maxFailures = 8, stallMs = 2 * 60 * 60 * 1000 }: JobLimits = {},
  ) {
    super();
    [this.maxFailures, this.stallMs, this.logger] = [maxFailures, stallMs, new Logger(type)];
    jobs.processors.push(this);
  }

  /** Begins to take jobs. */
  start(): void {
    void this.worker.run();
  }

  async process(wakeUp: QueueJob<{ jobId: string }>): Promise<void> {
    // What is handed back at shutdown is for others.
    const job = this.isClosing ? undefined : await this.jobs.claim(wakeUp.data.jobId, this.owner);
    if (!job) return;
    const controller = new AbortController();
    const done = this.runClaimed(job, controller).finally(() => this.running.delete(controller));
    this.running.set(controller, done);
    await done;
  }

  private async runClaimed(job: JobEntity, controller: AbortController): Promise<void> {
    const meter = new ProgressMeter(job.progress);
    let dirty = false;
    let [renewedAt, reportedAt] = [performance.now(), performance.now()];
    const heartbeat = this.every(heartbeatMs, async () => {
      const askedAt = performance.now();
      const claim = await this.jobs.renew(job.id, this.owner);
      renewedAt = askedAt;
      if (claim === 'cancelRequested') controller.abort(new AppError('job_cancelled'));
      if (claim === 'lost') controller.abort(new Interrupted('the claim was lost'));
    });
    // Without a claim another worker may have the job: a database that cannot be reached, or a process that was frozen,
    // must not go on writing.
    const watchdog = setInterval(() => {
      if (performance.now() - renewedAt > leaseMs - heartbeatMs)
        controller.abort(new Interrupted('the claim could not be renewed'));
      const silentMs = performance.now() - reportedAt;
      if (silentMs > this.stallMs)
        controller.abort(
          new AppError('job_stalled', {
            detail: `nothing since ${Math.round(silentMs / 60_000)} min, in "${meter.value.phase}"`,
          }),
        );
    }, heartbeatMs / 2);
    let saving: Promise<void> = Promise.resolve();
    const saveNow = async () => {
      if (!dirty) return;
      dirty = false;
      try {
        await this.jobs.saveProgress(job.id, this.owner, meter.value, meter);
      } catch (error) {
        dirty = true;
        throw error;
      }
    };
    // One after the other: whoever asks has what was reported stored, also while a flush is under way.
    const save = () => {
      saving = saving.then(saveNow, saveNow);
      return saving;
    };
    const flush = this.every(flushMs, save);
    const where = { leaseOwner: this.owner };
    try {
      if (job.cancelRequestedAt) controller.abort(new AppError('job_cancelled'));
      controller.signal.throwIfAborted();
      const result = await this.run({
        jobId: job.id,
        resourceId: idOfResource(job),
        attempt: job.attempt,
        signal: controller.signal,
        progress: (update) => {
          meter.update(update);
          reportedAt = performance.now();
          dirty = true;
        },
        saved: save,
      });
      controller.signal.throwIfAborted();
      await Promise.all([heartbeat.stop(), flush.stop()]);
      const progress = { ...meter.value, phase: 'done', percent: 100, etaSeconds: 0, items: [] };
      await this.jobs.end(job.id, { state: 'succeeded', error: null, result: result ?? null, progress }, where);
    } catch (thrown) {
      await Promise.all([heartbeat.stop(), flush.stop()]);
      const error: unknown = controller.signal.aborted ? controller.signal.reason : translateDatabaseError(thrown);
      const failures = meter.hasAdvanced ? 1 : job.failures + 1;
      if (error instanceof Interrupted) {
        await this.jobs.release(job.id, this.owner, { runAfter: null, failures: job.failures, progress: meter.value });
      } else if (isTransient(error) && failures < this.maxFailures) {
        const delayMs = Math.min(maxDelayMs, 500 * 2 ** failures) * (0.75 + Math.random() / 2);
        this.logger.warn(
          { jobId: job.id, err: error },
          `try ${failures} failed, the next in ${Math.round(delayMs)} ms`,
        );
        await this.jobs.release(job.id, this.owner, {
          runAfter: new Date(Date.now() + delayMs).toISOString(),
          failures,
          progress: meter.value,
        });
      } else {
        // What another job's cancellation has kept this one from is a failure.
        const cancelled = controller.signal.aborted && !isTransient(error);
        if (!cancelled) this.logger.error({ jobId: job.id, err: error }, `${job.type} failed`);
        await this.jobs.end(
          job.id,
          {
            state: cancelled ? 'cancelled' : 'failed',
            error: toProblem(error),
            result: null,
            progress: { ...meter.value, items: [] },
          },
          where,
        );
      }
    } finally {
      clearInterval(watchdog);
    }
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
    const running = [...this.running];
    for (const [controller] of running) controller.abort(new Interrupted('the worker shuts down'));
    await Promise.all(running.map(([, done]) => done));
  }
}
