import { type QueryRunner, Table, TableColumn, TableIndex } from 'typeorm';
import { ForwardMigration, type FrozenColumn, type FrozenTables, type Migration, tablePath } from './migration.js';
import { platformTables } from './platform-tables.js';

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
