import { z } from 'zod';

const row = z.record(z.string(), z.unknown());

export const ServiceState = z
  .object({
    service: z.string(),
    formatVersion: z.literal(1),
    keyFingerprint: z.string().describe('Of the key that sealed columns were sealed with: only with the same key file can they be used'),
    tables: z.array(z.object({ name: z.string(), rows: z.array(row) })),
  })
  .meta({ id: 'ServiceState', description: 'What a service has to know after a restore on a new machine; without jobs and history' });
export type ServiceState = z.infer<typeof ServiceState>;

export const PutStateRows = z
  .strictObject({
    keyFingerprint: z.string().max(100),
    rows: z.array(row).max(1_000),
    existing: z.enum(['keep', 'replace']).default('keep').describe('What happens to rows that are there, by their key'),
  })
  .meta({ id: 'PutStateRows' });
export type PutStateRows = z.infer<typeof PutStateRows>;

export const StateRowsResult = z
  .object({
    added: z.number().int(),
    replaced: z.number().int(),
    kept: z.number().int().describe('Rows that were there'),
    conflicts: z.array(z.string()).describe('Keys of rows that another row is in the way of, e.g. one with the same name'),
  })
  .meta({ id: 'StateRowsResult' });
export type StateRowsResult = z.infer<typeof StateRowsResult>;
