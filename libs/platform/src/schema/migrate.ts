import { errnoOf } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';
import { pollUntil } from '@airdock/core/poll-until';
import type BetterSqlite3 from 'better-sqlite3';
import { type DataSource, MigrationExecutor, type QueryRunner } from 'typeorm';

const lockPauseMs = 50;
const lockTimeoutMs = 60_000;

/**
 * Brings the tables of a service to this version: runs the migrations that the database has not seen, all or none.
 * Several processes may start at once: one goes first, the others find its work done. Throws `schema_newer`, with
 * nothing changed, for data of a later version.
 */
export async function migrate(dataSource: DataSource): Promise<void> {
  const known = new Set(dataSource.migrations.map(({ name }) => name));
  const executed = new Set((await new MigrationExecutor(dataSource).getExecutedMigrations()).map(({ name }) => name));
  const unknown = [...executed].filter((name) => !known.has(name));
  if (unknown.length > 0) throw new AppError('schema_newer', { detail: unknown.join(', '), migrations: unknown });
  if (executed.size === known.size) return;
  const runner = dataSource.createQueryRunner();
  try {
    const { options } = dataSource;
    if (options.type === 'postgres') await runOnPostgres(dataSource, runner, options.schema);
    else await runOnSqlite(dataSource, runner);
  } finally {
    await runner.release();
  }
}

async function runOnPostgres(dataSource: DataSource, runner: QueryRunner, schema = 'public'): Promise<void> {
  await runner.startTransaction();
  try {
    await runner.query('SELECT pg_advisory_xact_lock(hashtext($1))', ['airdock schema']);
    await runner.query(`CREATE SCHEMA IF NOT EXISTS "${schema}"`);
    await new MigrationExecutor(dataSource, runner).executePendingMigrations();
    await runner.commitTransaction();
  } catch (error) {
    if (runner.isTransactionActive) await runner.rollbackTransaction();
    throw error;
  }
}

async function runOnSqlite(dataSource: DataSource, runner: QueryRunner): Promise<void> {
  const database = (await runner.connect()) as BetterSqlite3.Database;
  const executor = new MigrationExecutor(dataSource, runner);
  // It would begin without the lock for writing, and fail where another process writes in between.
  executor.transaction = 'none';
  await beginImmediate(database);
  try {
    await executor.executePendingMigrations();
    database.exec('COMMIT');
  } catch (error) {
    if (database.inTransaction) database.exec('ROLLBACK');
    throw error;
  }
}

/** Waits for the lock without holding up this process, which may be the one that has it. */
async function beginImmediate(database: BetterSqlite3.Database): Promise<void> {
  const waitMs = database.pragma('busy_timeout', { simple: true }) as number;
  database.pragma('busy_timeout = 0');
  let busy: unknown;
  const begin = () => {
    try {
      database.exec('BEGIN IMMEDIATE');
      return true;
    } catch (error) {
      if (!errnoOf(error).startsWith('SQLITE_BUSY')) throw error;
      busy = error;
      return false;
    }
  };
  try {
    if (!(await pollUntil({ everyMs: lockPauseMs, timeoutMs: lockTimeoutMs }, begin))) throw busy;
  } finally {
    database.pragma(`busy_timeout = ${waitMs}`);
  }
}
