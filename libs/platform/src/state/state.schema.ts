import { z } from 'zod';

const row = z.record(z.string(), z.unknown());

export const ServiceState = z
  .object({
    service: z.string(),
    formatVersion: z.literal(1),
    keyFingerprint: z
      .string()
      .describe('Of the key that sealed columns were sealed with: only with the same key file can they be used'),
    tables: z.array(z.object({ name: z.string(), rows: z.array(row) })),
  })
  .meta({
    id: 'ServiceState',
    description: 'What a service has to know after a restore on a new machine; without jobs and history',
  });
export type ServiceState = z.infer<typeof ServiceState>;

const keysByTable = z.record(z.string().max(60), z.array(z.string().max(300)).max(20_000)).default({});

export const PutStateRows = z
  .strictObject({
    keyFingerprint: z.string().max(100),
    rows: z.array(row).max(1_000),
    existing: z.enum(['keep', 'replace']).default('keep').describe('What happens to rows that are there, by their key'),
    dryRun: z.boolean().default(false).describe('Only checks the rows, and tells what would change'),
    coming: keysByTable.describe(
      'Keys of rows that come together with these, by table: with dryRun these may name any of them, else those of their own table',
    ),
    left: keysByTable.describe(
      'Keys of rows that did not come, since others were in the way: rows that name them do not come either',
    ),
  })
  .meta({ id: 'PutStateRows' });
export type PutStateRows = z.infer<typeof PutStateRows>;

const value = z.union([z.string(), z.number(), z.boolean(), z.null()]);
export const StateChange = z
  .object({
    key: z.string(),
    name: z.string().describe('What people call it'),
    action: z.enum(['add', 'change']),
    columns: z.array(z.object({ column: z.string(), from: value.describe('null for what is added'), to: value })),
    needsConfirmation: z.boolean().describe('Whether a credential would be used elsewhere than today'),
  })
  .meta({
    id: 'StateChange',
    description: 'A row that leads somewhere: to a host, with a credential, to a receiver of events',
  });
export type StateChange = z.infer<typeof StateChange>;

export const StateRowsResult = z
  .object({
    added: z.number().int(),
    replaced: z.number().int(),
    kept: z.number().int().describe('Rows that were there'),
    conflicts: z
      .array(z.string())
      .describe('Keys of rows that another row is in the way of, e.g. one with the same name'),
    changes: z.array(StateChange).describe('Of tables whose rows lead somewhere'),
  })
  .meta({ id: 'StateRowsResult' });
export type StateRowsResult = z.infer<typeof StateRowsResult>;
