import { startPostgres, tempDir } from '@airdock/testing/servers';
import {
  Column,
  type DataSource,
  type DataSourceOptions,
  Entity,
  In,
  PrimaryColumn,
  type QueryRunner,
  TableColumn,
} from 'typeorm';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadConfig } from './config.js';
import {
  atomically,
  columns,
  connectDatabase,
  dataSourceOptions,
  isUniqueViolation,
  ServiceDatabase,
  translateDatabaseError,
} from './database.js';
import { OutboxEventEntity } from './events/outbox.entity.js';
import { Outbox } from './events/outbox.js';
import { IdempotencyKeyEntity } from './http/idempotency.entity.js';
import { newId } from './ids.js';
import { JobEntity, platformEntities } from './jobs/job.entity.js';
import { ownedBy, ownedByOthers } from './jobs/job-claims.js';
import { JobRetention } from './jobs/job-retention.js';
import { JobsService } from './jobs/jobs.service.js';
import { noProgress } from './jobs/progress.js';
import { ForwardMigration, type Migration, tablePath } from './schema/migration.js';
import { tablesOf } from './schema/testing/tables.js';

@Entity('thing')
class ThingEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('integer') version!: number;
}

@Entity('check')
class CheckEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') jobId!: string;
}

@Entity('group')
class ClusterEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { nullable: true }) lastJobId!: string | null;
  @Column('varchar', { nullable: true }) checkId!: string | null;
}

const entities = [...platformEntities, ThingEntity, CheckEntity, ClusterEntity];

const addsColumn = (name: string, column: string): Migration =>
  class extends ForwardMigration {
    readonly name = name;
    async up(runner: QueryRunner): Promise<void> {
      await runner.addColumn(
        tablePath(runner, 'thing'),
        new TableColumn({ name: column, type: 'varchar', isNullable: true }),
      );
    }
  };
const AddsColors = addsColumn('AddsColors1764547300000', 'color');
const AddsSizes = addsColumn('AddsSizes1764547400000', 'size');

