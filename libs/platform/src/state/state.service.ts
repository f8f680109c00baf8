import { isDeepStrictEqual } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { In, type ObjectLiteral, type Repository } from 'typeorm';
import { z } from 'zod';
import type { Config } from '../config.js';
import { atomically, chunks, columns, isUniqueViolation, type ServiceDatabase, type Statement } from '../database.js';
import type { SecretBox } from '../secrets.js';
import { sealedColumnsOf } from '../secrets-key/sealed-columns.js';
import type { PutStateRows, ServiceState, StateChange, StateRowsResult } from './state.schema.js';
import { checkedRow, type StateDestination, type StateRow, type StateTable } from './state-table.js';

/** What a request would do, row by row. */
interface Planned extends StateRowsResult {
  statements: Statement[];
}

/** Takes a service's state out for a backup, and brings it back: all rows of a request or none. */
export class StateService {
  constructor(
    readonly service: string,
    private readonly tables: readonly StateTable[],
    private readonly database: ServiceDatabase,
    private readonly secrets: SecretBox,
    private readonly config: Config,
  ) {}

  /** All rows as they are now; sealed columns stay sealed. */
  async read(): Promise<ServiceState> {
    const tables: ServiceState['tables'] = [];
    for (const table of this.tables) {
      const rows = this.repositoryOf(table);
      const found = await rows.find();
      const reset = this.resetOf(table);
      const sealed = sealedColumnsOf(rows.metadata);
      tables.push({
        name: rows.metadata.tableName,
        rows: found.map((row) => ({ ...row, ...this.sealedNow(row, sealed), ...reset })),
      });
    }
    return { service: this.service, formatVersion: 1, keyFingerprint: this.secrets.fingerprint, tables };
  }

  /** All sealed with the key that `keyFingerprint` names, also while keys are exchanged. */
  private sealedNow(row: StateRow, names: readonly string[]): StateRow {
    const texts = names.map((name) => [name, row[name]] as const);
    return Object.fromEntries(
      texts.map(([name, text]) => [name, typeof text === 'string' ? this.secrets.reseal(text, String(row.id)) : text]),
    );
  }

  /**
   * Idempotent. Checks every row before any is written. Throws `resource_not_found` for tables of no state,
   * `secrets_key_mismatch`, and `state_rows_invalid` for rows that the service would not have written itself.
   */
  async write(name: string, request: PutStateRows): Promise<StateRowsResult> {
    const table = this.tables.find((one) => this.repositoryOf(one).metadata.tableName === name);
    if (!table)
      throw new AppError('resource_not_found', { detail: `${this.service}-svc has no state ${name.slice(0, 60)}` });
    const isSealed = this.repositoryOf(table).metadata.columns.some(({ propertyName }) =>
      propertyName.startsWith('sealed'),
    );
    if (isSealed && request.rows.length > 0 && !request.dryRun && request.keyFingerprint !== this.secrets.fingerprint)
      throw new AppError('secrets_key_mismatch', { detail: name });
    const { statements, ...result } = await this.plan(table, request);
    if (request.dryRun || statements.length === 0) return result;
    try {
      await atomically(this.database.dataSource, statements);
    } catch (error) {
      // Something with the same name came in between.
      if (isUniqueViolation(error))
        throw new AppError('dependency_unavailable', { detail: `${name} was changed meanwhile` }, { cause: error });
      throw error;
    }
    return result;
  }

