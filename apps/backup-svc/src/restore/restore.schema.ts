import { pageOf } from '@airdock/platform/http/page';
import { jobStates } from '@airdock/platform/jobs/job.schema';
import { StateChange } from '@airdock/platform/state/state.schema';
import { z } from 'zod';
import { repositoryPatterns, SkippedName } from '../backup/backup.schema.js';

const names = z.array(z.string());

const shared = {
  repositories: repositoryPatterns.optional(),
  mode: z
    .enum(['merge', 'exact'])
    .default('merge')
    .describe(
      'exact: names that the registry has and the backup has not, within the selection, are removed from the registry, and settings that are there get the values of the backup',
    ),
  onConflict: z
    .enum(['overwrite', 'keep'])
    .default('overwrite')
    .describe('What happens to a name that leads to something else in the registry'),
  settings: z
    .boolean()
    .optional()
    .describe(
      "Whether Airdock's own state is brought back too: catalogue, hosts, clusters, credentials. Default: when everything is restored into this DU",
    ),
  dryRun: z.boolean().default(false),
  allowUnsigned: z
    .boolean()
    .default(false)
    .describe(
      'Also a backup that nobody known here has signed: try it with dryRun first, and look at what it would change. One that is signed wrongly is never taken',
    ),
  confirm: z
    .string()
    .regex(/^sha256:[0-9a-f]{64}$/)
    .optional()
    .describe('`planDigest` of a report: its changes of where hosts and credentials lead may be made, and no others'),
  drill: z
    .boolean()
    .default(false)
    .describe('Restore into a registry that is made for it, check it, and throw it away'),
};

const registry = z.strictObject({
  url: z
    .url({ protocol: /^https?$/ })
    .max(2000)
    .refine((url) => {
      // What is no URL has been said already.
      const parsed = URL.parse(url);
      return !parsed?.username && !parsed?.password;
    }, 'give username and password apart'),
  username: z.string().max(200).optional(),
});

export const RestoreRequest = z.strictObject({ ...shared, registry: registry.optional() });
export type RestoreRequest = z.infer<typeof RestoreRequest>;

export const CreateRestore = z
  .strictObject({
    backupId: z.uuid(),
    ...shared,
    registry: registry
      .extend({ password: z.string().max(1000).optional() })
      .optional()
      .describe('Another registry; default: that of this DU'),
  })
  .refine((body) => !(body.drill && (body.registry || body.dryRun || body.mode === 'exact')), {
    message: 'a drill takes neither registry, dryRun nor exact',
  })
  .refine((body) => !(body.settings && (body.drill || body.registry || body.repositories)), {
    path: ['settings'],
    message: 'come back only with everything, into this DU',
  })
  .meta({ id: 'CreateRestore' });
export type CreateRestore = z.infer<typeof CreateRestore>;

export const RestoreReport = z
  .object({
    present: z
      .number()
      .int()
      .describe(
        'Names that led to the image of the backup before. With `missing` and `conflicts` they are all names that were asked for, which is `images` of the result of the job',
      ),
    missing: names.describe('Names that the registry did not have'),
    conflicts: names.describe('Names that led to something else'),
    extra: names.describe('Names that the backup does not have; removed with exact'),
    missingBytes: z.number().int(),
    freeBytes: z.number().int().nullable().describe('Where the registry keeps its blobs; null where nobody can tell'),
    broken: z
      .array(SkippedName)
      .describe('Names that cannot be restored, since something of them is missing or damaged in the backup'),
    verified: z
      .number()
      .int()
      .nullable()
      .describe('Names that lead to the digest of the backup now, by the registry; null before that'),
    signature: z
      .object({ state: z.enum(['own', 'trusted', 'unknown', 'unsigned']), keyId: z.string().nullable() })
      .describe('Who vouches for the backup'),
    changes: z
      .array(StateChange.extend({ service: z.string(), table: z.string() }))
      .nullable()
      .describe(
        'What of the settings leads somewhere and would be added or changed: hosts, credentials, webhooks, schedules; the first 1,000. null before that is known',
      ),
    planDigest: z.string().nullable().describe('For `confirm`, when any of the changes needs that'),
    settings: z
      .array(
        z.object({
          service: z.string(),
          table: z.string(),
          added: z.number().int(),
          replaced: z.number().int(),
          kept: z.number().int(),
          conflicts: names,
        }),
      )
      .nullable(),
  })
  .meta({ id: 'RestoreReport' });
export type RestoreReport = z.infer<typeof RestoreReport>;

export const Restore = z
  .object({
    id: z.uuid(),
    backupId: z.string(),
    target: z.string(),
    request: RestoreRequest,
    state: z.enum(jobStates),
    report: RestoreReport.nullable(),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Restore' });
export type Restore = z.infer<typeof Restore>;
export const RestorePage = pageOf(Restore, 'RestorePage');
