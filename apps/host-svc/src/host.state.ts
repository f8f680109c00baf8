import type { Config } from '@airdock/platform/config';
import type { StateTable } from '@airdock/platform/state/state-table';
import { z } from 'zod';
import { HostEntity } from './host/host.entity.js';
import { ConfigurationOptions, Drift, HostFacts, hostAddress, hostName, hostPort, Labels } from './host/host.schema.js';
import { SshCredentialEntity } from './ssh-credential/ssh-credential.entity.js';
import { credentialName, credentialUsername } from './ssh-credential/ssh-credential.schema.js';
import { TunnelEntity } from './tunnel/tunnel.entity.js';

const sealed = z.string().max(100_000);
const time = z.iso.datetime();
const fingerprint = z
  .string()
  .regex(/^SHA256:[A-Za-z0-9+/]{43}$/)
  .nullish();
const names = z.array(z.string().max(1_000)).max(20_000);

/** Rows as this service writes them; what a restore brings must be such. */
const credentialRow = z.object({
  id: z.uuid(),
  name: credentialName,
  username: credentialUsername,
  kind: z.enum(['key', 'password']),
  publicKeyFingerprint: z.string().max(200).nullish(),
  hasSudoPassword: z.boolean().optional(),
  sealed,
  createdAt: time,
});

const hostRow = z.object({
  id: z.uuid(),
  name: hostName,
  address: hostAddress,
  port: hostPort,
  credentialId: z.uuid(),
  hostKeyFingerprint: fingerprint,
  hostKeySource: z.enum(['pinned', 'firstUse']).optional(),
  jumpHostId: z.uuid().nullish(),
  labels: Labels.nullish(),
  facts: HostFacts.nullish(),
  configuration: ConfigurationOptions.nullish(),
  brought: z.object({ packages: names, images: names }).nullish(),
  configuredAt: time.nullish(),
  drift: Drift.nullish(),
  turnJobId: z.null().optional(),
  quarantine: z.null().optional(),
  createdAt: time,
});

/** That a tunnel is wanted. Where it leads follows from the configuration. */
const tunnelRow = z.looseObject({
  id: z.uuid(),
  hostId: z.uuid(),
  hostEnd: z.enum(['port', 'socket']).optional(),
  createdAt: time,
});
const tunnelReset = ({ registry, packages }: Config) => ({
  hostPort: registry.port,
  target: '',
  packagePort: packages.repositories.length > 0 ? packages.port : null,
  ...{
    state: 'connecting',
    since: '1970-01-01T00:00:00.000Z',
    error: null,
    session: null,
    leaseOwner: null,
    leaseUntil: null,
  },
  ...{ reconnects: 0, latencyMs: null, bytesSent: '0', bytesPerSecond: 0 },
});

const whereAHostIs = ['address', 'port', 'hostKeyFingerprint', 'credentialId', 'jumpHostId'] as const;

/** What of host-svc outlives its machine. */
export const hostState: readonly StateTable[] = [
  {
    entity: SshCredentialEntity,
    row: credentialRow,
    destination: {
      name: 'name',
      columns: ['username', 'kind', 'publicKeyFingerprint'],
      secrets: ['sealed'],
      // A credential that is new here is used by nothing yet.
      needsConfirmation: ({ before }) => before !== undefined,
    },
  },
  {
    entity: HostEntity,
    row: hostRow,
    references: { credentialId: 'ssh_credential', jumpHostId: 'host' },
    reset: { turnJobId: null, quarantine: null },
    destination: {
      name: 'name',
      columns: [...whereAHostIs, 'hostKeySource'],
      needsConfirmation: ({ before, after }, isThere) =>
        before
          ? whereAHostIs.some((column) => (before[column] ?? null) !== (after[column] ?? null))
          : isThere('ssh_credential', after.credentialId),
    },
  },
  { entity: TunnelEntity, row: tunnelRow, references: { hostId: 'host' }, reset: tunnelReset },
];