  private async plan(
    table: StateTable,
    { rows, existing, dryRun, coming, left: missing }: PutStateRows,
  ): Promise<Planned> {
    const repository = this.repositoryOf(table);
    const { tableName } = repository.metadata;
    const reset = this.resetOf(table);
    const keyOf = (row: StateRow) => keyText(repository, row);
    const accepted = rows.map((row, index) =>
      checkedRow(tableName, table.row, { ...row, ...reset }, keyText(repository, row) ?? `row ${index}`),
    );
    const keys = accepted.map(keyOf);
    if (keys.includes(undefined))
      throw new AppError('state_rows_invalid', { detail: `a row of ${tableName} has no key`, table: tableName });
    if (new Set(keys).size !== keys.length)
      throw new AppError('state_rows_invalid', { detail: `${tableName} has two rows with one key`, table: tableName });
    const there = new Map((await this.findByKeys(repository, accepted)).map((row) => [keyOf(row), row]));
    const mayName = dryRun ? coming : keysOf(coming, [tableName]);
    const { isThere, isCutOff } = await this.checkReferences(table, accepted, { coming: mayName, missing });
    const taken = await this.findTaken(repository, accepted);
    const result: Planned = { added: 0, replaced: 0, kept: 0, conflicts: [], changes: [], statements: [] };
    for (const row of accepted) {
      const key = keyOf(row) as string;
      const before = there.get(key);
      if (before && existing === 'keep') result.kept += 1;
      else if (isCutOff(row) || taken.isInTheWay(row, key)) result.conflicts.push(key);
      else {
        // What means nothing on another machine means something on this one.
        const values = before ? without(row, Object.keys(reset)) : row;
        const change = table.destination && changeOf(table.destination, key, before, values, isThere);
        if (change) result.changes.push(change);
        result[before ? 'replaced' : 'added'] += 1;
        result.statements.push(
          before
            ? repository.createQueryBuilder().update().set(columns(values)).where(primaryOf(repository, row))
            : repository.createQueryBuilder().insert().values(columns(values)),
        );
      }
    }
    return result;
  }

  private repositoryOf({ entity }: StateTable): Repository<ObjectLiteral> {
    return this.database.dataSource.getRepository(entity);
  }

  private resetOf(table: StateTable): StateRow {
    const { reset = {} } = table;
    const values = typeof reset === 'function' ? reset(this.config) : reset;
    const names = new Set(this.repositoryOf(table).metadata.columns.map(({ propertyName }) => propertyName));
    return Object.fromEntries(Object.entries(values).filter(([name]) => names.has(name)));
  }

  private async findByKeys(repository: Repository<ObjectLiteral>, rows: readonly StateRow[]): Promise<StateRow[]> {
    const found: StateRow[] = [];
    for (const part of chunks(rows, 100))
      found.push(...(await repository.findBy(part.map((row) => primaryOf(repository, row)))));
    return found;
  }

  /**
   * Throws `state_rows_invalid` for a row that names one which neither is there nor comes. Returns what is there now,
   * and which rows name one that was left.
   */
  private async checkReferences(
    table: StateTable,
    rows: readonly StateRow[],
    { coming, missing }: { coming: PutStateRows['coming']; missing: PutStateRows['left'] },
  ) {
    const { tableName } = this.repositoryOf(table).metadata;
    const present = new Map<string, Set<unknown>>();
    const cutOff = new Set<StateRow>();
    for (const [column, target] of Object.entries(table.references ?? {})) {
      const other = this.tables
        .map((one) => this.repositoryOf(one))
        .find(({ metadata }) => metadata.tableName === target);
      const [key] = other?.metadata.primaryColumns ?? [];
      if (!other || !key)
        throw new TypeError(`${tableName} refers to ${target}, which is no table of ${this.service}-svc`);
      const wanted = [
        ...new Set(rows.map((row) => row[column]).filter((value) => value !== null && value !== undefined)),
      ];
      const found = present.get(target) ?? new Set<unknown>();
      for (const part of chunks(wanted))
        for (const row of await other.findBy({ [key.propertyName]: In(part) })) found.add(row[key.propertyName]);
      present.set(target, found);
      const own = target === tableName ? rows.map((row) => row[key.propertyName]) : [];
      const arriving = new Set([...(keysOf(coming, [target])[target] ?? []), ...own]);
      const lost = new Set(keysOf(missing, [target])[target]);
      for (const row of rows) {
        const value = row[column];
        if (value === null || value === undefined || found.has(value)) continue;
        if (lost.has(value as string)) cutOff.add(row);
        else if (arriving.has(value)) continue;
        if (cutOff.has(row)) continue;
        const id = keyText(this.repositoryOf(table), row) ?? '';
        throw new AppError('state_rows_invalid', {
          detail: `${tableName} ${id}: ${column} names no ${target}`,
          table: tableName,
          row: id,
          column,
        });
      }
    }
    return {
      isThere: (other: string, key: unknown) => present.get(other)?.has(key) ?? false,
      isCutOff: (row: StateRow) => cutOff.has(row),
    };
  }

