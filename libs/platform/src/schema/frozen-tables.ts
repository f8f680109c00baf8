import { type MigrationInterface, type QueryRunner, Table, TableColumn, TableIndex } from 'typeorm';
import { platformTables } from './platform-tables.js';

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

/**
 * The first migration of a service: makes its tables and those that every service has. A database from before
 * migrations has most of them already, and gets the columns and indices that it lacks; nothing is removed.
 */
export function baseline(tables: FrozenTables): Migration {
  return class Baseline1764547200000 extends ForwardMigration {
    readonly name = 'Baseline1764547200000';

    async up(runner: QueryRunner): Promise<void> {
      for (const [name, { columns, indices = [], uniqueIndices = [] }] of Object.entries({
        ...platformTables,
        ...tables,
      })) {
        const table = new Table({
          name: tablePath(runner, name),
          columns: Object.entries(columns).map(([column, text]) => columnOf(runner, column, text)),
          indices: [
            ...indices.map((columnNames) => ({ columnNames })),
            ...uniqueIndices.map((columnNames) => ({ columnNames, isUnique: true })),
          ],
        });
        await complete(runner, table);
      }
    }
  };
}

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

async function complete(runner: QueryRunner, wanted: Table): Promise<void> {
  const existing = await runner.getTable(wanted.name);
  if (!existing) return runner.createTable(wanted);
  const missing = wanted.columns.filter(({ name }) => !existing.findColumnByName(name));
  if (missing.length > 0) await runner.addColumns(existing, missing);
  for (const index of wanted.indices) {
    // PostgreSQL does not tell the order of the columns.
    const columns = index.columnNames.toSorted().join();
    if (!existing.indices.some(({ columnNames }) => columnNames.toSorted().join() === columns))
      await runner.createIndex(existing, new TableIndex({ ...index }));
  }
}

function columnOf(runner: QueryRunner, name: string, text: FrozenColumn): TableColumn {
  const [, word, type = '', isNullable, value] = /^(?:(key|unique) )?(\w+)(\?)?(?: = (.*))?$/.exec(text) ?? [];
  return new TableColumn({
    name,
    type,
    isPrimary: word === 'key',
    isUnique: word === 'unique',
    isNullable: isNullable !== undefined,
    ...(value === undefined ? {} : { default: defaultOf(runner, type, value) }),
  });
}

function defaultOf(runner: QueryRunner, type: string, value: string): string {
  if (type === 'varchar' || type === 'text' || type === 'bigint') return `'${value}'`;
  if (type === 'boolean' && runner.dataSource.options.type !== 'postgres') return value === 'true' ? '1' : '0';
  return value;
}
