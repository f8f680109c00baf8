import { startPostgres, tempDir } from '@airdock/testing/servers';
import { Column, type DataSource, Entity, PrimaryColumn } from 'typeorm';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadConfig } from './config.js';
import { atomically, connectDatabase, dataSourceOptions, isUniqueViolation, ServiceDatabase } from './database.js';
import { OutboxEventEntity } from './events/outbox.entity.js';
import { Outbox } from './events/outbox.js';
import { newId } from './ids.js';
import { platformEntities } from './jobs/job.entity.js';
import { JobsService } from './jobs/jobs.service.js';

@Entity('thing')
class ThingEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('integer') version!: number;
}

const databases = [
  ['SQLite', async () => ({ databaseUrl: undefined, stop: async () => {} })],
  [
    'PostgreSQL',
    async () => {
      const server = await startPostgres();
      return { databaseUrl: server.url, stop: () => server.stop() };
    },
  ],
] as const;

describe.each(databases)('on %s', (_name, start) => {
  let server: Awaited<ReturnType<typeof start>>;
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let sources: DataSource[];
  const things = () => (sources[0] as DataSource).getRepository(ThingEntity);
  const insert = (name: string) => things().createQueryBuilder().insert().values({ id: newId(), name, version: 1 });
  const change = (name: string, version: number) =>
    things()
      .createQueryBuilder()
      .update()
      .set({ version: version + 1 })
      .where({ name, version });

  beforeAll(async () => {
    server = await start();
    folder = await tempDir('database');
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides: { dataDir: folder.path, databaseUrl: server.databaseUrl } });
    // As when API and worker start at the same time on an empty database.
    sources = await Promise.all([1, 2].map(() => connectDatabase(dataSourceOptions(config, 'image', [...platformEntities, ThingEntity]))));
  });
  afterAll(async () => {
    for (const source of sources ?? []) await source.destroy();
    await folder?.remove();
    await server?.stop();
  });

  it('runs statements all or none', async () => {
    expect(await atomically(sources[0] as DataSource, [insert('a'), change('a', 1)])).toBe(true);
    expect(await things().findOneBy({ name: 'a' })).toMatchObject({ version: 2 });
    const conflict = await atomically(sources[0] as DataSource, [insert('b'), insert('a')]).catch((error: unknown) => error);
    expect(isUniqueViolation(conflict)).toBe(true);
    expect(await things().findOneBy({ name: 'b' })).toBeNull();
  });

  it('undoes all when a guarded change finds nothing to change', async () => {
    expect(await atomically(sources[0] as DataSource, [insert('c'), change('a', 99)])).toBe(false);
    expect(await things().findOneBy({ name: 'c' })).toBeNull();
  });

  it('keeps the writes of others out of a transaction that is rolled back', async () => {
    const source = sources[0] as DataSource;
    const outcomes = await Promise.all(
      Array.from({ length: 40 }, (_, index) =>
        index % 2 === 0 ? things().insert({ id: newId(), name: `free-${index}`, version: 1 }) : atomically(source, [insert(`bound-${index}`), change('a', 99)]),
      ),
    );
    expect(outcomes.filter((outcome) => outcome === false)).toHaveLength(20);
    const names = (await things().find()).map(({ name }) => name);
    expect(names.filter((name) => name.startsWith('free-'))).toHaveLength(20);
    expect(names.filter((name) => name.startsWith('bound-'))).toHaveLength(0);
  });

  it('gives a job to one worker at a time, and to another when the first one is silent for too long', async () => {
    const [first, second] = sources.map((source) => {
      const database = new ServiceDatabase(source);
      return new JobsService('image', database, new Map([['image.push', fakeQueue]]), new Outbox(database));
    });
    const { id } = await (first as JobsService).submit({ type: 'image.push', resource: '/v1/things/1' }, [insert('with-job')]);
    expect(await things().findOneBy({ name: 'with-job' })).not.toBeNull();
    const claims = await Promise.all([first?.claim(id, 'one'), second?.claim(id, 'two')]);
    expect(claims.filter(Boolean)).toHaveLength(1);
    const owner = claims[0] ? 'one' : 'two';
    const other = owner === 'one' ? 'two' : 'one';
    expect(await first?.renew(id, other)).toBe('lost');
    expect(await first?.renew(id, owner)).toBe('held');
    // The owner was killed long ago.
    await (sources[0] as DataSource).query(`UPDATE ${server.databaseUrl ? 'image.job' : 'job'} SET "leaseUntil" = '2020-01-01T00:00:00.000Z'`);
    expect(await second?.claim(id, other)).toMatchObject({ attempt: 2, leaseOwner: other });
    expect(await first?.end(id, { state: 'succeeded', error: null, result: null }, { leaseOwner: owner })).toBe(false);
    expect(await second?.end(id, { state: 'succeeded', error: null, result: { a: 1 } }, { leaseOwner: other })).toBe(true);
    expect(await first?.get(id)).toMatchObject({ state: 'succeeded', result: { a: 1 }, attempt: 2 });
    expect(await first?.claim(id, owner)).toBeUndefined();
    // Told once, although two workers began it.
    const told = await (sources[0] as DataSource).getRepository(OutboxEventEntity).find({ order: { id: 'ASC' } });
    expect(told.map(({ type }) => type)).toEqual(['image.push.started', 'image.push.succeeded']);
    expect(JSON.parse(told[1]?.payload ?? '')).toMatchObject({
      type: 'image.push.succeeded',
      data: { jobId: id, job: `/v1/jobs/${id}`, resource: '/v1/things/1', state: 'succeeded', result: { a: 1 }, error: null },
    });
  });

  it('gives a job up whose third worker has died, but not one that was handed back or waits; a retry begins to count anew', async () => {
    const [source] = sources as [DataSource];
    const database = new ServiceDatabase(source);
    const jobs = new JobsService('image', database, new Map([['image.push', fakeQueue]]), new Outbox(database));
    const { id } = await jobs.submit({ type: 'image.push', resource: '/v1/things/2' });
    const progress = (await jobs.find(id))?.progress as never;
    const die = async (owner: string) => {
      expect(await jobs.claim(id, `${owner}/x`)).toMatchObject({ leaseOwner: `${owner}/x` });
      expect(await jobs.claim(id, 'nobody')).toBeUndefined();
      await jobs.releaseDead(`${owner}/`);
    };
    for (let round = 0; round < 4; round++) {
      await jobs.claim(id, 'orderly');
      await jobs.release(id, 'orderly', { runAfter: null, failures: round, progress });
    }
    for (const owner of ['one', 'two', 'three']) await die(owner);
    const [a, b] = await Promise.all([jobs.claim(id, 'four'), jobs.claim(id, 'five')]);
    expect([a, b]).toEqual([undefined, undefined]);
    expect(await jobs.get(id)).toMatchObject({ state: 'failed', error: { code: 'worker_lost' }, attempt: 7, finishedAt: expect.any(String) });
    const told = await source.getRepository(OutboxEventEntity).find({ order: { id: 'ASC' } });
    expect(told.map(({ type }) => type).slice(-2)).toEqual(['image.push.started', 'image.push.failed']);
    await jobs.retry(id);
    for (const owner of ['six', 'seven']) await die(owner);
    expect(await jobs.claim(id, 'eight')).toMatchObject({ attempt: 10, lost: 2 });
    // Cancelled while its last worker died.
    await jobs.cancel(id);
    await jobs.releaseDead('eight');
    expect(await jobs.claim(id, 'nine')).toBeUndefined();
    expect((await jobs.get(id)).state).toBe('cancelled');
  });
});

// Only what the database decides is under test; wake-ups are covered by service.spec.ts on a real Redis.
const fakeQueue = { on: () => undefined, add: async () => undefined } as never;
