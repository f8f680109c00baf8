import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { openTunnel } from '@airdock/adapters/ssh/tunnel';
import { AppError, toProblem } from '@airdock/core/errors';
import { BackgroundLoop } from '@airdock/platform/background-loop';
import { newId } from '@airdock/platform/ids';
import { Injectable } from '@nestjs/common';
import { HostService } from '../host/host.service.js';
import type { TunnelEntity } from './tunnel.entity.js';
import { TunnelService } from './tunnel.service.js';

const firstRetryMs = 500;
const maxRetryMs = 15_000;

interface Running {
  target: string;
  hostPort: number;
  stop: AbortController;
  done: Promise<void>;
}

/** Keeps the wanted tunnels up: one owner among all workers, reconnects with backoff and jitter, gives them up on shutdown. */
@Injectable()
export class TunnelSupervisor extends BackgroundLoop {
  protected readonly pauseMs = 1_000;
  private readonly owner = `${hostname()}/${process.pid}/${newId()}`;
  private readonly running = new Map<string, Running>();

  constructor(
    private readonly tunnels: TunnelService,
    private readonly hosts: HostService,
  ) {
    super();
  }

  override async beforeApplicationShutdown(): Promise<void> {
    await super.beforeApplicationShutdown();
    await this.stopAll();
    await this.tunnels.release(this.owner);
  }

  protected async round(): Promise<void> {
    const mine = new Map((await this.tunnels.claim(this.owner)).map((tunnel) => [tunnel.id, tunnel]));
    for (const [id, { target, hostPort, stop }] of this.running) {
      const wanted = mine.get(id);
      if (!wanted || wanted.target !== target || wanted.hostPort !== hostPort) stop.abort();
    }
    for (const tunnel of this.isStopped ? [] : mine.values()) {
      if (this.running.has(tunnel.id)) continue;
      const stop = new AbortController();
      const done = this.keepUp(tunnel, stop.signal).finally(() => this.running.delete(tunnel.id));
      this.running.set(tunnel.id, { target: tunnel.target, hostPort: tunnel.hostPort, stop, done });
    }
  }

  private async stopAll(): Promise<void> {
    const all = [...this.running.values()];
    for (const { stop } of all) stop.abort();
    await Promise.all(all.map(({ done }) => done));
  }

  /** One tunnel, up again and again until it is stopped. Never throws. */
  private async keepUp({ id, hostId, hostPort, target, reconnects }: TunnelEntity, stop: AbortSignal): Promise<void> {
    let retryMs = firstRetryMs;
    let count = reconnects;
    const [host = '', port] = target.split(':');
    const stopping = new Promise<'stopped'>((resolve) => stop.addEventListener('abort', () => resolve('stopped'), { once: true }));
    while (!stop.aborted) {
      try {
        await using connection = await this.hosts.connect(await this.hosts.get(hostId), stop);
        const tunnel = await openTunnel(connection, { hostPort, target: { host, port: Number(port) } });
        await this.tunnels.report(id, this.owner, { state: 'up', reconnects: count });
        retryMs = firstRetryMs;
        const ended = await Promise.race([connection.closed, stopping]);
        await (ended === 'stopped' ? tunnel.close() : undefined);
        if (ended !== 'stopped') throw new AppError('tunnel_failed', { detail: ended?.message ?? 'the host closed the connection' }, { cause: ended });
      } catch (error) {
        if (stop.aborted) return;
        this.logger.warn({ tunnelId: id, hostId, err: error }, `the tunnel is down; next try in ${retryMs} ms`);
        await this.tunnels
          .report(id, this.owner, { state: 'down', error: toProblem(error), reconnects: ++count })
          .catch((cause: unknown) => this.logger.warn({ err: cause }, 'the tunnel row could not be updated'));
        await Promise.race([delay(retryMs * (0.75 + Math.random() / 2)), stopping]);
        retryMs = Math.min(maxRetryMs, retryMs * 2);
      }
    }
  }
}
