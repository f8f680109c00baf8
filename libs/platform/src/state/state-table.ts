import { AppError } from '@airdock/core/errors';
import type { z } from 'zod';
import type { Config } from '../config.js';

/** A row of a table, column by column. */
export type StateRow = Record<string, unknown>;

/** A table that outlives its machine. */
export interface StateTable {
  entity: new () => object;
  /**
   * What every row must be, whoever wrote it: the API's own schemas where it shows a column. What it does not name is
   * left out.
   */
  row: z.ZodType<StateRow>;
  /** Columns that name a row of a table of the same service. */
  references?: Record<string, string> | undefined;
  /** What means nothing on another machine: columns with the value that they get there. */
  reset?: StateRow | ((config: Config) => StateRow) | undefined;
  /** For tables whose rows lead somewhere: what people have to see before a restore. */
  destination?: StateDestination | undefined;
}

/** What of a row leads elsewhere, such as an address or a credential: a restore shows it, and may have it confirmed. */
export interface StateDestination {
  /** The column that people know a row by. */
  name: string;
  /** Columns that say where it leads. */
  columns: readonly string[];
  /** Columns whose content is nobody's business, and that it changes is. */
  secrets?: readonly string[] | undefined;
  /** Whether somebody has to confirm it. `isThere` tells of rows that are in a table now. */
  needsConfirmation?:
    | ((
        change: { before: StateRow | undefined; after: StateRow },
        isThere: (table: string, key: unknown) => boolean,
      ) => boolean)
    | undefined;
}

const maxRowBytes = 1024 * 1024;
const maxDepth = 16;

/** Throws `state_rows_invalid` that names table, row and column. */
export function checkedRow(table: string, schema: StateTable['row'], row: StateRow, key: string): StateRow {
  const refuse = (column: string, what: string) =>
    new AppError('state_rows_invalid', {
      detail: `${table} ${key.slice(0, 100)}: ${column.slice(0, 100)} ${what}`,
      table,
      row: key.slice(0, 300),
      column,
    });
  for (const [column, value] of Object.entries(row)) {
    if (!isPlain(value, maxDepth)) throw refuse(column, 'holds NUL, or lies too deep');
  }
  if (Buffer.byteLength(JSON.stringify(row)) > maxRowBytes) throw refuse('the row', 'is too large');
  const parsed = schema.safeParse(row);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw refuse(
    String(issue?.path[0] ?? 'the row'),
    `${issue?.message ?? 'is wrong'}${issue && issue.path.length > 1 ? ` at ${issue.path.slice(1).join('.').slice(0, 100)}` : ''}`,
  );
}

/** What no database refuses, and no reader stumbles over. PostgreSQL has no NUL in texts. */
function isPlain(value: unknown, depth: number): boolean {
  if (typeof value === 'string') return !value.includes('\0');
  if (typeof value !== 'object' || value === null) return true;
  if (depth === 0) return false;
  if (Array.isArray(value)) return value.every((one) => isPlain(one, depth - 1));
  return Object.entries(value).every(
    ([name, one]) => name !== '__proto__' && !name.includes('\0') && isPlain(one, depth - 1),
  );
}
