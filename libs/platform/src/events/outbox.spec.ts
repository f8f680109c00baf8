import { startPostgres, type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { newId } from '../ids.js';
import { tablesOf } from '../schema/testing/tables.js';
import { OutboxEventEntity } from './outbox.entity.js';
import { Outbox } from './outbox.js';

const databases = [
  ['SQLite', async () => ({ url: undefined, stop: async () => {} })],
  ['PostgreSQL', startPostgres],
] as const;

// The rows that are changed are of the only table that there is.
describe.each(databases)('an outbox on %s', (_name, start) => {
  let server: Awaited<ReturnType<typeof start>>;
  let folder: TempDir;
  let database: ServiceDatabase;
  let outbox: Outbox;
  const rows = () => database.dataSource.getRepository(OutboxEventEntity);
  const change = (id: string) =>
    rows().createQueryBuilder().update().set({ payload: 'x' }).where({ id, payload: '{}' });
  const stale = () => rows().findBy({ type: 'backup.stale' });

  beforeAll(async () => {
    server = await start();
    folder = await tempDir('outbox');
    const overrides = { dataDir: folder.path, databaseUrl: server.url };
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides });
    const options = dataSourceOptions(config, 'image', [OutboxEventEntity], [tablesOf([OutboxEventEntity])]);
    database = new ServiceDatabase(await connectDatabase(options));
    outbox = new Outbox(database);
  });
  beforeEach(() => rows().deleteAll());
  afterAll(async () => {
    await database?.dataSource.destroy();
    await folder?.remove();
    await server?.stop();
  });

  it('has the event of a change once, however many make the change at once', async () => {
    const id = newId();
    await rows().insert({ id, type: 'thing', payload: '{}', createdAt: new Date().toISOString() });
    const made = await Promise.all([1, 2, 3, 4].map((by) => outbox.emitWith(change(id), 'backup.stale', { by })));
    expect(made.filter(Boolean)).toHaveLength(1);
    const [event, ...others] = await stale();
    expect(others).toEqual([]);
    const by = made.indexOf(true) + 1;
    const { createdAt, payload } = event as OutboxEventEntity;
    expect(JSON.parse(payload)).toEqual({ type: 'backup.stale', timestamp: createdAt, data: { by } });
  });

  it('has no event of a change that finds nothing to change', async () => {
    expect(await outbox.emitWith(change(newId()), 'backup.stale', {})).toBe(false);
    expect(await stale()).toEqual([]);
  });

  it('has the event that belongs to no change', async () => {
    await outbox.emit('backup.stale', { schedule: 'nightly' });
    expect((await stale()).map(({ payload }) => JSON.parse(payload) as unknown)).toMatchObject([
      { data: { schedule: 'nightly' } },
    ]);
  });
});