  /** Who has the values that only one row may have: in the table, and then among the rows that come. */
  private async findTaken(repository: Repository<ObjectLiteral>, rows: readonly StateRow[]) {
    const { uniques, indices, primaryColumns } = repository.metadata;
    const single = [
      ...uniques.map(({ columns: of }) => of),
      ...indices.filter(({ isUnique }) => isUnique).map(({ columns: of }) => of),
    ]
      .filter((of) => of.length === 1 && !primaryColumns.includes(of[0] as never))
      .map(([column]) => column?.propertyName ?? '');
    const owners = new Map<string, string>();
    for (const column of new Set(single))
      for (const part of chunks(rows.map((row) => row[column])))
        for (const row of await repository.findBy({ [column]: In(part) }))
          owners.set(`${column} ${String(row[column])}`, keyText(repository, row) ?? '');
    return {
      isInTheWay(row: StateRow, key: string): boolean {
        const names = [...new Set(single)].map((column) => `${column} ${String(row[column])}`);
        if (names.some((name) => (owners.get(name) ?? key) !== key)) return true;
        for (const name of names) owners.set(name, key);
        return false;
      },
    };
  }
}

/** Of some tables; what a request calls `__proto__` is none. */
const keysOf = (keys: Record<string, string[]>, tables: readonly string[]): Record<string, string[]> =>
  Object.fromEntries(tables.filter((table) => Object.hasOwn(keys, table)).map((table) => [table, keys[table] ?? []]));

/** Undefined for a row without one. */
function keyText({ metadata }: Repository<ObjectLiteral>, row: StateRow): string | undefined {
  const parts = metadata.primaryColumns.map(
    ({ propertyName }) => z.string().min(1).max(300).safeParse(row[propertyName]).data,
  );
  return parts.includes(undefined) ? undefined : parts.join('/');
}

const primaryOf = ({ metadata }: Repository<ObjectLiteral>, row: StateRow): ObjectLiteral =>
  Object.fromEntries(metadata.primaryColumns.map(({ propertyName }) => [propertyName, row[propertyName]]));

const without = (values: StateRow, names: readonly string[]) =>
  Object.fromEntries(Object.entries(values).filter(([name]) => !names.includes(name)));

/** What a person sees of a row that leads somewhere; undefined when nothing of that changes. */
function changeOf(
  { name, columns: shown, secrets = [], needsConfirmation }: StateDestination,
  key: string,
  before: StateRow | undefined,
  after: StateRow,
  isThere: (table: string, key: unknown) => boolean,
): StateChange | undefined {
  const differs = (column: string) =>
    column in after && !isDeepStrictEqual(before?.[column] ?? null, after[column] ?? null);
  const visible = shown
    .filter(differs)
    .map((column) => ({ column, from: toValue(before?.[column]), to: toValue(after[column]) }));
  const hidden = secrets
    .filter(differs)
    .map((column) => ({ column, from: before ? 'a secret' : null, to: 'another secret' }));
  if (visible.length + hidden.length === 0) return undefined;
  return {
    key,
    name: String(toValue(after[name] ?? before?.[name] ?? key)).slice(0, 300),
    action: before ? 'change' : 'add',
    columns: [...visible, ...hidden],
    needsConfirmation: needsConfirmation?.({ before, after: { ...before, ...after } }, isThere) ?? false,
  };
}

const toValue = (value: unknown): string | number | boolean | null =>
  value === undefined || value === null
    ? null
    : typeof value === 'number' || typeof value === 'boolean'
      ? value
      : (typeof value === 'string' ? value : JSON.stringify(value)).slice(0, 500);
