import { labelKey, labelValue } from '@airdock/core/label-selector';
import { hostChangeActions, hostChangeKinds } from '@airdock/host/work/host-work';
import { ProblemDocument } from '@airdock/platform/http/operation';
import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const HostFacts = z
  .object({
    os: z.string(),
    osVersion: z.string(),
    osFamily: z.enum(['debian', 'redhat']).nullable().describe('Whose packages it takes; null when neither'),
    packageManager: z.string().nullable().describe('The program found: apt-get, dnf, yum, zypper or apk'),
    architecture: z.string().describe('As images name it: amd64, arm64'),
    cpus: z.number().int(),
    memoryBytes: z.number().int(),
    diskFreeBytes: z.number().int(),
    dockerVersion: z.string().nullable(),
    containerdVersion: z
      .string()
      .nullable()
      .default(null)
      .describe('Of the one that answers at /run/containerd, also where Docker uses it'),
    seenAt: z.iso.datetime(),
  })
  .meta({ id: 'HostFacts' });
export type HostFacts = z.infer<typeof HostFacts>;

/** The flags of configure-hosts, and which runtime is meant. */
export const ConfigurationOptions = z
  .strictObject({
    skipDockerImgImport: z
      .boolean()
      .default(false)
      .describe('No images are brought to the host; it relies on the registry'),
    skipDockerInstall: z
      .boolean()
      .default(false)
      .describe('The host brings its own container runtime, configured; also skips the images'),
    skipImageRenaming: z.boolean().default(false).describe('Warmed images keep their upstream names'),
    skipYumRepoInstall: z
      .boolean()
      .default(false)
      .describe('Package repositories, apt and yum, are left alone: the host gets its packages elsewhere'),
    containerRuntime: z
      .enum(['docker', 'containerd'])
      .optional()
      .describe('Default: Docker where it answers, else containerd, else Docker is installed'),
  })
  .meta({ id: 'ConfigurationOptions' });
export type ConfigurationOptions = z.infer<typeof ConfigurationOptions>;

export const Change = z
  .object({
    kind: z.enum(hostChangeKinds),
    target: z.string().describe('Path, package, service, image or address on the host; or the words of a command'),
    action: z.enum(hostChangeActions),
    diff: z.string().nullable().describe('Of a file: a unified diff, with credentials masked'),
  })
  .meta({ id: 'Change' });
export type Change = z.infer<typeof Change>;

export const Drift = z
  .object({
    checkedAt: z.iso.datetime(),
    changes: z.array(Change).describe('What would put the host right; empty: it is as it should be'),
    error: ProblemDocument.nullable().describe(
      'Why the host could not be looked at or put right to the end; `changes` then also has what was known before',
    ),
    configurationId: z.uuid().describe('That found it; a scheduled one may be gone by now'),
  })
  .meta({ id: 'Drift' });
export type Drift = z.infer<typeof Drift>;

export const Quarantine = z
  .object({
    until: z.iso.datetime().describe('Before this time nobody connects to the host'),
    since: z.iso.datetime(),
    strikes: z
      .number()
      .int()
      .describe('How often in a row, a day apart at the most: each doubles the time, from a minute to an hour'),
    reason: z
      .enum(['silent', 'memory', 'crashed'])
      .describe('The process that serves hosts stood still, took too much memory, or crashed on data of this host'),
  })
  .meta({ id: 'Quarantine' });
export type Quarantine = z.infer<typeof Quarantine>;

export const hostAddress = z.string().regex(/^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45})$/);
export const hostName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$/);
export const hostPort = z.number().int().min(1).max(65535);

export const Host = z
  .object({
    id: z.uuid(),
    name: z.string(),
    address: hostAddress,
    port: z.number().int(),
    credentialId: z.uuid(),
    hostKeyFingerprint: z
      .string()
      .nullable()
      .describe('The pinned key; null until the first connection with trustOnFirstUse'),
    hostKeySource: z.enum(['pinned', 'firstUse']).describe('Who pinned the key: the caller, or the first connection'),
    jumpHostId: z.uuid().nullable().describe('The host that connections go through'),
    labels: z.record(z.string(), z.string()),
    facts: HostFacts.nullable(),
    configuration: ConfigurationOptions.nullable().describe('Of the last successful configuration'),
    configuredAt: z.iso.datetime().nullable(),
    drift: Drift.nullable().describe(
      'What has changed on the host since it was configured, as far as was looked; null: it is not configured',
    ),
    quarantine: Quarantine.nullable().describe('Why the host is left alone, until when; null: it is not'),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Host' });
export type Host = z.infer<typeof Host>;
export const HostPage = pageOf(Host, 'HostPage');

export const HostListQuery = PageQuery.extend({
  labelSelector: z
    .string()
    .max(2000)
    .optional()
    .describe('As in Kubernetes: role=worker,site!=b,env in (a,b),gpu,!old'),
  drifted: z
    .stringbool()
    .optional()
    .describe(
      'true: configured hosts that are not as they should be, or could not be looked at; false: those that are as they should be',
    ),
});
export type HostListQuery = z.infer<typeof HostListQuery>;

export const maxLabels = 64;
const key = z.string().regex(labelKey, 'must be a label key of Kubernetes');
const value = z.string().regex(labelValue, 'must be a label value of Kubernetes');
export const Labels = z
  .record(key, value)
  .refine((labels) => Object.keys(labels).length <= maxLabels, { message: `at most ${maxLabels} labels` });

const trustOnFirstUse = z
  .literal(true)
  .optional()
  .describe(
    'Instead of hostKey: the first connection pins the key that the host shows. Whoever is in between then stays unseen',
  );
const hostKey = z
  .string()
  .min(1)
  .max(4096)
  .describe('SHA256:… or a public key line; get it from the host itself, e.g. /etc/ssh/ssh_host_ed25519_key.pub');

export const CreateHost = z
  .strictObject({
    name: hostName,
    address: hostAddress,
    port: hostPort.default(22),
    credentialId: z.uuid(),
    hostKey: hostKey.optional(),
    trustOnFirstUse,
    jumpHostId: z.uuid().nullable().default(null).describe('A registered host that connections go through'),
    labels: Labels.default({}),
  })
  .refine((body) => (body.hostKey === undefined) !== (body.trustOnFirstUse === undefined), {
    message: 'give either hostKey or trustOnFirstUse',
  })
  .meta({ id: 'CreateHost' });
export type CreateHost = z.infer<typeof CreateHost>;

export const PatchHost = z
  .strictObject({
    address: hostAddress.optional(),
    port: hostPort.optional(),
    credentialId: z.uuid().optional(),
    hostKey: hostKey.optional(),
    trustOnFirstUse: trustOnFirstUse.describe(
      'Forgets the pinned key: the next connection pins the key that the host shows then',
    ),
    jumpHostId: z.uuid().nullable().optional(),
    labels: z.record(key, value.nullable()).optional().describe('Merged into the labels of the host; null removes one'),
  })
  .refine((body) => body.hostKey === undefined || body.trustOnFirstUse === undefined, {
    message: 'give either hostKey or trustOnFirstUse',
  })
  .meta({ id: 'PatchHost' });
export type PatchHost = z.infer<typeof PatchHost>;
