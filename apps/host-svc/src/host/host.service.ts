import { AppError } from '@airdock/core/errors';
import { matchesLabels, parseLabelSelector } from '@airdock/core/label-selector';
import type { HostAdditions } from '@airdock/host/work/host-work';
import { CONFIG, type Config } from '@airdock/platform/config';
import {
  atomically,
  chunks,
  columns,
  isUniqueViolation,
  now,
  runUnflushed,
  type Statement,
} from '@airdock/platform/database';
import { Outbox } from '@airdock/platform/events/outbox';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { HostBuffers } from '@airdock/ssh/command/host-buffers';
import { connectSsh } from '@airdock/ssh/connection/connect';
import type { SshConnection, SshTarget } from '@airdock/ssh/connection/connection';
import { parseHostKey } from '@airdock/ssh/connection/keys';
import { Inject, Injectable, Logger } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, IsNull, Not, type Repository } from 'typeorm';
import { serveHost } from '../served-host.js';
import type { CredentialUsersService } from '../ssh-credential/credential-users.service.js';
import { SshCredentialService } from '../ssh-credential/ssh-credential.service.js';
import { HostEntity } from './host.entity.js';
import {
  type ConfigurationOptions,
  type CreateHost,
  type Drift,
  type Host,
  type HostFacts,
  type HostListQuery,
  Labels,
  type PatchHost,
  type Quarantine,
} from './host.schema.js';

/** Jump hosts before a host. */
const maxJumps = 4;
const scanLimit = 500;
const firstQuarantineMs = 60_000;
const maxQuarantineMs = 3_600_000;
/** So long after a strike the next one is the first again. */
const forgetStrikesMs = 24 * 3_600_000;

/** A new host as a row. */
export interface HostInsert {
  insert: CreateHost;
}
/** A change of a host that is there. */
export interface HostUpdate {
  id: string;
  update: Partial<Pick<HostEntity, 'address' | 'port' | 'credentialId' | 'labels'>>;
}

/** The hosts of the site, and connections to them. */
@Injectable()
export class HostService implements CredentialUsersService {
  private readonly logger = new Logger(HostService.name);
  /** What is kept in memory for each, by id. */
  private readonly buffers = new Map<string, HostBuffers>();

  constructor(
    @InjectRepository(HostEntity, 'host') private readonly hosts: Repository<HostEntity>,
    private readonly credentials: SshCredentialService,
    private readonly outbox: Outbox,
    @Inject(CONFIG) private readonly config: Config,
  ) {}

  /**
   * Throws `resource_not_found` for the credential, `resource_exists` for the name, `request_invalid` for the host key,
   * `jump_host_invalid`.
   */
  async create(body: CreateHost): Promise<Host> {
    await this.credentials.get(body.credentialId);
    const row = newRow(body);
    if (row.jumpHostId) await this.assertJumpsLead(row.id, row.jumpHostId);
    try {
      await this.hosts.insert(columns<HostEntity>(row));
    } catch (error) {
      if (isUniqueViolation(error)) throw new AppError('resource_exists', { detail: `a host named ${body.name}` });
      throw error;
    }
    return toResource(row);
  }

  /**
   * Creates and changes many hosts, all or none: false when one of them was removed meanwhile, or its name was taken.
   * Answers the ids of the new ones by name.
   */
  async applyAll(changes: (HostInsert | HostUpdate)[]): Promise<Map<string, string> | false> {
    const rows = changes.flatMap((change) => ('insert' in change ? [newRow(change.insert)] : []));
    const statements: Statement[] = [...chunks(rows, 100)].map((some) =>
      this.hosts
        .createQueryBuilder()
        .insert()
        .values(some.map((row) => columns<HostEntity>(row))),
    );
    for (const change of changes)
      if ('update' in change)
        statements.push(this.hosts.createQueryBuilder().update().set(change.update).where({ id: change.id }));
    try {
      if (statements.length > 0 && !(await atomically(this.hosts.manager.dataSource, statements))) return false;
    } catch (error) {
      if (isUniqueViolation(error)) return false;
      throw error;
    }
    return new Map(rows.map(({ name, id }) => [name, id]));
  }

