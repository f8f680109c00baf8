import { getRegistry } from '@airdock/clients/generated/sdk.gen';
import type { Registry } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError, fromProblem, type Problem } from '@airdock/core/errors';
import { pollUntil } from '@airdock/core/poll-until';
import type { TunnelPorts } from '@airdock/host/configuration/held-ports';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, isUniqueViolation, now, runUnflushed } from '@airdock/platform/database';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { assertUsable } from '@airdock/registry/access/require-registry';
import { registrySockets } from '@airdock/registry/engine/process-engine';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { FindOperator, Repository } from 'typeorm';
import type { QueryDeepPartialEntity } from 'typeorm/query-builder/QueryPartialEntity.js';
import type { HostTunnelService } from '../host/host-tunnel.service.js';
import { TunnelEntity } from './tunnel.entity.js';
import type { Tunnel, TunnelListQuery } from './tunnel.schema.js';

const leaseMs = 8_000;

/** How a tunnel is wanted. */
export interface WantedTunnel {
  /** Its end on the host. Default: a port for a new tunnel, else the end that it has. */
  hostEnd?: Tunnel['hostEnd'] | undefined;
  /** What it leads to, when registry-svc has been asked already. */
  registry?: Registry | undefined;
  /** How long to wait for it. Default 30 000. */
  timeoutMs?: number;
}

const pollMs = 50;

