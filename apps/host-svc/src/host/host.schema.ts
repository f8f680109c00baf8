import { pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const HostFacts = z
  .object({
    os: z.string(),
    osVersion: z.string(),
    architecture: z.string().describe('As images name it: amd64, arm64'),
    cpus: z.number().int(),
    memoryBytes: z.number().int(),
    diskFreeBytes: z.number().int(),
    dockerVersion: z.string().nullable(),
    seenAt: z.iso.datetime(),
  })
  .meta({ id: 'HostFacts' });
export type HostFacts = z.infer<typeof HostFacts>;

/** The four flags of configure-hosts. */
export const ConfigurationOptions = z
  .strictObject({
    skipDockerImgImport: z.boolean().default(false).describe('No images are brought to the host; it relies on the registry'),
    skipDockerInstall: z.boolean().default(false).describe('The host brings its own Docker; also skips the images'),
    skipImageRenaming: z.boolean().default(false).describe('Warmed images keep their upstream names'),
    skipYumRepoInstall: z.boolean().default(false).describe('Package repositories are left alone'),
  })
  .meta({ id: 'ConfigurationOptions' });
export type ConfigurationOptions = z.infer<typeof ConfigurationOptions>;

const address = z.string().regex(/^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45})$/);

export const Host = z
  .object({
    id: z.uuid(),
    name: z.string(),
    address,
    port: z.number().int(),
    credentialId: z.uuid(),
    hostKeyFingerprint: z.string().describe('The pinned key'),
    facts: HostFacts.nullable(),
    configuration: ConfigurationOptions.nullable().describe('Of the last successful configuration'),
    configuredAt: z.iso.datetime().nullable(),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Host' });
export type Host = z.infer<typeof Host>;
export const HostPage = pageOf(Host, 'HostPage');

const hostKey = z.string().min(1).max(4096).describe('SHA256:… or a public key line; get it from the host itself, e.g. /etc/ssh/ssh_host_ed25519_key.pub');

export const CreateHost = z
  .strictObject({
    name: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$/),
    address,
    port: z.number().int().min(1).max(65535).default(22),
    credentialId: z.uuid(),
    hostKey,
  })
  .meta({ id: 'CreateHost' });
export type CreateHost = z.infer<typeof CreateHost>;

export const PatchHost = z
  .strictObject({
    address: address.optional(),
    port: z.number().int().min(1).max(65535).optional(),
    credentialId: z.uuid().optional(),
    hostKey: hostKey.optional(),
  })
  .meta({ id: 'PatchHost' });
export type PatchHost = z.infer<typeof PatchHost>;
