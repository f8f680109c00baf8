import { ProblemDocument } from '@airdock/platform/http/operation';
import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

const version = z
  .string()
  .regex(/^(?:v-?)?\d+\.\d+\.\d+(?:-\d+)?$/, 'must be a version like v-5.4.0-1600000')
  .describe('Of the DU, e.g. v-5.4.0-1600000');

/** In their order; those from `rollBackEngine` on only where it is rolled back. */
export const duUpgradePhases = [
  'preflight',
  'backup',
  'fence',
  'finalBackup',
  'prepared',
  'engine',
  'migrate',
  'restore',
  'compare',
  'open',
  'done',
  'rollBackEngine',
  'rollBackData',
  'rollBackOpen',
  'rolledBack',
  'refused',
] as const;
export type DuUpgradePhase = (typeof duUpgradePhases)[number];
export const endedPhases: readonly DuUpgradePhase[] = ['done', 'rolledBack', 'refused'];

const goal = z.enum(['prepared', 'done', 'rolledBack']);
export type DuUpgradeGoal = z.infer<typeof goal>;

const path = z.string().min(1).max(4096).describe('A file in one of the folders of airdock.bundleDirs');

const digest = z
  .string()
  .regex(/^sha256:[0-9a-f]{64}$/)
  .optional()
  .describe(
    'Of the program, as sha256sum shows it, also where it is in an image. Nothing else is installed; only a dry run does without, and then tells it',
  );

export const NewEngine = z
  .union([z.strictObject({ binary: path, digest }), z.strictObject({ image: path, digest })])
  .describe("The registry's program of the new release: itself, or in an image as docker save writes it")
  .meta({ id: 'NewEngine' });
export type NewEngine = z.infer<typeof NewEngine>;

const allowUnsigned = z
  .boolean()
  .describe(
    'Whether data may come back from a backup that this DU has not signed: of one that has lost its signing.key',
  );

const confirm = z
  .string()
  .regex(/^sha256:[0-9a-f]{64}$/)
  .describe(
    '`planDigest` of `restore_unconfirmed`: where hosts, credentials and webhooks may lead that come back from a backup which this DU has not signed',
  );

export const CreateDuUpgrade = z
  .strictObject({
    toVersion: version,
    step: z
      .enum(['all', 'prepare', 'finish'])
      .default('all')
      .describe(
        'prepare: up to the backup, and pushes stay away until it is finished; finish: on a DU that has lost everything, from a backup',
      ),
    engine: NewEngine.optional(),
    backupTarget: z.string().max(50).default('default'),
    backupId: z.uuid().optional().describe('Needed with finish'),
    dryRun: z.boolean().default(false).describe('Only the preflight, which runs nothing of the new release'),
    allowUnsigned: allowUnsigned.default(false),
    confirm: confirm.optional(),
  })
  .refine((body) => (body.step === 'finish') === (body.backupId !== undefined), {
    path: ['backupId'],
    message: 'belongs to finish, and only there',
  })
  .meta({ id: 'CreateDuUpgrade' });
export type CreateDuUpgrade = z.infer<typeof CreateDuUpgrade>;

export const FinishDuUpgrade = z
  .strictObject({ engine: NewEngine.optional(), allowUnsigned: allowUnsigned.optional(), confirm: confirm.optional() })
  .meta({ id: 'FinishDuUpgrade' });
export type FinishDuUpgrade = z.infer<typeof FinishDuUpgrade>;

export const UpgradeProblem = z
  .object({ check: z.string(), severity: z.enum(['failure', 'warning', 'info']), detail: z.string() })
  .meta({ id: 'DuUpgradeProblem' });
export type UpgradeProblem = z.infer<typeof UpgradeProblem>;

export const DuUpgradeReport = z
  .object({
    images: z.number().int().describe('Names in the backup'),
    present: z.number().int().describe('Images that are there, by digest'),
    missing: z.array(z.string()),
    changed: z.array(z.string()).describe('Names that lead to another digest'),
    restored: z.boolean().describe('Whether data was gone and came back from the backup'),
    engineVersion: z.string().nullable(),
  })
  .meta({ id: 'DuUpgradeReport' });
export type DuUpgradeReport = z.infer<typeof DuUpgradeReport>;

export const DuUpgrade = z
  .object({
    id: z.uuid(),
    fromVersion: z.string(),
    toVersion: z.string(),
    target: z.string(),
    engine: NewEngine.nullable(),
    phase: z.enum(duUpgradePhases),
    goal,
    dryRun: z.boolean(),
    allowUnsigned: z.boolean(),
    confirm: confirm.nullable(),
    problems: z.array(UpgradeProblem).nullable(),
    backupId: z.uuid().nullable(),
    report: DuUpgradeReport.nullable(),
    error: ProblemDocument.nullable().describe('Why it was rolled back, or stands still'),
    jobId: z.uuid(),
    createdAt: z.iso.datetime(),
    finishedAt: z.iso.datetime().nullable(),
  })
  .meta({ id: 'DuUpgrade' });
export type DuUpgrade = z.infer<typeof DuUpgrade>;
export const DuUpgradePage = pageOf(DuUpgrade, 'DuUpgradePage');

export const Du = z
  .object({
    version: z
      .string()
      .describe(
        'That of the upgrade which was finished last, until airdock.duVersion says something new; without one, as airdock.duVersion says',
      ),
    hasRegistry: z.boolean().describe('Whether a DU of this version has a local registry (5.2 and later)'),
    movesClusters: z.boolean().describe('Whether clusters that exist can be moved to it (5.3 and later)'),
    upgradeId: z.uuid().nullable().describe('Of the upgrade that has begun and not ended'),
  })
  .meta({ id: 'Du' });
export type Du = z.infer<typeof Du>;
