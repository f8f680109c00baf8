import { putStateRows } from '@airdock/clients/generated/sdk.gen';
import type { ServiceClients } from '@airdock/clients/service-clients';
import { parseBoundedJson } from '@airdock/core/bounded-json';
import { AppError } from '@airdock/core/errors';
import { digestOf } from '@airdock/core/oci/digest';
import type { PutStateRows, ServiceState, StateRowsResult } from '@airdock/platform/state/state.schema';
import { z } from 'zod';
import type { settingsServices } from '../backup/backup.service.js';
import type { RestoreReport } from './restore.schema.js';

/** Of the state of one service: a hundred thousand rows of images have less. */
export const maxStateBytes = 64 * 1024 * 1024;
const maxValues = 1_500_000;
const maxRows = 200_000;
const maxTables = 50;
/** Of one request, which may have a megabyte. */
const maxRowsBytes = 500_000;
const maxRowsAtOnce = 500;
/** Of a report; the digest is of all. */
const maxReported = 1_000;

const stateSchema = z.object({
  service: z.string(),
  formatVersion: z.literal(1),
  keyFingerprint: z.string().max(100),
  tables: z
    .array(
      z.object({
        name: z.string().regex(/^[a-z_]{1,60}$/),
        rows: z.array(z.unknown()).max(maxRows),
      }),
    )
    .max(maxTables),
});

/**
 * Reads what a backup holds of a service; its rows are for the service to judge. Throws `backup_corrupt`, before it
 * costs memory where it is too much.
 */
export function parseState(service: string, bytes: Uint8Array): ServiceState {
  const corrupt = (what: string, cause?: unknown) =>
    new AppError('backup_corrupt', { detail: `the state of ${service}-svc ${what}` }, { cause });
  let json: unknown;
  try {
    json = parseBoundedJson(bytes, { maxBytes: maxStateBytes, maxValues });
  } catch (cause) {
    throw corrupt(`cannot be read: ${String(cause).slice(0, 200)}`, cause);
  }
  const parsed = stateSchema.safeParse(json);
  if (!parsed.success) throw corrupt('is none');
  if (parsed.data.service !== service) throw corrupt('is that of another service');
  const tables = parsed.data.tables.map(({ name, rows }) => {
    const stray = rows.findIndex((row) => typeof row !== 'object' || row === null || Array.isArray(row));
    if (stray >= 0) throw corrupt(`has something else than a row in ${name}, at ${stray}`);
    return { name, rows: rows as Record<string, unknown>[] };
  });
  return { ...parsed.data, tables };
}

type Changes = NonNullable<RestoreReport['changes']>;

/**
 * What a restore was about to change when it began to write: it goes on with that, and with nothing else, after it was
 * ended in the middle.
 */
export interface AcceptedPlan {
  /** Of the states in the backup. */
  contentDigest: string;
  /** Of each change, whoever had to confirm it. */
  changeDigests: string[];
}

/** What `StateRestore.plan` found. */
export interface StatePlan {
  report: Pick<RestoreReport, 'changes' | 'planDigest'>;
  guarded: Changes;
  accepted: AcceptedPlan;
}
type Keys = Record<string, string[]>;

/** Brings the states of services back: first all rows are checked, by the services whose they are, and then written. */
export class StateRestore {
  constructor(
    private readonly clients: ServiceClients,
    private readonly states: readonly ServiceState[],
    private readonly options: {
      existing: 'keep' | 'replace';
      /**
       * Whether the backup is signed by somebody known. What is not may lead anywhere: then every change needs a
       * confirmation.
       */
      isTrusted: boolean;
      /** Of the states: what is confirmed is all of them, also what no change shows. */
      contentDigest: string;
      signal: AbortSignal;
    },
  ) {}

