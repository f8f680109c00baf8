import { AppError } from '@airdock/core/errors';
import type { InventoryHost } from '@airdock/inventory/inventory';
import { groupLabel } from '@airdock/inventory/inventory-host';
import { readInventory } from '@airdock/inventory/read-inventory';
import { newId } from '@airdock/platform/ids';
import { parseHostKey } from '@airdock/ssh/connection/keys';
import { Injectable } from '@nestjs/common';
import { CreateHost, type Host, Labels, maxLabels } from '../host/host.schema.js';
import { type HostInsert, HostService, type HostUpdate } from '../host/host.service.js';
import type { SshCredential } from '../ssh-credential/ssh-credential.schema.js';
import { SshCredentialService } from '../ssh-credential/ssh-credential.service.js';
import type { CreateHostImport, HostImport, ImportedHost } from './host-import.schema.js';

const maxAttempts = 3;
const maxRefusedShown = 100;
const maxNamed = 10;

type Defaults = CreateHostImport['defaults'];
/** What becomes of one host: a change, nothing, or why not. */
type Plan = HostInsert | HostUpdate | { unchanged: string } | { problem: string };

/** Registers the hosts of an inventory. The inventory is read and forgotten. */
@Injectable()
export class HostImportService {
  constructor(
    private readonly hosts: HostService,
    private readonly credentials: SshCredentialService,
  ) {}

  /**
   * Throws `inventory_invalid`, `inventory_refused` with the hosts that are, `resource_not_found` and
   * `jump_host_invalid` for the defaults.
   */
  async create({ format, content, groupLabels, defaults, dryRun, partial }: CreateHostImport): Promise<HostImport> {
    const warnings: string[] = [];
    const found = await readInventory(format, content, { groupLabels, partial, warn: (text) => warnings.push(text) });
    const credential = defaults.credentialId ? await this.credentials.get(defaults.credentialId) : undefined;
    if (defaults.jumpHostId) await this.hosts.assertJumpsLead(newId(), defaults.jumpHostId);
    const credentials = await this.credentials.byNames([...new Set(found.flatMap((entry) => entry.credential ?? []))]);
    for (let attempt = 1; ; attempt++) {
      const there = await this.hosts.byNames(found.map(({ name }) => name));
      const entries = found.map((entry) => fitted(entry, there.get(entry.name)?.labels ?? defaults.labels));
      const ofHosts = new Map<string, SshCredential>();
      for (const id of new Set([...there.values()].map((host) => host.credentialId)))
        ofHosts.set(id, await this.credentials.get(id));
      const lines = new Map<string, number>();
      const plans = entries.map((entry): Plan => {
        const earlier = lines.get(entry.name);
        if (entry.name && earlier === undefined) lines.set(entry.name, entry.line);
        if (entry.problem) return { problem: entry.problem };
        if (earlier !== undefined) return { problem: `line ${earlier} has a host of this name already` };
        const named = entry.credential === undefined ? undefined : credentials.get(entry.credential);
        if (entry.credential !== undefined && !named)
          return { problem: 'there is no credential with the name that is given' };
        const host = there.get(entry.name);
        return host
          ? planUpdate(entry, host, named ?? ofHosts.get(host.credentialId))
          : planInsert(entry, defaults, named ?? credential);
      });
      const refused = plans.flatMap((plan, index) => ('problem' in plan ? [toItem(entries[index], plan)] : []));
      if (refused.length > 0 && !partial && !dryRun)
        throw new AppError('inventory_refused', {
          detail: `${refused.length} of ${entries.length} hosts, the first in line ${refused[0]?.line}: ${refused[0]?.problem}`,
          refused: refused.slice(0, maxRefusedShown).map(({ line, name, problem }) => ({ line, name, problem })),
        });
      const changes = plans.filter((plan): plan is HostInsert | HostUpdate => 'insert' in plan || 'update' in plan);
      const ids = dryRun ? new Map<string, string>() : await this.hosts.applyAll(changes);
      if (ids)
        return toResource(
          dryRun,
          plans.map((plan, index) => toItem(entries[index], plan, ids)),
          [...warnings, ...warningsOf(entries)],
        );
      // Someone registered or removed one of the hosts meanwhile.
      if (attempt === maxAttempts)
        throw new AppError('dependency_unavailable', { detail: 'the hosts change too fast' });
    }
  }
}

const otherUser = { problem: 'its user is not that of the credential' };

function planInsert(entry: InventoryHost, defaults: Defaults, credential: SshCredential | undefined): Plan {
  if (!credential) return { problem: 'no credential: name one for the host, or give defaults.credentialId' };
  if (entry.user !== undefined && entry.user !== credential.username) return otherUser;
  if (entry.hostKey === undefined && !defaults.trustOnFirstUse)
    return { problem: 'no host key: give one for the host, or defaults.trustOnFirstUse' };
  const { data, error } = CreateHost.safeParse({
    name: entry.name,
    address: entry.address ?? entry.name,
    port: entry.port ?? defaults.port,
    credentialId: credential.id,
    ...(entry.hostKey === undefined ? { trustOnFirstUse: true } : { hostKey: entry.hostKey }),
    jumpHostId: defaults.jumpHostId,
    labels: { ...defaults.labels, ...entry.labels },
  });
  if (!data) return { problem: issuesOf(error) };
  return fingerprintOf(entry) === null
    ? { problem: 'its host key is none: give SHA256:… or a public key line' }
    : { insert: data };
}

