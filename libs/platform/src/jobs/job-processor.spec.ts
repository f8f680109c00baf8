import { AppError } from '@airdock/core/errors';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { Logger } from '@nestjs/common';
import type { Job as QueueJob } from 'bullmq';
import type { DataSource } from 'typeorm';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { Outbox } from '../events/outbox.js';
import { tablesOf } from '../schema/testing/tables.js';
import { platformEntities } from './job.entity.js';
import { type JobContext, type JobLimits, JobProcessor, type JobRun, phaseOf } from './job-processor.js';
import { JobsService } from './jobs.service.js';

// Wake-ups are put into processors by hand: what becomes of a job is decided by its row.
const fakeQueue = { on: () => undefined, add: async () => undefined } as never;
const type = 'image.thing';

describe('a job that is run', () => {
  let folder: TempDir;
  let source: DataSource;
  let jobs: JobsService;

  beforeAll(async () => {
    Logger.overrideLogger(false);
    folder = await tempDir('job-processor');
    const overrides = { dataDir: folder.path };
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides });
    source = await connectDatabase(dataSourceOptions(config, 'image', platformEntities, [tablesOf(platformEntities)]));
    const database = new ServiceDatabase(source);
    jobs = new JobsService('image', database, new Map([[type, fakeQueue]]), new Outbox(database));
  });
  afterAll(async () => {
    await source?.destroy();
    await folder?.remove();
  });

  const processorOf = (run: JobRun, limits?: JobLimits) => new JobProcessor(jobs, type, run, limits);
  const submit = async () => (await jobs.submit({ type, resource: '/v1/things/clay' })).id;
  const wake = (processor: JobProcessor, jobId: string) => processor.process({ data: { jobId } } as QueueJob);
  const untilAborted = ({ signal }: Pick<JobContext, 'signal'>) =>
    new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)));

  it('is run once by all who are woken up for it, with the id of its resource, and keeps its result', async () => {
    const run = vi.fn(async ({ resourceId, attempt }: JobContext) => ({ resourceId, attempt }));
    const id = await submit();
    await Promise.all([processorOf(run), processorOf(run)].map((processor) => wake(processor, id)));
    await wake(processorOf(run), id);
    expect(run).toHaveBeenCalledTimes(1);
    const result = { resourceId: 'clay', attempt: 1 };
    expect(await jobs.get(id)).toMatchObject({ state: 'succeeded', result, progress: { phase: 'done', percent: 100 } });
  });

  it('is left to whoever has its claim now, and neither ended nor handed back', async () => {
    const id = await submit();
    const seen = vi.fn();
    const ended = wake(
      processorOf(async (context) => untilAborted(context).catch((error: Error) => seen(error.message))),
      id,
    );
    await waitFor(async () => (await jobs.get(id)).state === 'running', { what: 'the claim' });
    await source.query(`UPDATE job SET "leaseOwner" = 'another worker' WHERE id = ?`, [id]);
    await ended;
    expect(seen).toHaveBeenCalledWith('the claim was lost');
    expect(await jobs.find(id)).toMatchObject({ state: 'running', leaseOwner: 'another worker', result: null });
  });

  it('goes back to the others at shutdown, with what it had reported; then nothing more is taken', async () => {
    const [id, later] = [await submit(), await submit()];
    const processor = processorOf((context) => {
      context.progress({ phase: 'work', itemsDone: 1, itemsTotal: 4 });
      return untilAborted(context);
    });
    const ended = wake(processor, id);
    await waitFor(async () => (await jobs.get(id)).progress.percent === 25, { what: 'progress' });
    await processor.beforeApplicationShutdown();
    await ended;
    const free = { leaseOwner: null, leaseUntil: null, runAfter: null, failures: 0 };
    expect(await jobs.find(id)).toMatchObject({ state: 'queued', progress: { percent: 25 }, ...free });
    await wake(processor, later);
    expect(await jobs.get(later)).toMatchObject({ state: 'queued', attempt: 0 });
  });

  it('fails as stalled when it reports nothing, and lives as long as it does', async () => {
    const limits = { stallMs: 1_000, maxFailures: 1 };
    const silent = [await submit(), await submit()];
    const talking = await submit();
    // As long as two together that say nothing.
    const talk = async ({ progress }: JobContext) => {
      const timer = setInterval(() => progress({ phase: 'work' }), 50);
      for (const id of silent) await wake(processorOf(untilAborted, limits), id);
      clearInterval(timer);
      return {};
    };
    await wake(processorOf(talk, limits), talking);
    for (const id of silent)
      expect(await jobs.get(id)).toMatchObject({ state: 'failed', error: { code: 'job_stalled' } });
    expect(await jobs.get(talking)).toMatchObject({ state: 'succeeded' });
  });

  it('is tried again later after an error that may pass, and ends with the last one that counts', async () => {
    const processor = processorOf(() => Promise.reject(new AppError('registry_unavailable')), { maxFailures: 2 });
    const id = await submit();
    await wake(processor, id);
    const waiting = await jobs.find(id);
    expect(waiting).toMatchObject({ state: 'queued', failures: 1, leaseOwner: null, runAfter: expect.any(String) });
    // Not before it is due.
    await wake(processor, id);
    expect(await jobs.get(id)).toMatchObject({ state: 'queued', attempt: 1 });
    await source.query('UPDATE job SET "runAfter" = NULL WHERE id = ?', [id]);
    await wake(processor, id);
    expect(await jobs.get(id)).toMatchObject({ state: 'failed', error: { code: 'registry_unavailable' } });
  });

  it('is not begun when it was cancelled while nobody had it, and is ended when it was cancelled while it ran', async () => {
    const run = vi.fn(untilAborted);
    const id = await submit();
    const ended = wake(processorOf(run), id);
    await waitFor(async () => (await jobs.get(id)).state === 'running', { what: 'the claim' });
    await jobs.cancel(id);
    await ended;
    expect(await jobs.get(id)).toMatchObject({ state: 'cancelled', error: { code: 'job_cancelled' } });
    const marked = await submit();
    await source.query('UPDATE job SET "cancelRequestedAt" = "createdAt" WHERE id = ?', [marked]);
    await wake(processorOf(run), marked);
    expect(await jobs.get(marked)).toMatchObject({ state: 'cancelled' });
    expect(run).toHaveBeenCalledTimes(1);
  });

  it('counts a phase as its share of the whole, and never backwards', () => {
    const percents: (number | undefined)[] = [];
    const context = { progress: ({ percent }) => percents.push(percent) } as Partial<JobContext> as JobContext;
    const phase = phaseOf(context, 40, 90);
    phase.progress({ phase: 'pull' });
    phase.progress({ itemsTotal: 4, itemsDone: 2 });
    phase.progress({ itemsDone: 1 });
    phase.progress({ itemsDone: 8 });
    expect(percents).toEqual([40, 65, 65, 90]);
  });
});
