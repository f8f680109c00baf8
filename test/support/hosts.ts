/** What tests do with the hosts of the lab: through a DU's API, and on the host itself. */
import {
  createHost,
  createHostCheck,
  createHostConfiguration,
  createSshCredential,
  getHostCheck,
  getHostConfiguration,
  listTunnels,
} from '@airdock/clients/generated/sdk.gen';
import type {
  ConfiguredHost,
  CreateHost,
  CreateHostConfiguration,
  CreateSshCredential,
  HostCheckResult,
  Job,
  Tunnel,
} from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { LabHost } from '@airdock/testing/lab/host';
import { endOf, resourceId } from './jobs.js';
import { digestAt, nameOf } from './registry.js';

export interface Registration extends Partial<CreateHost> {
  /** Default: the host's key, as root. */
  credential?: Partial<CreateSshCredential>;
  /** Gets what the API answered. */
  onAnswer?: (answer: unknown) => void;
}

let count = 0;

/** Registers a host with a credential of its own. Returns its id. */
export async function registerHost(client: Client, of: LabHost, registration: Registration = {}): Promise<string> {
  const { credential = { privateKey: of.privateKey }, onAnswer = () => undefined, ...change } = registration;
  const name = `host-${++count}`;
  const { data: stored } = await createSshCredential({
    client,
    body: { name, username: 'root', ...credential },
    throwOnError: true,
  });
  const key = change.trustOnFirstUse ? {} : { hostKey: of.hostKey };
  const body = { name, address: of.address, port: of.port, credentialId: stored.id, ...key, ...change };
  const { data: host } = await createHost({ client, body, throwOnError: true });
  onAnswer(stored);
  onAnswer(host);
  return host.id;
}

/** Configures one host, and waits for the end. */
export async function configureHost(
  client: Client,
  hostId: string,
  options: Partial<CreateHostConfiguration> = {},
): Promise<Configured> {
  const { data } = await createHostConfiguration({
    client,
    body: { ...options, hostIds: [hostId] },
    throwOnError: true,
  });
  const job = await endOf(client, data.id);
  return { job, result: (await configuredHosts(client, job))[0] as ConfiguredHost };
}
export interface Configured {
  job: Job;
  result: ConfiguredHost;
}

/** The hosts of the configuration that a job works on. */
export async function configuredHosts(client: Client, job: Job): Promise<ConfiguredHost[]> {
  return (await getHostConfiguration({ client, path: { id: resourceId(job) }, throwOnError: true })).data.hosts;
}

export const statuses = ({ steps }: ConfiguredHost): Record<string, string> =>
  Object.fromEntries(steps.map(({ name, status }) => [name, status]));
/** What was changed, or would be: `file create /etc/docker/daemon.json`. */
export const planOf = ({ steps }: ConfiguredHost): string[] =>
  steps.flatMap(({ changes }) => changes.map(({ kind, action, target }) => `${kind} ${action} ${target}`));

/** Checks one host, and waits for the end. */
export async function checkHost(
  client: Client,
  hostId: string,
  pull: string[] = [],
): Promise<{ job: Job; result: HostCheckResult | undefined }> {
  const { data } = await createHostCheck({ client, body: { hostIds: [hostId], pull }, throwOnError: true });
  const job = await endOf(client, data.id);
  const { data: check } = await getHostCheck({ client, path: { id: resourceId(job) }, throwOnError: true });
  return { job, result: check.results?.[0] };
}

/** What is wrong with pulls by the host's own runtime: errors, and digests that are not those of the registry. */
export async function wrongPulls(
  client: Client,
  registryPort: number,
  hostId: string,
  references: string[],
): Promise<string[]> {
  const { job, result } = await checkHost(client, hostId, references);
  if (!result?.ok || result.pulls.length !== references.length) return [JSON.stringify(job.error ?? result)];
  const wanted = await Promise.all(references.map((reference) => digestAt(registryPort, nameOf(reference))));
  return result.pulls
    .filter(({ digest }, index) => digest !== wanted[index])
    .map(({ reference, digest }) => `${reference} ${digest}`);
}

export async function tunnelOf(client: Client, hostId: string): Promise<Tunnel | undefined> {
  return (await listTunnels({ client, query: { hostId }, throwOnError: true })).data.items[0];
}

/** What a command on the host prints, without SSH, trimmed. Throws when it fails. */
export async function out(host: LabHost, command: string): Promise<string> {
  const { stdout, stderr, exitCode } = await host.exec(command);
  if (exitCode !== 0) throw new Error(`${command} on ${host.name}: ${exitCode} ${stderr}${stdout}`);
  return stdout.trim();
}

/** Names in Docker's cache. Images that were pulled by digest only have none. */
export async function dockerNames(host: LabHost): Promise<string[]> {
  const names = (await out(host, "docker image ls --format '{{.Repository}}:{{.Tag}}'")).split('\n');
  return names.filter((name) => name && !name.includes('<none>')).sort();
}

/** Both names in the local registry of images, by their upstream names. */
export const localNames = (registryPort: number, upstream: string[]): string[] =>
  upstream
    .flatMap((name) => [name.slice(name.indexOf('/') + 1), name].map((local) => `localhost:${registryPort}/${local}`))
    .sort();

/** Everything in /etc, and the packages. */
export const stateOf = (host: LabHost): Promise<string> =>
  out(
    host,
    "find /etc -type f -exec sha256sum {} + | sort -k 2; find /etc -printf '%p %y %m %U %G %l\\n' | sort; dpkg -l; rpm -qa 2>/dev/null || true",
  );
