import { requireRegistry } from '@airdock/adapters/api-clients/require-registry';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import { AppError, fromProblem, type Problem } from '@airdock/core/errors';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { TunnelEntity } from './tunnel.entity.js';
import type { Tunnel, TunnelListQuery } from './tunnel.schema.js';

const leaseMs = 8_000;
const pollMs = 200;

/** Which hosts should have a tunnel, and what is known of each. Workers keep them up, see TunnelSupervisor. */
@Injectable()
export class TunnelService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(TunnelEntity, 'host') private readonly tunnels: Repository<TunnelEntity>,
    private readonly clients: ServiceClients,
  ) {}

  list({ hostId, ...query }: TunnelListQuery): Promise<Page<Tunnel>> {
    return findPage(this.tunnels, query, hostId ? { hostId } : {});
  }

  get(id: string): Promise<Tunnel> {
    return getRow(this.tunnels, id);
  }

  async find(hostId: string): Promise<Tunnel | undefined> {
    return (await this.tunnels.findOneBy({ hostId })) ?? undefined;
  }

  /** Wants a tunnel for a host, and waits until it is up. Throws why it is not, e.g. `host_port_taken`, `tunnel_failed`. */
  async ensureUp(hostId: string, signal: AbortSignal, timeoutMs = 30_000): Promise<Tunnel> {
    const { readOnlyUrl } = await requireRegistry(this.clients.registry);
    if (!readOnlyUrl) throw new AppError('tunnel_failed', { detail: 'the registry has no read-only endpoint that a tunnel may lead to' });
    const target = new URL(readOnlyUrl).host;
    const wanted = { hostPort: this.config.registry.port, target };
    const fresh = { state: 'connecting' as const, since: now(), error: null };
    try {
      await this.tunnels.insert({ id: newId(), hostId, ...wanted, ...fresh, reconnects: 0, leaseOwner: null, leaseUntil: null, createdAt: now() });
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
      // One that is up stays up. One that is down forgets its old error, so that what we see next is new; its owner goes on trying.
      const row = await this.tunnels.findOneByOrFail({ hostId });
      if (row.target !== target || row.hostPort !== wanted.hostPort)
        await this.tunnels.update({ hostId }, { ...wanted, ...fresh, leaseOwner: null, leaseUntil: null });
      else if (row.state !== 'up') await this.tunnels.update({ hostId }, fresh);
    }
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      signal.throwIfAborted();
      const row = await this.find(hostId);
      if (row?.state === 'up') return row;
      if (row?.state === 'down' && row.error) throw fromProblem(row.error);
      if (Date.now() > deadline) throw new AppError('tunnel_failed', { detail: `not up after ${timeoutMs / 1000} s; no worker of host-svc may be running` });
      await new Promise((resolve) => setTimeout(resolve, pollMs));
    }
  }

  async remove(hostId: string): Promise<void> {
    await this.tunnels.delete({ hostId });
  }

  /** Tunnels that this owner keeps: the ones it has, and the ones that nobody living has. */
  async claim(owner: string): Promise<TunnelEntity[]> {
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
    await this.tunnels.update({ leaseOwner: owner }, { leaseOwner: null, leaseUntil: null, state: 'connecting', since: now() });
  }

  async report(id: string, owner: string, seen: { state: TunnelEntity['state']; error?: Problem | null; reconnects?: number }): Promise<void> {
    await this.tunnels.update({ id, leaseOwner: owner }, columns({ error: null, ...seen, since: now() }));
  }
}
