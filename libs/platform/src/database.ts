import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import type BetterSqlite3 from 'better-sqlite3';
import {
  DataSource,
  type DataSourceOptions,
  type DeleteQueryBuilder,
  type EntitySchema,
  type InsertQueryBuilder,
  type ObjectLiteral,
  QueryFailedError,
  type UpdateQueryBuilder,
} from 'typeorm';
import type { QueryDeepPartialEntity } from 'typeorm/query-builder/QueryPartialEntity.js';
import type { Config, ServiceName } from './config.js';
import { migrate } from './schema/migrate.js';
import type { Migration } from './schema/migration.js';

/** A service's own tables. One per service module, so that shared providers reach the right one. */
export class ServiceDatabase {
  private marks: { ofOthers: BetterSqlite3.Statement; own: BetterSqlite3.Statement } | undefined;

  constructor(readonly dataSource: DataSource) {}

  /**
   * A mark that is another one after each write to the database, by this process or by others; undefined where there is
   * none (PostgreSQL). Takes microseconds. Source: https://www.sqlite.org/pragma.html#pragma_data_version,
   * https://www.sqlite.org/lang_corefunc.html#total_changes
   */
  changeMark(): string | undefined {
    if (this.dataSource.options.type !== 'better-sqlite3') return undefined;
    const { databaseConnection } = this.dataSource.driver as unknown as { databaseConnection: BetterSqlite3.Database };
    this.marks ??= {
      ofOthers: databaseConnection.prepare('PRAGMA data_version').pluck(),
      own: databaseConnection.prepare('SELECT total_changes()').pluck(),
    };
    return `${this.marks.ofOthers.get()} ${this.marks.own.get()}`;
  }
}

/** A table as TypeORM knows it. */
type Entity = EntitySchema | (new () => ObjectLiteral);

/** The options of a service's data source: a SQLite file of its own, or a PostgreSQL schema of its own. */
export function dataSourceOptions(
  config: Config,
  service: ServiceName,
  entities: Entity[],
  migrations: readonly Migration[],
): DataSourceOptions {
  // `connectDatabase` runs the migrations.
  const common = { name: service, entities, migrations: [...migrations], synchronize: false };
  if (config.databaseUrl)
    return { ...common, type: 'postgres', url: config.databaseUrl, schema: service, extra: { max: 8 } };
  return {
    ...common,
    type: 'better-sqlite3',
    database: join(config.dataDir, 'db', `${service}.sqlite`),
    enableWAL: true,
    timeout: 10_000,
    // An accepted job must survive a power cut, so every commit reaches the disk.
    prepareDatabase: (database: BetterSqlite3.Database) => {
      database.pragma('synchronous = FULL');
      // What is deleted is overwritten, so that a copy of the file does not tell of it.
      database.pragma('secure_delete = ON');
    },
  };
}

/** Connects, and brings the tables to this version. Throws `schema_newer` for data of a later one. */
export async function connectDatabase(options: DataSourceOptions): Promise<DataSource> {
  if (options.type === 'better-sqlite3') mkdirSync(join(options.database, '..'), { recursive: true, mode: 0o700 });
  const dataSource = await new DataSource(options).initialize();
  try {
    await migrate(dataSource);
    return dataSource;
  } catch (error) {
    await dataSource.destroy();
    throw error;
  }
}

/** A statement that has not run yet: an insert, update or delete builder. */
export type Statement =
  | InsertQueryBuilder<ObjectLiteral>
  | UpdateQueryBuilder<ObjectLiteral>
  | DeleteQueryBuilder<ObjectLiteral>;

/**
 * Runs statements all or none. Returns false, with nothing changed, when one of them found no row to change (so an
 * update's `where` is a guard).
 *
 * Why not `dataSource.transaction`: on SQLite TypeORM has one connection per data source, and statements of other
 * requests would run inside an open transaction and be rolled back with it (typeorm#10372). Here nothing awaits between
 * BEGIN and COMMIT.
 *
 * @example
 * ```ts
 * const take = hosts.createQueryBuilder().update().set({ turnJobId: jobId }).where({ id, turnJobId: IsNull() });
 * const note = events.createQueryBuilder().insert().values({ id: newId(), hostId: id });
 * // False when another job has the host: then no event is written either.
 * const isTaken = await atomically(dataSource, [take, note]);
 * ```
 */