function planUpdate(entry: InventoryHost, host: Host, credential: SshCredential | undefined): Plan {
  if (entry.user !== undefined && credential && entry.user !== credential.username) return otherUser;
  const fingerprint = fingerprintOf(entry);
  if (fingerprint !== undefined && fingerprint !== host.hostKeyFingerprint)
    return { problem: 'the host is registered with another host key: PATCH it if this one is right' };
  const labels = Labels.safeParse({ ...host.labels, ...entry.labels });
  const { address, port } = CreateHost.shape;
  const checked = {
    address: address.safeParse(entry.address ?? host.address),
    port: port.safeParse(entry.port ?? host.port),
    labels,
  };
  for (const [field, { error }] of Object.entries(checked)) if (error) return { problem: issuesOf(error, field) };
  const wanted = {
    address: checked.address.data ?? host.address,
    port: checked.port.data ?? host.port,
    credentialId: credential?.id ?? host.credentialId,
    labels: labels.data ?? host.labels,
  };
  const isSame =
    wanted.address === host.address &&
    wanted.port === host.port &&
    wanted.credentialId === host.credentialId &&
    Object.entries(wanted.labels).every(
      ([key, value]) => Object.hasOwn(host.labels, key) && host.labels[key] === value,
    );
  return isSame ? { unchanged: host.id } : { id: host.id, update: wanted };
}

/** Of the key that the inventory gives: undefined without one, null when it is none. */
function fingerprintOf({ hostKey }: InventoryHost): string | null | undefined {
  try {
    return hostKey === undefined ? undefined : parseHostKey(hostKey);
  } catch {
    return null;
  }
}

interface Issues {
  issues: { path: PropertyKey[]; message: string }[];
}

/** Our schemas' messages do not repeat what they refuse. Keys of labels do come from the inventory. */
const issuesOf = ({ issues }: Issues, field?: string): string =>
  [...new Set(issues.map(({ path, message }) => `${field ?? String(path[0] ?? 'host')}: ${message}`))]
    .join('; ')
    .slice(0, 500);

function toItem(entry: InventoryHost | undefined, plan: Plan, ids = new Map<string, string>()): ImportedHost {
  const { line = 0, name = '' } = entry ?? {};
  if ('problem' in plan) return { line, name, outcome: 'refused', hostId: null, problem: plan.problem };
  if ('unchanged' in plan) return { line, name, outcome: 'unchanged', hostId: plan.unchanged, problem: null };
  if ('update' in plan) return { line, name, outcome: 'updated', hostId: plan.id, problem: null };
  return { line, name, outcome: 'created', hostId: ids.get(name) ?? null, problem: null };
}

/**
 * With as many labels of groups as there is room for beside those that the host has, or gets in any case; the nearest
 * groups, which are last.
 */
function fitted(entry: InventoryHost, base: Record<string, string>): InventoryHost {
  const excess = new Set([...Object.keys(base), ...Object.keys(entry.labels)]).size - maxLabels;
  const groups = Object.keys(entry.labels).filter(
    (label) => label.startsWith(groupLabel) && !Object.hasOwn(base, label),
  );
  const dropped = groups.slice(0, Math.max(0, excess));
  if (dropped.length === 0) return entry;
  const labels = Object.fromEntries(Object.entries(entry.labels).filter(([label]) => !dropped.includes(label)));
  return { ...entry, labels, groupsWithoutLabel: (entry.groupsWithoutLabel ?? 0) + dropped.length };
}

/** Of hosts that are in more groups than they can have labels. */
function warningsOf(entries: InventoryHost[]): string[] {
  const crowded = entries.filter(({ groupsWithoutLabel = 0 }) => groupsWithoutLabel > 0);
  const [first] = crowded;
  if (!first) return [];
  const names = crowded.slice(0, maxNamed).map(({ name, groupsWithoutLabel }) => `${name} (${groupsWithoutLabel})`);
  return [
    `groups that did not become labels, since a host can have ${maxLabels}; say which do with groupLabels: ${names.join(', ')}${crowded.length > maxNamed ? ', …' : ''}`,
  ];
}

function toResource(dryRun: boolean, hosts: ImportedHost[], warnings: string[]): HostImport {
  const count = (wanted: ImportedHost['outcome']) => hosts.filter(({ outcome }) => outcome === wanted).length;
  return {
    dryRun,
    created: count('created'),
    updated: count('updated'),
    unchanged: count('unchanged'),
    refused: count('refused'),
    hosts,
    warnings,
  };
}
