import { EventEmitter } from 'node:events';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import type { MessageEvent } from '@nestjs/common';
import { Logger } from '@nestjs/common';
import type { Queue } from 'bullmq';
import type { DataSource } from 'typeorm';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { Outbox } from '../events/outbox.js';
import { newId } from '../ids.js';
import { tablesOf } from '../schema/testing/tables.js';
import { platformEntities } from './job.entity.js';
import type { Job } from './job.schema.js';
import { JobDirectory, JobsController } from './jobs.controller.js';
import { JobsService } from './jobs.service.js';

describe('the jobs of a process', () => {
  let folder: TempDir;
  const sources: DataSource[] = [];
  let images: JobsService;
  let hosts: JobsService;
  let controller: JobsController;

  const serviceOf = async (name: 'image' | 'host') => {
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides: { dataDir: folder.path } });
    const source = await connectDatabase(
      dataSourceOptions(config, name, platformEntities, [tablesOf(platformEntities)]),
    );
    sources.push(source);
    const database = new ServiceDatabase(source);
    const queue = { on: () => undefined, add: async () => undefined } as unknown as Queue;
    return new JobsService(name, database, new Map([['job', queue]]), new Outbox(database));
  };
  const submit = async (service = images) => (await service.submit({ type: 'job', resource: '/v1/things/1' })).id;
  const get = (id: string, waitSeconds = 0, raw = new EventEmitter()) => controller.get(id, { waitSeconds }, { raw });
  /** Ends it as another process would: nobody here is told. */
  const endElsewhere = (id: string) =>
    sources[0]?.query(`UPDATE job SET state = 'succeeded', revision = revision + 1 WHERE id = ?`, [id]);

  beforeAll(async () => {
    Logger.overrideLogger(false);
    folder = await tempDir('jobs-controller');
    images = await serviceOf('image');
    hosts = await serviceOf('host');
    controller = new JobsController(new JobDirectory([images, hosts]));
  });
  afterAll(async () => {
    for (const source of sources) await source.destroy();
    await folder?.remove();
  });

  it('are found in whichever service they are, and refused when in none', async () => {
    const id = await submit(hosts);
    expect(await get(id)).toMatchObject({ id, state: 'queued' });
    expect(await controller.cancel(id)).toMatchObject({ state: 'cancelled' });
    expect(await controller.retry(id)).toMatchObject({ state: 'queued' });
    for (const call of [get(newId()), controller.cancel(newId()), controller.events(newId())])
      await expect(call).rejects.toMatchObject({ code: 'resource_not_found' });
  });

  it('are listed newest first over all services, each once', async () => {
    const ids = [await submit(), await submit(hosts), await submit(), await submit(hosts)].toReversed();
    const first = await controller.list({ limit: 3 });
    expect(first.items.map(({ id }) => id)).toEqual(ids.slice(0, 3));
    expect((await controller.list({ limit: 1, cursor: first.nextCursor })).items).toMatchObject([{ id: ids[3] }]);
  });

  it.each([
    ['this process', (id: string) => images.cancel(id), 'cancelled'],
    ['another process', endElsewhere, 'succeeded'],
  ])('answer a long-poll when %s has ended them', async (_who, end, state) => {
    const id = await submit();
    const answer = get(id, 60);
    await end(id);
    expect(await answer).toMatchObject({ state });
  });

  it('answer a long-poll with what there is, at once when whoever asked has gone or the job has ended', async () => {
    const id = await submit();
    const raw = new EventEmitter();
    const answer = get(id, 60, raw);
    await waitFor(() => raw.listenerCount('close') > 0, { what: 'the wait' });
    raw.emit('close');
    expect(await answer).toMatchObject({ state: 'queued' });
    await images.cancel(id);
    expect(await get(id, 60)).toMatchObject({ state: 'cancelled' });
  });

  it('are streamed at once and at each change, and the stream ends with the job', async () => {
    const id = await submit();
    const seen: MessageEvent[] = [];
    const complete = vi.fn();
    (await controller.events(id)).subscribe({ next: (event) => seen.push(event), complete });
    await waitFor(() => seen.length === 1, { what: 'the job as it is' });
    await images.claims.claim(id, 'worker');
    await waitFor(() => seen.length === 2, { what: 'its start' });
    await images.claims.end(id, { state: 'succeeded', error: null, result: {} }, { leaseOwner: 'worker' });
    await waitFor(() => complete.mock.calls.length === 1, { what: 'the end of the stream' });
    expect(seen.map(({ data }) => (data as unknown as Job).state)).toEqual(['queued', 'running', 'succeeded']);
  });

  it('are read once more when the table could not be read', async () => {
    const id = await submit();
    const failing = vi.spyOn(images, 'revisions').mockRejectedValueOnce(new Error('busy'));
    const answer = get(id, 60);
    await waitFor(() => failing.mock.calls.length > 0, { what: 'the failed look' });
    await endElsewhere(id);
    expect(await answer).toMatchObject({ state: 'succeeded' });
  });
});