export async function atomically(dataSource: DataSource, statements: Statement[]): Promise<boolean> {
  if (dataSource.options.type === 'postgres') {
    const runner = dataSource.createQueryRunner();
    await runner.startTransaction();
    try {
      for (const statement of statements) {
        const { affected } = await statement
          .setQueryRunner(runner)
          .execute()
          .then((result) => ({ affected: 'affected' in result ? result.affected : 1 }));
        if (affected === 0) {
          await runner.rollbackTransaction();
          return false;
        }
      }
      await runner.commitTransaction();
      return true;
    } catch (error) {
      await runner.rollbackTransaction();
      throw error;
    } finally {
      await runner.release();
    }
  }
  const database = sqliteOf(dataSource);
  const prepared = statements.map((statement) => statement.getQueryAndParameters());
  database.exec('BEGIN IMMEDIATE');
  try {
    for (const [sql, parameters] of prepared) {
      if (database.prepare(sql).run(...(parameters as never[])).changes === 0) {
        database.exec('ROLLBACK');
        return false;
      }
    }
    database.exec('COMMIT');
    return true;
  } catch (error) {
    if (database.inTransaction) database.exec('ROLLBACK');
    throw error;
  }
}

/**
 * Runs one statement whose loss in a power cut would do no harm, such as progress. Returns how many rows it changed. On
 * SQLite it does not wait for the disk, since all requests would wait with it: while a push keeps the disk busy, that
 * takes a tenth of a second.
 */
export async function runUnflushed(
  dataSource: DataSource,
  statement: UpdateQueryBuilder<ObjectLiteral>,
): Promise<number> {
  if (dataSource.options.type === 'postgres') return (await statement.execute()).affected ?? 0;
  const database = sqliteOf(dataSource);
  const [sql, parameters] = statement.getQueryAndParameters();
  // Nothing else runs on the connection between the two.
  database.pragma('synchronous = NORMAL');
  try {
    return database.prepare(sql).run(...(parameters as never[])).changes;
  } finally {
    database.pragma('synchronous = FULL');
  }
}

const sqliteOf = (dataSource: DataSource) =>
  (dataSource.driver as unknown as { databaseConnection: BetterSqlite3.Database }).databaseConnection;

/**
 * Column values for TypeORM's insert and update, checked against the entity. TypeORM's own input type cannot express
 * JSON columns with free keys, such as problems.
 */
export const columns = <T>(values: Partial<T>): QueryDeepPartialEntity<T> => values as QueryDeepPartialEntity<T>;

const lostConnection = /^(ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|ENOTFOUND|08...|57P0[123]|SQLITE_BUSY.*)$/;
/** Of SQLite, and of PostgreSQL. */
const full = new Set(['SQLITE_FULL', '53100']);
/** Mounted read-only, or broken: SQLite does not tell which. */
const failedDisk = /^(SQLITE_READONLY.*|SQLITE_IOERR.*|SQLITE_CANTOPEN.*|25006|58030)$/;

/**
 * A database that is away or busy as `dependency_unavailable`, one that takes no row as `database_full` or
 * `database_disk_failed`: all are tried again. Any other error as it is.
 */
export function translateDatabaseError(error: unknown): unknown {
  if (error instanceof AppError) return error;
  const code = errorCode(error);
  if (code !== undefined && full.has(code)) return new AppError('database_full', {}, { cause: error });
  if (code !== undefined && failedDisk.test(code)) return new AppError('database_disk_failed', {}, { cause: error });
  const isLost =
    code !== undefined
      ? lostConnection.test(code)
      : error instanceof QueryFailedError && /connection terminated|timeout exceeded/i.test(error.message);
  if (isLost) return new AppError('dependency_unavailable', { detail: 'the database' }, { cause: error });
  if (code !== undefined && unstorable.has(code))
    return new AppError(
      'request_invalid',
      { detail: 'a value cannot be stored: a text with a NUL, or a number or text that is too large' },
      { cause: error },
    );
  return error;
}

/** Of PostgreSQL: what no column takes, whichever way it got past the schemas. */
const unstorable = new Set(['22021', '22P05', '22003', '22001', '54000']);

const errorCode = (error: unknown): string | undefined =>
  (error as { driverError?: { code?: string } }).driverError?.code ?? (error as { code?: string }).code;

/**
 * True when an insert failed because a unique column already holds the value; SQLite and PostgreSQL name it
 * differently.
 */
export const isUniqueViolation = (error: unknown): boolean => {
  const code = errorCode(error);
  return code === '23505' || code === 'SQLITE_CONSTRAINT_UNIQUE' || code === 'SQLITE_CONSTRAINT_PRIMARYKEY';
};

/** Now, as all tables keep time: ISO 8601 in UTC, which sorts as text on both databases. */
export const now = (): string => new Date().toISOString();

/** Parts of a list: databases bound the number of parameters of one statement. */
export function* chunks<T>(items: readonly T[], size = 300): Generator<T[]> {
  for (let start = 0; start < items.length; start += size) yield items.slice(start, start + size);
}
