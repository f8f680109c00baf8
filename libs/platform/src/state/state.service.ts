import { AppError } from '@airdock/core/errors';
import { z } from 'zod';
import { columns, isUniqueViolation, type ServiceDatabase } from '../database.js';
import type { SecretBox } from '../secrets.js';
import { sealedColumnsOf } from '../secrets-key/sealed-columns.js';
import type { PutStateRows, ServiceState, StateRowsResult } from './state.schema.js';

/** A table that outlives its machine. */
export interface StateTable {
  entity: new () => object;
  /** What means nothing on another machine: columns with the value that they get there. */
  reset?: Record<string, unknown>;
}

/** Takes a service's state out for a backup, and brings it back, row by row. */
export class StateService {
  constructor(
    readonly service: string,
    private readonly tables: readonly StateTable[],
    private readonly database: ServiceDatabase,
    private readonly secrets: SecretBox,
  ) {}

  /** All rows as they are now; sealed columns stay sealed. */
  async read(): Promise<ServiceState> {
    const tables: ServiceState['tables'] = [];
    for (const { entity, reset } of this.tables) {
      const rows = this.database.dataSource.getRepository(entity);
      const found = (await rows.find()) as Record<string, unknown>[];
      const sealed = sealedColumnsOf(rows.metadata);
      tables.push({ name: rows.metadata.tableName, rows: found.map((row) => ({ ...row, ...this.sealedNow(row, sealed), ...reset })) });
    }
    return { service: this.service, formatVersion: 1, keyFingerprint: this.secrets.fingerprint, tables };
  }

  /** All sealed with the key that `keyFingerprint` names, also while keys are exchanged. */
  private sealedNow(row: Record<string, unknown>, names: readonly string[]): Record<string, unknown> {
    const texts = names.map((name) => [name, row[name]] as const);
    return Object.fromEntries(texts.map(([name, text]) => [name, typeof text === 'string' ? this.secrets.reseal(text, String(row.id)) : text]));
  }

  /** Idempotent. Throws `resource_not_found` for tables of no state, `secrets_key_mismatch`, `request_invalid` for rows that are none of the table's. */
  async write(table: string, { keyFingerprint, rows, existing }: PutStateRows): Promise<StateRowsResult> {
    const known = this.tables.find(({ entity }) => this.database.dataSource.getRepository(entity).metadata.tableName === table);
    if (!known) throw new AppError('resource_not_found', { detail: `${this.service}-svc has no state ${table}` });
    const repository = this.database.dataSource.getRepository(known.entity);
    const { columns: tableColumns, primaryColumns } = repository.metadata;
    const isSealed = tableColumns.some(({ propertyName }) => propertyName.startsWith('sealed'));
    if (isSealed && rows.length > 0 && keyFingerprint !== this.secrets.fingerprint) throw new AppError('secrets_key_mismatch', { detail: table });
    const names = new Set(tableColumns.map(({ propertyName }) => propertyName));
    const result: StateRowsResult = { added: 0, replaced: 0, kept: 0, conflicts: [] };
    for (const row of rows) {
      // A row of a later version may have columns that are not known here; what they say cannot be kept.
      const values = Object.fromEntries(Object.entries({ ...row, ...known.reset }).filter(([name]) => names.has(name)));
      const key = Object.fromEntries(primaryColumns.map(({ propertyName }) => [propertyName, z.string().max(300).safeParse(values[propertyName]).data]));
      if (Object.values(key).includes(undefined)) throw new AppError('request_invalid', { detail: `a row of ${table} has no key` });
      const there = (await repository.countBy(key)) > 0;
      if (there && existing === 'keep') {
        result.kept += 1;
        continue;
      }
      try {
        // What means nothing on another machine means something on this one.
        if (there) await repository.update(key, columns(without(values, Object.keys(known.reset ?? {}))));
        else await repository.insert(columns(values));
        result[there ? 'replaced' : 'added'] += 1;
      } catch (error) {
        if (!isUniqueViolation(error)) throw new AppError('request_invalid', { detail: `a row of ${table} does not fit` }, { cause: error });
        result.conflicts.push(Object.values(key).join('/'));
      }
    }
    return result;
  }
}

const without = (values: Record<string, unknown>, names: readonly string[]) =>
  Object.fromEntries(Object.entries(values).filter(([name]) => !names.includes(name)));