  /** Throws `label_selector_invalid`, `cursor_invalid`. */
  async list({ labelSelector, drifted, ...query }: HostListQuery): Promise<Page<Host>> {
    const requirements = parseLabelSelector(labelSelector ?? '');
    if (requirements.length === 0 && drifted === undefined) {
      const { items, nextCursor } = await findPage(this.hosts, query);
      return { items: items.map(toResource), nextCursor };
    }
    const isWanted = (host: Host) =>
      matchesLabels(requirements, host.labels) &&
      (drifted === undefined || (host.drift && hasDrifted(host.drift)) === drifted);
    const found = await this.matching(isWanted, query.limit + 1, query.cursor);
    const items = found.slice(0, query.limit);
    return { items, nextCursor: found.length > query.limit ? items.at(-1)?.id : undefined };
  }

  /**
   * All hosts that a label selector matches, newest first. Throws `label_selector_invalid`, and `resource_not_found`
   * when there is none.
   */
  async select(labelSelector: string): Promise<Host[]> {
    const requirements = parseLabelSelector(labelSelector);
    const found = await this.matching(({ labels }) => matchesLabels(requirements, labels));
    if (found.length === 0)
      throw new AppError('resource_not_found', { detail: `no host has labels that match ${labelSelector}` });
    return found;
  }

  /** All hosts that have a configuration, newest first. */
  configured(): Promise<Host[]> {
    return this.matching(({ configuration }) => configuration !== null);
  }

  /**
   * Labels are JSON, which the two databases search in different ways; a fleet of thousands is read in a few
   * milliseconds.
   */
  private async matching(
    isWanted: (host: Host) => boolean,
    limit = Number.POSITIVE_INFINITY,
    start?: string,
  ): Promise<Host[]> {
    const found: Host[] = [];
    let cursor = start;
    do {
      const { items, nextCursor } = await findPage(this.hosts, { limit: scanLimit, cursor });
      found.push(...items.map(toResource).filter(isWanted));
      cursor = nextCursor;
    } while (cursor && found.length < limit);
    return found;
  }

  async get(id: string): Promise<Host> {
    return toResource(await getRow(this.hosts, id));
  }

  /** The hosts with these ids, in their order. Throws `resource_not_found`. */
  async getAll(ids: string[]): Promise<Host[]> {
    const found = new Map((await this.hosts.findBy({ id: In(ids) })).map((host) => [host.id, toResource(host)]));
    return ids.map((id) => {
      const host = found.get(id);
      if (!host) throw new AppError('resource_not_found', { detail: `no host with id ${id}` });
      return host;
    });
  }

  /** Those with one of these names; what is no name of one is left out. */
  async byNames(names: string[]): Promise<Map<string, Host>> {
    const found = new Map<string, Host>();
    for (const chunk of chunks(names))
      for (const row of await this.hosts.findBy({ name: In(chunk) })) found.set(row.name, toResource(row));
    return found;
  }

  /** Changes where and how a host is reached. A new host key is a decision of the caller's, never of the software's. */
  async patch(id: string, { hostKey, trustOnFirstUse, labels, ...change }: PatchHost): Promise<Host> {
    if (change.credentialId) await this.credentials.get(change.credentialId);
    const host = toResource(await getRow(this.hosts, id));
    if (change.jumpHostId) await this.assertJumpsLead(id, change.jumpHostId);
    const set: Partial<HostEntity> = { ...change };
    if (hostKey) Object.assign(set, { hostKeyFingerprint: parseHostKey(hostKey), hostKeySource: 'pinned' });
    if (trustOnFirstUse) Object.assign(set, { hostKeyFingerprint: null, hostKeySource: 'firstUse' });
    if (labels) set.labels = mergeLabels(host.labels, labels);
    if (Object.keys(set).length > 0) await this.hosts.update({ id }, columns<HostEntity>(set));
    return this.get(id);
  }

  async remove(id: string): Promise<void> {
    await getRow(this.hosts, id);
    await this.hosts.delete({ id });
  }

  async assertCredentialUnused(credentialId: string): Promise<void> {
    assertUnused(await this.hosts.findBy({ credentialId }), 'log in with it');
  }

  /** Throws `resource_in_use` naming the hosts that are reached through this one. */
  async assertNoJumpHost(id: string): Promise<void> {
    assertUnused(await this.hosts.findBy({ jumpHostId: id }), 'are reached through it');
  }

