import type { MigrationInterface, QueryRunner } from 'typeorm';

/**
 * A column: what is unique in the table, its type, `?` where it may be null, and its default. `varchar?`,
 * `key varchar`, `integer = 0`.
 */
export type FrozenColumn =
  `${'' | 'key ' | 'unique '}${'varchar' | 'text' | 'integer' | 'bigint' | 'float' | 'boolean'}${'' | '?' | ` = ${string}`}`;

/** Tables by name, as they were at one time: independent of the entities, which go on changing. */
export type FrozenTables = Record<
  string,
  {
    columns: Record<string, FrozenColumn>;
    /** Each is a list of columns. */
    indices?: string[][];
    uniqueIndices?: string[][];
  }
>;

/** A class that TypeORM runs once on a database: its name ends with the time it was written, in milliseconds. */
export type Migration = new () => MigrationInterface;

/** A migration that is never taken back: an older version refuses the data instead. */
export abstract class ForwardMigration implements MigrationInterface {
  /** Ends with the time it was written, ms since 1970: their order. */
  abstract readonly name: string;

  abstract up(runner: QueryRunner): Promise<void>;

  down(): Promise<void> {
    throw new Error('tables are never taken back to an older version');
  }
}

/** The table's name for a query runner, with the service's schema on PostgreSQL. */
export function tablePath(runner: QueryRunner, name: string): string {
  const { options, driver } = runner.dataSource;
  return driver.buildTableName(name, options.type === 'postgres' ? options.schema : undefined);
}
