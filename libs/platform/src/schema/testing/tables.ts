import { type EntitySchema, type ObjectLiteral, type QueryRunner, Table } from 'typeorm';
import { ForwardMigration, type Migration } from '../migration.js';

/** A migration that makes the tables of these entities as they are now: for specs with entities of their own. */
export function tablesOf(entities: (EntitySchema | (new () => ObjectLiteral))[]): Migration {
  return class Tables1000000000000 extends ForwardMigration {
    readonly name = 'Tables1000000000000';

    async up(runner: QueryRunner): Promise<void> {
      const { dataSource } = runner;
      for (const entity of entities)
        await runner.createTable(Table.create(dataSource.getMetadata(entity), dataSource.driver));
    }
  };
}