  /**
   * What would change of what leads somewhere. Throws `state_rows_invalid` for any row that its service would not have
   * written.
   */
  async plan(): Promise<StatePlan> {
    const { isTrusted, contentDigest } = this.options;
    const changes: Changes = [];
    for await (const { service, table, result } of this.each(true))
      changes.push(
        ...result.changes.map((change) => ({
          service,
          table,
          ...change,
          needsConfirmation: change.needsConfirmation || !isTrusted,
        })),
      );
    const guarded = changes.filter(({ needsConfirmation }) => needsConfirmation);
    // What needs it comes first: it must not be hidden behind the rest.
    const shown = [...guarded, ...changes.filter(({ needsConfirmation }) => !needsConfirmation)].slice(0, maxReported);
    const planDigest = guarded.length > 0 ? digestOf(Buffer.from(JSON.stringify({ contentDigest, guarded }))) : null;
    return {
      report: this.states.length === 0 ? { changes: null, planDigest: null } : { changes: shown, planDigest },
      guarded,
      accepted: { contentDigest, changeDigests: changes.map(digestOfChange) },
    };
  }

  /** Each request is written in full or not at all. */
  async write(): Promise<NonNullable<RestoreReport['settings']>> {
    const results: NonNullable<RestoreReport['settings']> = [];
    for await (const { service, table, result } of this.each(false)) {
      const { added, replaced, kept, conflicts } = result;
      results.push({ service, table, added, replaced, kept, conflicts });
    }
    return results;
  }

  private async *each(dryRun: boolean): AsyncGenerator<{ service: string; table: string; result: StateRowsResult }> {
    for (const { service, keyFingerprint, tables } of this.states) {
      const coming: Keys = {};
      const missing: Keys = {};
      for (const { name: table, rows } of tables) {
        coming[table] = rows.flatMap(({ id }) => (typeof id === 'string' ? [id] : []));
        const result: StateRowsResult = { added: 0, replaced: 0, kept: 0, conflicts: [], changes: [] };
        for (const part of partsOf(rows)) {
          const body = {
            keyFingerprint,
            rows: part,
            existing: this.options.existing,
            dryRun,
            coming: bounded(coming, part),
            left: bounded(missing, part),
          };
          const data = await this.put(service, table, body);
          for (const count of ['added', 'replaced', 'kept'] as const) result[count] += data[count];
          result.conflicts.push(...data.conflicts);
          result.changes.push(...data.changes);
        }
        missing[table] = result.conflicts;
        yield { service, table, result };
      }
    }
  }

  /** Rows that are refused as the body of a request, before the service sees them, are told by their table too. */
  private async put(service: string, table: string, body: PutStateRows): Promise<StateRowsResult> {
    const client = this.clients[service as (typeof settingsServices)[number]];
    try {
      return (
        await putStateRows({ client, path: { service, table }, body, signal: this.options.signal, throwOnError: true })
      ).data;
    } catch (error) {
      if (!(error instanceof AppError) || !['request_invalid', 'payload_too_large'].includes(error.code)) throw error;
      throw new AppError(
        'state_rows_invalid',
        { detail: `${table} ${error.details.detail ?? ''}`, table },
        { cause: error },
      );
    }
  }
}

/**
 * Whether all of a plan that needs a confirmation was about to be done before: rows that were written meanwhile make
 * others need one that did not.
 */
export const isWithin = ({ guarded, accepted: { contentDigest } }: StatePlan, before: AcceptedPlan): boolean => {
  const known = new Set(before.changeDigests);
  return contentDigest === before.contentDigest && guarded.every((change) => known.has(digestOfChange(change)));
};

/** Of what it does, not of who has to confirm it. */
const digestOfChange = (change: Changes[number]): string =>
  digestOf(Buffer.from(JSON.stringify({ ...change, needsConfirmation: undefined })));

/** Keys that the rows of a request name: all of them would not fit into it. */
function bounded(keys: Keys, rows: readonly Record<string, unknown>[]): Keys {
  const named = new Set(rows.flatMap((row) => Object.values(row).filter((value) => typeof value === 'string')));
  return Object.fromEntries(Object.entries(keys).map(([table, all]) => [table, all.filter((key) => named.has(key))]));
}

function* partsOf(rows: readonly Record<string, unknown>[]): Generator<Record<string, unknown>[]> {
  let part: Record<string, unknown>[] = [];
  let bytes = 0;
  for (const row of rows) {
    const size = Buffer.byteLength(JSON.stringify(row));
    if (part.length > 0 && (bytes + size > maxRowsBytes || part.length === maxRowsAtOnce)) {
      yield part;
      part = [];
      bytes = 0;
    }
    part.push(row);
    bytes += size;
  }
  if (part.length > 0) yield part;
}