  /**
   * Logs in to a host, through its jump hosts; the caller closes the connection, and with it those to the jump hosts.
   * Throws `host_unreachable`, `host_timeout`, `host_key_mismatch`, `host_auth_failed`, with the jump host in `detail`
   * when it is the one; `host_quarantined`, before anything is sent.
   */
  async connect({ id }: Pick<Host, 'id'>, signal?: AbortSignal): Promise<SshConnection> {
    // As it is now: whoever asks may have read it before it was quarantined.
    const host = await this.get(id);
    const path = await this.pathTo(host);
    for (const { name, quarantine } of path)
      if (quarantine)
        throw new AppError('host_quarantined', {
          detail: `${name} until ${quarantine.until} (${quarantine.reason})`,
          until: quarantine.until,
          host: name,
        });
    const targets = await Promise.all(path.map((hop) => this.targetOf(hop)));
    let via: SshConnection | undefined;
    for (const [index, target] of targets.entries()) {
      const hop = path[index] as Host;
      const { id: hopId } = hop;
      const onServed = () => serveHost(hopId);
      via = await connectSsh(target, { signal, via, onServed, buffers: this.buffersOf(hopId) }).catch(
        (error: unknown) => {
          if (!(error instanceof AppError) || hop === host) throw error;
          throw new AppError(
            error.code,
            { ...error.details, detail: `jump host ${hop.name}: ${error.details.detail}`, jumpHost: hop.name },
            { cause: error },
          );
        },
      );
    }
    return via as SshConnection;
  }

  /** The host that most is kept in memory for. */
  heaviest(): { hostId: string; bytes: number } | undefined {
    const [first] = [...this.buffers].sort(([, a], [, b]) => b.bytes - a.bytes);
    return first && first[1].bytes > 0 ? { hostId: first[0], bytes: first[1].bytes } : undefined;
  }

  private buffersOf(id: string): HostBuffers {
    const known = this.buffers.get(id) ?? new HostBuffers();
    this.buffers.set(id, known);
    return known;
  }

  /**
   * Nobody connects to the host for a while, since it stopped the process that serves hosts: for a minute at the first
   * time, twice as long at each further one within a day, for an hour at the most. Told as an event. Nothing for a host
   * that is gone.
   */
  async strike(id: string, reason: Quarantine['reason'], at: string): Promise<void> {
    const row = await this.hosts.findOneBy({ id });
    if (!row) return;
    const last = row.quarantine;
    const strikes = last && Date.parse(at) - Date.parse(last.since) < forgetStrikesMs ? last.strikes + 1 : 1;
    const forMs = Math.min(maxQuarantineMs, firstQuarantineMs * 2 ** (strikes - 1));
    const quarantine: Quarantine = { until: new Date(Date.now() + forMs).toISOString(), since: at, strikes, reason };
    const change = this.hosts.createQueryBuilder().update().set(columns<HostEntity>({ quarantine })).where({ id });
    await this.outbox.emitWith(change, 'host.quarantined', {
      hostId: id,
      host: `/v1/hosts/${id}`,
      name: row.name,
      ...quarantine,
    });
    this.logger.error(
      { hostId: id, ...quarantine },
      `${row.name} stopped the process that serves hosts, and is quarantined`,
    );
  }

  /** Ends a quarantine, and forgets its strikes. */
  async liftQuarantine(id: string): Promise<Host> {
    await getRow(this.hosts, id);
    await this.hosts.update({ id }, { quarantine: null });
    return this.get(id);
  }

  /** What was seen may be lost in a power cut: it is seen again. */
  async saveFacts(id: string, facts: HostFacts): Promise<void> {
    await runUnflushed(
      this.hosts.manager.dataSource,
      this.hosts.createQueryBuilder().update().set({ facts }).where({ id }),
    );
  }

  /** What configurations have added to a host, so that it can be removed again. */
  async additions(id: string): Promise<HostAdditions> {
    return (await getRow(this.hosts, id)).brought ?? { packages: [], images: [] };
  }

  /** Stores what is about to be added to a host. Only one configuration at a time has a host. */
  async remember(id: string, { packages = [], images = [] }: Partial<HostAdditions>): Promise<void> {
    const known = await this.additions(id);
    const union = (a: string[], b: string[]) => [...new Set([...a, ...b])];
    await this.hosts.update(
      { id },
      { brought: { packages: union(known.packages, packages), images: union(known.images, images) } },
    );
  }

  /** The host is as it was before it was configured, but for the additions that are still there. */
  async saveUnconfigured(id: string, remaining: HostAdditions): Promise<void> {
    const isClean = remaining.packages.length === 0 && remaining.images.length === 0;
    await this.hosts.update(
      { id },
      { configuration: null, configuredAt: null, drift: null, brought: isClean ? null : remaining },
    );
  }

  async saveDrift(id: string, drift: Drift): Promise<void> {
    await this.hosts.update({ id, configuration: Not(IsNull()) }, columns<HostEntity>({ drift }));
  }

