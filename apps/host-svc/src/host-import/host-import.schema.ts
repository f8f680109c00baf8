import { inventoryFormats } from '@airdock/inventory/inventory';
import { z } from 'zod';
import { Labels } from '../host/host.schema.js';

export const CreateHostImport = z
  .strictObject({
    format: z.enum(inventoryFormats).describe("ini is Ansible's; yaml is a list of hosts, or Ansible's groups"),
    content: z.string().min(1).max(1_000_000).describe('The inventory; at most 5,000 hosts, and no passwords'),
    groupLabels: z
      .array(z.string().min(1).max(200))
      .max(100)
      .optional()
      .describe(
        "Of Ansible's groups those that become labels of their hosts, `ansible-group/NAME`; `*` stands for any text. By default all, the nearest first, while there is room",
      ),
    defaults: z
      .strictObject({
        credentialId: z.uuid().optional(),
        port: z.number().int().min(1).max(65535).default(22),
        labels: Labels.default({}),
        trustOnFirstUse: z.literal(true).optional(),
        jumpHostId: z.uuid().nullable().default(null),
      })
      .prefault({})
      .describe('Of new hosts, where the inventory says nothing. Hosts that are there keep what it does not say'),
    dryRun: z.boolean().default(false).describe('Say what would be done, and change nothing'),
    partial: z
      .boolean()
      .default(false)
      .describe('Register the hosts that can be, and leave out the others, lines that cannot be read too'),
  })
  .meta({ id: 'CreateHostImport' });
export type CreateHostImport = z.infer<typeof CreateHostImport>;

export const ImportedHost = z
  .object({
    line: z.number().int(),
    name: z.string().describe('Empty when what stands there cannot be one'),
    outcome: z.enum(['created', 'updated', 'unchanged', 'refused']),
    hostId: z.uuid().nullable().describe('null for a refused host, and for one that a dry run would create'),
    problem: z.string().nullable().describe('Why it was refused'),
  })
  .meta({ id: 'ImportedHost' });
export type ImportedHost = z.infer<typeof ImportedHost>;

const count = z.number().int();

export const HostImport = z
  .object({
    dryRun: z.boolean(),
    created: count,
    updated: count,
    unchanged: count,
    refused: count,
    hosts: z.array(ImportedHost),
    warnings: z.array(z.string()),
  })
  .meta({ id: 'HostImport' });
export type HostImport = z.infer<typeof HostImport>;