/** Which hosts should have a tunnel, and what is known of each. Workers keep them up, see TunnelSupervisor. */
@Injectable()
export class TunnelService implements HostTunnelService {
  /** Called when this process wants a tunnel that nobody has yet; what others want is seen by looking. */
  readonly wanted = new Set<() => void>();

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(TunnelEntity, 'host') private readonly tunnels: Repository<TunnelEntity>,
    private readonly clients: ServiceClients,
  ) {}

  async list({ hostId, ...query }: TunnelListQuery): Promise<Page<Tunnel>> {
    const { items, nextCursor } = await findPage(this.tunnels, query, hostId ? { hostId } : {});
    return { items: items.map((row) => toResource(row, this.target)), nextCursor };
  }

  async get(id: string): Promise<Tunnel> {
    return toResource(await getRow(this.tunnels, id), this.target);
  }

  async find(hostId: string): Promise<Tunnel | undefined> {
    const row = await this.tunnels.findOneBy({ hostId });
    return row ? toResource(row, this.target) : undefined;
  }

  /**
   * The tunnel of a host, when its owner has brought it up or has failed; at the latest after `timeoutMs`. Undefined
   * when none is wanted.
   */
  settled(hostId: string, signal: AbortSignal, timeoutMs = 15_000): Promise<Tunnel | undefined> {
    return this.watch(hostId, (tunnel) => tunnel?.state !== 'connecting', signal, timeoutMs);
  }

  /** False when none is wanted, or it is not up after `timeoutMs`. */
  async isUpWithin(hostId: string, signal: AbortSignal, timeoutMs: number): Promise<boolean> {
    return (await this.watch(hostId, (tunnel) => !tunnel || tunnel.state === 'up', signal, timeoutMs))?.state === 'up';
  }

  /** The tunnel as it is when `isEnough`, or after `timeoutMs`. */
  private async watch(
    hostId: string,
    isEnough: (tunnel: Tunnel | undefined) => boolean,
    signal: AbortSignal,
    timeoutMs: number,
  ): Promise<Tunnel | undefined> {
    let tunnel: Tunnel | undefined;
    await pollUntil({ everyMs: pollMs, timeoutMs, signal }, async () => {
      tunnel = await this.find(hostId);
      return isEnough(tunnel);
    });
    return tunnel;
  }

  /**
   * Wants a tunnel for a host, and waits until it is up. Throws why it is not up, e.g. `host_port_taken`,
   * `tunnel_failed`.
   */
  async ensureUp(
    hostId: string,
    signal: AbortSignal,
    { hostEnd, registry, timeoutMs = 30_000 }: WantedTunnel = {},
  ): Promise<Tunnel> {
    const target = registry ?? (await getRegistry({ client: this.clients.registry, throwOnError: true })).data;
    assertUsable(target, 'look');
    if (!target.sockets)
      throw new AppError('tunnel_failed', {
        detail: 'the registry has no read-only endpoint that a tunnel may lead to',
      });
    const wanted = { ...this.ports, ...(hostEnd ? { hostEnd } : {}) };
    const fresh = { state: 'connecting' as const, since: now(), error: null };
    try {
      await this.tunnels.insert({
        id: newId(),
        hostId,
        target: this.target,
        hostEnd: 'port',
        ...wanted,
        ...fresh,
        ...unmeasured,
        reconnects: 0,
        session: null,
        leaseOwner: null,
        leaseUntil: null,
        createdAt: now(),
      });
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
      // One that is up stays up. One that is down forgets its old error, so that what we see next is new; its owner
      // goes on trying.
      const row = await this.tunnels.findOneByOrFail({ hostId });
      if (!isSame(row, wanted))
        await this.tunnels.update({ hostId }, { ...wanted, ...fresh, leaseOwner: null, leaseUntil: null });
      else if (row.state !== 'up') await this.tunnels.update({ hostId }, fresh);
    }
    for (const listener of this.wanted) listener();
    const hasEnded = (tunnel: Tunnel | undefined) =>
      tunnel?.state === 'up' || (tunnel?.state === 'down' && tunnel.error !== null);
    const tunnel = await this.watch(hostId, hasEnded, signal, timeoutMs);
    if (tunnel?.state === 'up') return tunnel;
    if (tunnel?.state === 'down' && tunnel.error) throw fromProblem(tunnel.error);
    throw new AppError('tunnel_failed', {
      detail: `not up after ${timeoutMs / 1000} s; no worker of host-svc may be running`,
    });
  }

  /** The tunnel is up, and leads where `ensureUp` would have it lead. */
  isUpFor(tunnel: Tunnel, hostEnd: Tunnel['hostEnd']): boolean {
    return tunnel.state === 'up' && isSame(tunnel, { ...this.ports, hostEnd });
  }

  /**
   * The Unix socket of the registry that hosts pull from: of the configuration alone, so that no row can lead a host
   * elsewhere.
   */
  get target(): string {
    return registrySockets(this.config.registry.socketDir).readOnly.slice('unix:'.length);
  }

  get ports(): TunnelPorts {
    const { repositories, port } = this.config.packages;
    return { hostPort: this.config.registry.port, packagePort: repositories.length > 0 ? port : null };
  }

  async remove(hostId: string): Promise<void> {
    await this.tunnels.delete({ hostId });
  }

  /** Tunnels that this owner keeps: the ones it has, and the ones that nobody living has. */
  async claim(owner: string): Promise<TunnelEntity[]> {
    // A DU without tunnels looks every second too, and should have next to nothing to do.
    if (!(await this.tunnels.findOne({ where: {}, select: { id: true } }))) return [];
    const leaseUntil = new Date(Date.now() + leaseMs).toISOString();
    await this.tunnels.update({ leaseOwner: owner }, { leaseUntil });
    // What a dead owner said of its tunnels no longer holds.
    await this.tunnels
      .createQueryBuilder()
      .update()
      .set({ leaseOwner: owner, leaseUntil, state: 'connecting', since: now() })
      .where('"leaseUntil" IS NULL OR "leaseUntil" < :now', { now: now() })
      .execute();
    return this.tunnels.findBy({ leaseOwner: owner });
  }

  /** Gives all tunnels of this owner up, so that another may take them at once. */
  async release(owner: string): Promise<void> {
    await this.tunnels.update(
      { leaseOwner: owner },
      { leaseOwner: null, leaseUntil: null, state: 'connecting', since: now() },
    );
  }

  /** Of owners that are known to be dead. */
  async releaseDead(owners: FindOperator<string>): Promise<void> {
    await this.tunnels.update(
      { leaseOwner: owners },
      { leaseOwner: null, leaseUntil: null, state: 'connecting', since: now() },
    );
  }

  async report(
    id: string,
    owner: string,
    seen: { state: TunnelEntity['state']; error?: Problem | null; reconnects?: number },
  ): Promise<void> {
    await this.note(id, owner, columns<TunnelEntity>({ error: null, ...seen, since: now() }));
  }

  /**
   * What holds the port on the host: see `sessionOf`. It has to outlive a power cut of the DU, after which the host
   * takes it for alive.
   */
  async noteSession(id: string, owner: string, session: string | null): Promise<void> {
    await this.tunnels.update({ id, leaseOwner: owner }, { session });
  }

  /** The tunnel is this owner's for so long at least. */
  async isHeldFor(id: string, owner: string, ms: number): Promise<boolean> {
    const row = await this.tunnels.findOneBy({ id, leaseOwner: owner });
    return row?.leaseUntil != null && Date.parse(row.leaseUntil) > Date.now() + ms;
  }

  /** Something is wrong with a tunnel that is up. */
  async warn(id: string, owner: string, error: Problem): Promise<void> {
    await this.note(id, owner, columns<TunnelEntity>({ error }));
  }

  async measured(id: string, owner: string, seen: Measured): Promise<void> {
    await this.note(id, owner, seen);
  }

  /**
   * What was seen may be lost in a power cut, which ends the tunnel as well; two hundred must not keep the disk busy.
   */
  private async note(id: string, owner: string, seen: QueryDeepPartialEntity<TunnelEntity>): Promise<void> {
    await runUnflushed(
      this.tunnels.manager.dataSource,
      this.tunnels.createQueryBuilder().update().set(seen).where({ id, leaseOwner: owner }),
    );
  }
}

export type Ends = Pick<TunnelEntity, 'hostPort' | 'packagePort' | 'hostEnd'>;
/** Both have the same ends on their host, as far as the second says. */
export const isSame = (
  a: Ends,
  { hostPort, packagePort, hostEnd = a.hostEnd }: Omit<Ends, 'hostEnd'> & Partial<Ends>,
): boolean => a.hostPort === hostPort && a.packagePort === packagePort && a.hostEnd === hostEnd;

export type Measured = Pick<TunnelEntity, 'latencyMs' | 'bytesSent' | 'bytesPerSecond'>;
const unmeasured: Measured = { latencyMs: null, bytesSent: '0', bytesPerSecond: 0 };

function toResource(row: TunnelEntity, target: string): Tunnel {
  const { session: _, ...own } = row;
  return { ...own, target: `unix:${target}`, bytesSent: Number(row.bytesSent) };
}