const columnsOf = async (source: DataSource): Promise<string[]> => {
  const runner = source.createQueryRunner();
  try {
    return (await runner.getTable(source.getMetadata(ThingEntity).tablePath))?.columns.map(({ name }) => name) ?? [];
  } finally {
    await runner.release();
  }
};

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
    const config = loadConfig({
      environment: {},
      file: '/dev/null',
      overrides: { dataDir: folder.path, databaseUrl: server.databaseUrl },
    });
    // As when API and worker start at the same time on an empty database.
    sources = await Promise.all(
      [1, 2].map(() => connectDatabase(dataSourceOptions(config, 'image', entities, [tablesOf(entities)]))),
    );
  });
  afterAll(async () => {
    for (const source of sources ?? []) await source.destroy();
    await folder?.remove();
    await server?.stop();
  });

  it('runs statements all or none', async () => {
    expect(await atomically(sources[0] as DataSource, [insert('a'), change('a', 1)])).toBe(true);
    expect(await things().findOneBy({ name: 'a' })).toMatchObject({ version: 2 });
    const conflict = await atomically(sources[0] as DataSource, [insert('b'), insert('a')]).catch(
      (error: unknown) => error,
    );
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
        index % 2 === 0
          ? things().insert({ id: newId(), name: `free-${index}`, version: 1 })
          : atomically(source, [insert(`bound-${index}`), change('a', 99)]),
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
    const { id } = await (first as JobsService).submit({ type: 'image.push', resource: '/v1/things/1' }, [
      insert('with-job'),
    ]);
    expect(await things().findOneBy({ name: 'with-job' })).not.toBeNull();
    const claims = await Promise.all([first?.claims.claim(id, 'one'), second?.claims.claim(id, 'two')]);
    expect(claims.filter(Boolean)).toHaveLength(1);
    const owner = claims[0] ? 'one' : 'two';
    const other = owner === 'one' ? 'two' : 'one';
    expect(await first?.claims.renew(id, other)).toBe('lost');
    expect(await first?.claims.renew(id, owner)).toBe('held');
    // The owner was killed long ago.
    await (sources[0] as DataSource).query(
      `UPDATE ${server.databaseUrl ? 'image.job' : 'job'} SET "leaseUntil" = '2020-01-01T00:00:00.000Z'`,
    );
    expect(await second?.claims.claim(id, other)).toMatchObject({ attempt: 2, leaseOwner: other });
    expect(await first?.claims.end(id, { state: 'succeeded', error: null, result: null }, { leaseOwner: owner })).toBe(
      false,
    );
    expect(
      await second?.claims.end(id, { state: 'succeeded', error: null, result: { a: 1 } }, { leaseOwner: other }),
    ).toBe(true);
    expect(await first?.get(id)).toMatchObject({ state: 'succeeded', result: { a: 1 }, attempt: 2 });
    expect(await first?.claims.claim(id, owner)).toBeUndefined();
    // Told once, although two workers began it.
    const events = await (sources[0] as DataSource).getRepository(OutboxEventEntity).find({ order: { id: 'ASC' } });
    expect(events.map(({ type }) => type)).toEqual(['image.push.started', 'image.push.succeeded']);
    expect(JSON.parse(events[1]?.payload ?? '')).toMatchObject({
      type: 'image.push.succeeded',
      data: {
        jobId: id,
        job: `/v1/jobs/${id}`,
        resource: '/v1/things/1',
        state: 'succeeded',
        result: { a: 1 },
        error: null,
      },
    });
  });

  it('L1: says of a value that no column takes that the request is wrong', async () => {
    const failed = await insert('a\0b')
      .execute()
      .then(
        () => undefined,
        (error: unknown) => translateDatabaseError(error),
      );
    // SQLite keeps it.
    if (sources[0]?.options.type === 'postgres') expect(failed).toMatchObject({ code: 'request_invalid' });
    else expect(failed).toBeUndefined();
  });

  it('L5: does not start on data of a later version, and leaves it as it is', async () => {
    const { options } = sources[0] as DataSource;
    const start = (...later: Migration[]) =>
      connectDatabase({ ...options, migrations: [tablesOf(entities), ...later] } as DataSourceOptions);
    await (await start(AddsColors)).destroy();
    await expect(start()).rejects.toMatchObject({
      code: 'schema_newer',
      details: { migrations: ['AddsColors1764547300000'] },
    });
    const source = await start(AddsColors);
    expect(await columnsOf(source)).toContain('color');
    await source.destroy();
  });

  it('changes nothing when one of the migrations fails, and goes on when it can be run', async () => {
    const { options } = sources[0] as DataSource;
    class Fails1764547500000 extends ForwardMigration {
      readonly name = 'Fails1764547500000';
      async up(): Promise<void> {
        throw new Error('killed');
      }
    }
    const before = [tablesOf(entities), AddsColors];
    const start = (...later: Migration[]) =>
      connectDatabase({ ...options, migrations: [...before, ...later] } as DataSourceOptions);
    await expect(start(AddsSizes, Fails1764547500000)).rejects.toThrow('killed');
    const unchanged = await start();
    expect(await columnsOf(unchanged)).not.toContain('size');
    await unchanged.destroy();
    // Both begin at once: one does the work.
    const both = await Promise.all([start(AddsSizes), start(AddsSizes)]);
    for (const source of both) expect(await columnsOf(source)).toContain('size');
    for (const source of both) await source.destroy();
  });

  it('L2: forgets what ended long ago, with the resources that told of it, but nothing that is named elsewhere or runs', async () => {
    const source = sources[0] as DataSource;
    const jobs = source.getRepository(JobEntity);
    const old = new Date(Date.now() - 100 * 86_400_000).toISOString();
    const add = (id: string, state: JobEntity['state'], finishedAt: string | null) =>
      jobs.insert(
        columns<JobEntity>({
          ...{
            id,
            type: 'image.thing',
            state,
            progress: noProgress,
            error: null,
            result: null,
            resource: `/v1/things/${id}`,
            parentId: null,
            createdBy: 'admin',
          },
          ...{
            createdAt: old,
            startedAt: null,
            finishedAt,
            cancelRequestedAt: null,
            attempt: 1,
            failures: 0,
            runAfter: null,
            leaseOwner: null,
            leaseUntil: null,
          },
          ...{ requestKey: null, revision: 0 },
        }),
      );
    const ids = { old: newId(), fresh: newId(), running: newId(), named: newId(), checked: newId() };
    await add(ids.old, 'succeeded', old);
    await add(ids.fresh, 'failed', new Date().toISOString());
    await add(ids.running, 'running', null);
    await add(ids.named, 'succeeded', old);
    await add(ids.checked, 'succeeded', old);
    await source.getRepository(CheckEntity).insert({ id: newId(), jobId: ids.old });
    const checkId = newId();
    await source.getRepository(CheckEntity).insert({ id: checkId, jobId: ids.checked });
    await source.getRepository(ClusterEntity).insert({ id: newId(), lastJobId: ids.named, checkId });
    const keys = source.getRepository(IdempotencyKeyEntity);
    const key = { headers: null, body: null, status: 200 };
    await keys.insert({ ...key, id: 'unkeyed', requestDigest: 'a'.repeat(64), createdAt: new Date().toISOString() });
    await keys.insert({ ...key, id: 'old', requestDigest: 'k.a', createdAt: old });
    await keys.insert({ ...key, id: 'fresh', requestDigest: 'k.b', createdAt: new Date().toISOString() });
    const retention = new JobRetention({ keepDays: 90, idempotencyKeepDays: 30 }, new ServiceDatabase(source), [
      CheckEntity,
    ]);
    retention.onApplicationBootstrap();
    // Not before its first round is over, which `isStopped` would cut short.
    await expect
      .poll(async () => (await keys.find()).length + (await jobs.countBy({ id: ids.old })), { timeout: 120_000 })
      .toBe(1);
    await retention.beforeApplicationShutdown();
    const kept = (await jobs.findBy({ id: In(Object.values(ids)) })).map(({ id }) => id);
    expect(kept.toSorted()).toEqual([ids.fresh, ids.running, ids.named, ids.checked].toSorted());
    expect(await source.getRepository(CheckEntity).find()).toEqual([{ id: checkId, jobId: ids.checked }]);
    expect((await keys.find()).map(({ id }) => id)).toEqual(['fresh']);
  });

  it('gives a job up whose third worker has died, but not one that was handed back or waits; a retry begins to count anew', async () => {
    const [source] = sources as [DataSource];
    const database = new ServiceDatabase(source);
    const jobs = new JobsService('image', database, new Map([['image.push', fakeQueue]]), new Outbox(database));
    const { id } = await jobs.submit({ type: 'image.push', resource: '/v1/things/2' });
    const progress = (await jobs.find(id))?.progress as never;
    const die = async (owner: string, isExplained = false) => {
      expect(await jobs.claims.claim(id, `${owner}/x`)).toMatchObject({ leaseOwner: `${owner}/x` });
      expect(await jobs.claims.claim(id, 'nobody')).toBeUndefined();
      await jobs.claims.releaseDead(ownedBy(`${owner}/`), { isExplained });
    };
    for (let round = 0; round < 4; round++) {
      await jobs.claims.claim(id, 'orderly');
      await jobs.claims.release(id, 'orderly', { runAfter: null, failures: round, progress });
    }
    // It ran beside a host that they died of.
    for (const owner of ['p', 'q', 'r', 's']) await die(owner, true);
    for (const owner of ['one', 'two', 'three']) await die(owner);
    const [a, b] = await Promise.all([jobs.claims.claim(id, 'four'), jobs.claims.claim(id, 'five')]);
    expect([a, b]).toEqual([undefined, undefined]);
    expect(await jobs.get(id)).toMatchObject({
      state: 'failed',
      error: { code: 'worker_lost' },
      attempt: 11,
      finishedAt: expect.any(String),
    });
    const events = await source.getRepository(OutboxEventEntity).find({ order: { id: 'ASC' } });
    expect(events.map(({ type }) => type).slice(-2)).toEqual(['image.push.started', 'image.push.failed']);
    await jobs.retry(id);
    for (const owner of ['six', 'seven']) await die(owner);
    expect(await jobs.claims.claim(id, 'eight')).toMatchObject({ attempt: 14, lost: 2 });
    // It got further: what died before has nothing to do with what it does now.
    await jobs.claims.saveProgress(id, 'eight', progress, { hasAdvanced: true });
    await jobs.claims.releaseDead(ownedBy('eight'), { isExplained: false });
    await die('late');
    expect(await jobs.claims.claim(id, 'last')).toMatchObject({ attempt: 16, lost: 2 });
    // Cancelled while its last worker died.
    await jobs.cancel(id);
    await jobs.claims.releaseDead(ownedByOthers('eight'), { isExplained: false });
    expect(await jobs.claims.claim(id, 'nine')).toBeUndefined();
    expect((await jobs.get(id)).state).toBe('cancelled');
  });
});

// Only what the database decides is under test; wake-ups are covered by service.spec.ts on a real Redis.
const fakeQueue = { on: () => undefined, add: async () => undefined } as never;