  async saveConfigured(id: string, configuration: ConfigurationOptions): Promise<void> {
    await this.hosts.update({ id }, { configuration, configuredAt: now() });
  }

  private async targetOf({ id, address, port, credentialId, hostKeyFingerprint }: Host): Promise<SshTarget> {
    const secrets = await this.credentials.open(credentialId);
    return {
      address,
      port,
      hostKeyFingerprint: hostKeyFingerprint ?? ((seen) => this.pinFirst(id, seen)),
      ...secrets,
      algorithms: this.config.hosts.ssh.algorithms,
    };
  }

  /**
   * Pins the key that a host shows first. Of two first connections one pins; the other is held to it. Returns the key
   * that is pinned now.
   */
  private async pinFirst(id: string, seen: string): Promise<string> {
    await this.hosts.update(
      { id, hostKeyFingerprint: IsNull(), hostKeySource: 'firstUse' },
      { hostKeyFingerprint: seen },
    );
    const { name, hostKeyFingerprint } = await getRow(this.hosts, id);
    if (!hostKeyFingerprint) throw new AppError('resource_changed', { detail: `host ${name}` });
    return hostKeyFingerprint;
  }

  /** The jump hosts of a host, the outermost first, and the host. */
  private async pathTo(host: Host): Promise<Host[]> {
    const path = [host];
    for (let at = host; at.jumpHostId; ) {
      // Two changes at the same time may have closed a circle.
      if (path.length > maxJumps)
        throw new AppError('jump_host_invalid', { detail: `${host.name} has more than ${maxJumps} jump hosts` });
      at = await this.get(at.jumpHostId);
      path.unshift(at);
    }
    return path;
  }

  /**
   * Throws `resource_not_found`, or `jump_host_invalid` when some host could no longer be reached if this one had the
   * jump host.
   */
  async assertJumpsLead(id: string, jumpHostId: string): Promise<void> {
    const jumpHost = await this.get(jumpHostId);
    const using = await this.hosts.find({
      select: { id: true, name: true, jumpHostId: true },
      where: { jumpHostId: Not(IsNull()) },
    });
    const next = new Map(using.map((row) => [row.id, row.jumpHostId]));
    next.set(id, jumpHostId);
    for (const start of next.keys()) {
      let jumps = 0;
      for (let at = next.get(start); at; at = next.get(at)) {
        if (at === start)
          throw new AppError('jump_host_invalid', { detail: `${jumpHost.name} is itself reached through this host` });
        if (++jumps > maxJumps)
          throw new AppError('jump_host_invalid', { detail: `more than ${maxJumps} jump hosts one after the other` });
      }
    }
  }
}

const newRow = ({ hostKey, trustOnFirstUse, ...body }: CreateHost): HostEntity => ({
  ...body,
  id: newId(),
  hostKeyFingerprint: hostKey ? parseHostKey(hostKey) : null,
  hostKeySource: trustOnFirstUse ? 'firstUse' : 'pinned',
  facts: null,
  configuration: null,
  configuredAt: null,
  brought: null,
  drift: null,
  quarantine: null,
  turnJobId: null,
  createdAt: now(),
});

/** The host is not as it should be, or nobody knows. */
const hasDrifted = ({ changes, error }: Drift): boolean => changes.length > 0 || error !== null;

function toResource(row: HostEntity): Host {
  const { brought: _, turnJobId: __, quarantine, ...own } = row;
  return { ...own, labels: row.labels ?? {}, quarantine: quarantine && quarantine.until > now() ? quarantine : null };
}

/** As a JSON merge patch (RFC 7396). Throws `request_invalid` when there would be too many. */
function mergeLabels(labels: Record<string, string>, change: Record<string, string | null>): Record<string, string> {
  const merged = Object.entries({ ...labels, ...change }).filter(
    (entry): entry is [string, string] => entry[1] !== null,
  );
  const { data, error } = Labels.safeParse(Object.fromEntries(merged));
  if (!data) throw new AppError('request_invalid', { detail: `labels: ${error.issues[0]?.message}` });
  return data;
}

function assertUnused(users: HostEntity[], how: string): void {
  const named = users.slice(0, 20).map(({ name }) => name);
  if (users.length > 0)
    throw new AppError('resource_in_use', {
      detail: `hosts ${named.join(', ')}${users.length > named.length ? ` and ${users.length - named.length} more` : ''} ${how}`,
    });
}
