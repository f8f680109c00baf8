import { startPostgres, type TempDir, tempDir } from '@airdock/testing/servers';
import { Logger } from '@nestjs/common';
import type { Queue } from 'bullmq';
import type { DataSource } from 'typeorm';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { OutboxEventEntity } from '../events/outbox.entity.js';
import { Outbox } from '../events/outbox.js';
import { newId } from '../ids.js';
import { tablesOf } from '../schema/testing/tables.js';
import { JobEntity, platformEntities } from './job.entity.js';
import { JobsService } from './jobs.service.js';
import { noProgress } from './progress.js';

const type = 'image.push';
const databases = [
  ['SQLite', async () => ({ url: undefined, stop: async () => {} })],
  ['PostgreSQL', startPostgres],
] as const;

describe.each(databases)('jobs on %s', (_name, start) => {
  let server: Awaited<ReturnType<typeof start>>;
  let folder: TempDir;
  let source: DataSource;
  let jobs: JobsService;
  const add = vi.fn<(...wakeUp: unknown[]) => Promise<void>>();
  const rows = () => source.getRepository(JobEntity);
  const submit = async (requestKey?: string) =>
    (await jobs.submit({ type, resource: '/v1/pushes/1', requestKey: requestKey ?? null })).id;
  const wakeUps = () => add.mock.calls.map(([, , options]) => options);

  beforeAll(async () => {
    Logger.overrideLogger(false);
    server = await start();
    folder = await tempDir('jobs');
    const overrides = { dataDir: folder.path, databaseUrl: server.url };
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides });
    source = await connectDatabase(dataSourceOptions(config, 'image', platformEntities, [tablesOf(platformEntities)]));
    const database = new ServiceDatabase(source);
    const queue = { on: () => undefined, add } as unknown as Queue;
    jobs = new JobsService('image', database, new Map([[type, queue]]), new Outbox(database));
  });
  beforeEach(async () => {
    await rows().deleteAll();
    add.mockReset().mockResolvedValue(undefined);
  });
  afterAll(async () => {
    await source?.destroy();
    await folder?.remove();
    await server?.stop();
  });

  it('are submitted once by all who show one key, also at once', async () => {
    const ids = await Promise.all(Array.from({ length: 8 }, () => submit('key')));
    expect(new Set(ids).size).toBe(1);
    expect(await rows().count()).toBe(1);
    expect((await jobs.findRequested('key'))?.id).toBe(ids[0]);
    expect(await jobs.findRequested(null)).toBeUndefined();
  });

  it('are not submitted when a change that belongs to them finds nothing to change', async () => {
    const stale = rows().createQueryBuilder().update().set({ lost: 1 }).where({ id: newId() });
    await expect(jobs.submit({ type, resource: '/v1/pushes/1' }, [stale])).rejects.toMatchObject({
      code: 'resource_changed',
    });
    expect(await rows().count()).toBe(0);
    expect(add).not.toHaveBeenCalled();
  });

  it('are submitted while Redis refuses or does not answer, and woken up by the next sweep', async () => {
    add.mockRejectedValueOnce(new Error('no Redis'));
    const refused = await submit();
    add.mockReturnValueOnce(new Promise(() => undefined));
    const silent = await submit();
    add.mockClear();
    expect(await jobs.claims.sweep()).toBe(false);
    const ids = [refused, silent].toSorted();
    expect(wakeUps().map((one) => (one as { jobId: string }).jobId)).toEqual(ids.map((id) => `${id}-0`));
  });

  it('are left alone by a sweep while they have a lease or are not due, but not for ever by a clock set back', async () => {
    const [held, later] = [await submit(), await submit()];
    await jobs.claims.claim(held, 'worker');
    const inSeconds = (seconds: number) => new Date(Date.now() + seconds * 1000).toISOString();
    await rows().update({ id: later }, { runAfter: inSeconds(20) });
    add.mockClear();
    expect(await jobs.claims.sweep()).toBe(false);
    expect(add).not.toHaveBeenCalled();
    await rows().update({ id: held }, { leaseUntil: inSeconds(3600) });
    await rows().update({ id: later }, { runAfter: inSeconds(3600) });
    await jobs.claims.sweep();
    expect(wakeUps()).toEqual([`${held}-1`, `${later}-0`].map((jobId) => expect.objectContaining({ jobId, delay: 0 })));
  });

  it('need no sweep when all have ended', async () => {
    await jobs.cancel(await submit());
    expect(await jobs.claims.sweep()).toBe(true);
  });

  it('end at once when they are cancelled before a worker has them, and only get a mark when one has', async () => {
    const [queued, running] = [await submit(), await submit()];
    expect(await jobs.cancel(queued)).toMatchObject({ state: 'cancelled', error: { code: 'job_cancelled' } });
    await expect(jobs.cancel(queued)).rejects.toMatchObject({ code: 'job_finished' });
    await jobs.claims.claim(running, 'worker');
    expect(await jobs.cancel(running)).toMatchObject({ state: 'running' });
    expect(await jobs.claims.renew(running, 'worker')).toBe('cancelRequested');
  });

  it('end as cancelled when their worker hands them back after the mark', async () => {
    const id = await submit();
    await jobs.claims.claim(id, 'worker');
    await jobs.cancel(id);
    await jobs.claims.release(id, 'worker', { runAfter: null, failures: 0, progress: noProgress });
    expect(await jobs.get(id)).toMatchObject({ state: 'cancelled', error: { code: 'job_cancelled' } });
  });

  it('are cancelled once, whoever is faster: the worker that claims or who cancels', async () => {
    for (let round = 0; round < 5; round++) {
      const id = await submit();
      const [claimed, { state }] = await Promise.all([jobs.claims.claim(id, 'worker'), jobs.cancel(id)]);
      expect(state).toBe(claimed ? 'running' : 'cancelled');
      if (claimed) expect(await jobs.claims.renew(id, 'worker')).toBe('cancelRequested');
    }
  });

  it('are retried with nothing of the failure left, and not while they run or after they succeeded', async () => {
    const id = await submit();
    await jobs.claims.claim(id, 'worker');
    await expect(jobs.retry(id)).rejects.toMatchObject({ code: 'job_not_retryable' });
    await rows().update({ id }, { failures: 7, lost: 2 });
    await jobs.claims.end(id, { state: 'failed', error: null, result: null }, { leaseOwner: 'worker' });
    add.mockClear();
    expect(await jobs.retry(id)).toMatchObject({ state: 'queued', error: null, finishedAt: null, attempt: 1 });
    expect(await jobs.find(id)).toMatchObject({ failures: 0, lost: 0, leaseOwner: null, leaseUntil: null });
    // Its own wake-up, past what is left of the one before.
    expect(wakeUps()).toEqual([expect.objectContaining({ jobId: `${id}-1` })]);
    await jobs.claims.claim(id, 'worker');
    await jobs.claims.end(id, { state: 'succeeded', error: null, result: {} }, { leaseOwner: 'worker' });
    await expect(jobs.retry(id)).rejects.toMatchObject({ code: 'job_not_retryable' });
  });

  it('tell in their event what to do, without long lists and texts', async () => {
    const id = await submit();
    await jobs.claims.claim(id, 'worker');
    const error = { type: 'x', title: 'x', status: 500, code: 'internal_error', nextStep: 'look', images: ['a'] };
    const outcome = { state: 'failed' as const, error: { ...error, detail: 'd'.repeat(5_000) }, result: null };
    await jobs.claims.end(id, outcome as never, { leaseOwner: 'worker' });
    const [event] = await source.getRepository(OutboxEventEntity).find({ order: { id: 'DESC' }, take: 1 });
    const { data } = JSON.parse(event?.payload ?? '{}') as { data: Record<string, unknown> };
    expect(data).toMatchObject({ jobId: id, state: 'failed' });
    expect(data.error).toEqual({ code: 'internal_error', title: 'x', detail: 'd'.repeat(2_000), nextStep: 'look' });
  });

  it('are found by id, those that are there', async () => {
    const id = await submit();
    expect([...(await jobs.byIds([id, newId()])).keys()]).toEqual([id]);
    expect(await jobs.byIds([])).toEqual(new Map());
    await expect(jobs.get(newId())).rejects.toMatchObject({ code: 'resource_not_found' });
  });

  it('are removed with their children, and not while one of these has not ended', async () => {
    const parent = await submit();
    const child = await jobs.submit({ type, resource: '/v1/pushes/2', parentId: parent });
    expect((await jobs.get(parent)).children).toEqual([child.id]);
    await jobs.cancel(parent);
    expect(await jobs.remove(parent, [])).toBe(false);
    await jobs.cancel(child.id);
    expect(await jobs.remove(parent, [])).toBe(true);
    expect(await rows().count()).toBe(0);
  });
});
