import { join } from 'node:path';
import { tempDir } from '@airdock/testing/servers';
import { expect, it } from 'vitest';
import { loadConfig } from './config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from './database.js';
import { OutboxEventEntity } from './events/outbox.entity.js';
import { QuietDatabase } from './quiet-database.js';
import { tablesOf } from './schema/testing/tables.js';

it('QuietDatabase looks again after a write of its own or of another process, and only then, once it has found nothing', async () => {
  await using folder = await tempDir('quiet');
  const config = loadConfig({ file: '/dev/null', environment: {}, overrides: { dataDir: join(folder.path, 'data') } });
  const open = async () =>
    new ServiceDatabase(
      await connectDatabase(dataSourceOptions(config, 'backup', [OutboxEventEntity], [tablesOf([OutboxEventEntity])])),
    );
  const [own, other] = [await open(), await open()];
  const quiet = new QuietDatabase(own);
  let looks = 0;
  let isEmpty = true;
  const look = () =>
    quiet.unlessQuiet(async () => {
      looks += 1;
      return isEmpty;
    });
  const write = (database: ServiceDatabase, id: string) =>
    database.dataSource
      .getRepository(OutboxEventEntity)
      .insert({ id, type: 'x', payload: '{}', createdAt: '2026-01-01T00:00:00.000Z' });
  const seen = async (times: number) => {
    for (let round = 0; round < 3; round++) await look();
    expect(looks).toBe(times);
  };
  await seen(1);
  await write(own, 'a');
  await seen(2);
  await write(other, 'b');
  await seen(3);
  // What waits for its time is looked at each time.
  isEmpty = false;
  await write(other, 'c');
  await seen(6);
  for (const { dataSource } of [own, other]) await dataSource.destroy();
});
