import { loadConfig, type ServiceName } from '@airdock/platform/config';
import type { ServiceDatabase } from '@airdock/platform/database';
import { databaseToken, rootModule } from '@airdock/platform/service';
import { startPostgres, startRedis, type TempDir, tempDir } from '@airdock/testing/servers';
import { NestFactory } from '@nestjs/core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { services } from './services.js';

/** What versions before migrations did not have. */
const sinceMigrations = {
  registry: { registry: ['recordedStorageId', 'storageError'], du_upgrade: ['restores'], job: ['lost'] },
  image: { bundle: ['unusable', 'strict'], push: ['leftOut'], image: ['zstdPlatforms'] },
  host: { host: ['quarantine'], tunnel: ['hostEnd'] },
  cluster: { job: ['lost'] },
  backup: { backup: ['signedBy'], backup_target: ['takenOverAt'], restore: ['accepted'] },
} satisfies Record<ServiceName, Record<string, string[]>>;

type DataSource = ServiceDatabase['dataSource'];

const names = Object.keys(services) as ServiceName[];

describe.each(['SQLite', 'PostgreSQL'])('the migrations on %s', (kind) => {
  let folder: TempDir;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let postgres: Awaited<ReturnType<typeof startPostgres>> | undefined;
  beforeAll(async () => {
    [folder, redis] = await Promise.all([tempDir('tables'), startRedis()]);
    if (kind === 'PostgreSQL') postgres = await startPostgres();
  });
  afterAll(async () => {
    await Promise.all([redis?.stop(), postgres?.stop()]);
    await folder?.remove();
  });

  /** Starts a service without roles: only its database. */
  async function withDatabase<T>(name: ServiceName, use: (database: DataSource) => Promise<T>): Promise<T> {
    const config = loadConfig({
      environment: {},
      file: '/dev/null',
      overrides: { dataDir: folder.path, redisUrl: redis.url, databaseUrl: postgres?.url, logLevel: 'silent' },
    });
    const module = rootModule(config, { [name]: services[name] }, []);
    const app = await NestFactory.createApplicationContext(module, { logger: false, abortOnError: false });
    try {
      return await use(app.get<ServiceDatabase>(databaseToken(name), { strict: false }).dataSource);
    } finally {
      await app.close();
    }
  }

  const pathOf = (database: DataSource, table: string) => {
    const { options } = database;
    return options.type === 'postgres' ? `"${options.schema}"."${table}"` : `"${table}"`;
  };

  /** What TypeORM would change for the tables to be as the entities say. */
  const differences = async (database: DataSource) =>
    (await database.driver.createSchemaBuilder().log()).upQueries.map(({ query }) => query);

  it.each(names)('make the tables of %s as its entities say', async (name) => {
    await withDatabase(name, async (database) => {
      expect(await differences(database)).toEqual([]);
      expect(await database.query(`SELECT name FROM ${pathOf(database, 'migrations')}`)).not.toEqual([]);
    });
  });

  it.each(names)('take over the data of %s from a version before migrations', async (name) => {
    const id = `kept-by-${name}`;
    await withDatabase(name, async (database) => {
      const key = { id, requestDigest: 'k.d', createdAt: '2026-01-01T00:00:00.000Z' };
      await database.getRepository('IdempotencyKeyEntity').insert(key);
      for (const [table, columns] of Object.entries(sinceMigrations[name]))
        for (const column of columns)
          await database.query(`ALTER TABLE ${pathOf(database, table)} DROP COLUMN "${column}"`);
      await database.query(`DROP TABLE ${pathOf(database, 'migrations')}`);
      expect(await differences(database)).not.toEqual([]);
    });
    await withDatabase(name, async (database) => {
      expect(await differences(database)).toEqual([]);
      expect(await database.getRepository('IdempotencyKeyEntity').countBy({ id })).toBe(1);
    });
  });
});
