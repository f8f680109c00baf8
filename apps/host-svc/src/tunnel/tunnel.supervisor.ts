import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, toProblem } from '@airdock/core/errors';
import { type HeldPort, hostSocketOf } from '@airdock/core/host/held-port';
import { BackgroundLoop } from '@airdock/platform/background-loop';
import { newId } from '@airdock/platform/ids';
import { maxChannels } from '@airdock/ssh/connection/connect';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { assertHeldLocally } from '@airdock/ssh/tunnel/sshd-look';
import {
  endSession,
  type OpenTunnel,
  openTunnel,
  publishMs,
  sessionOf,
  type TunnelOptions,
} from '@airdock/ssh/tunnel/tunnel';
import { Injectable } from '@nestjs/common';
import { HostService } from '../host/host.service.js';
import { PackageRepositoryService } from '../package-repository/package-repository.service.js';
import { serveHost } from '../served-host.js';
import type { TunnelEntity } from './tunnel.entity.js';
import { isSame, TunnelService } from './tunnel.service.js';

const firstRetryMs = 500;
// With the jitter less than ten seconds: so long after the host can be reached again its tunnel is back.
const maxRetryMs = 6_500;
const measureMs = 10_000;
/** So long an sshd that was told to end may take to give its port back. */
const releaseMs = 3_000;

/** What the host did against the rules it is told by its own code. */
const brokenTunnel = (ended: AppError | undefined): AppError =>
  ended && ended.code !== 'host_unreachable'
    ? ended
    : new AppError('tunnel_failed', { detail: ended?.message ?? 'the host closed the connection' }, { cause: ended });

interface Running {
  wanted: TunnelEntity;
  stop: AbortController;
  done: Promise<void>;
}

/**
 * Keeps the wanted tunnels up: one owner among all workers, reconnects with backoff and jitter, gives them up on
 * shutdown.
 */
@Injectable()
export class TunnelSupervisor extends BackgroundLoop {
  protected readonly pauseMs = 1_000;
  private readonly owner = `${hostname()}/${process.pid}/${newId()}`;
  private readonly running = new Map<string, Running>();

  constructor(
    private readonly tunnels: TunnelService,
    private readonly hosts: HostService,
    private readonly packages: PackageRepositoryService,
  ) {
    super();
    tunnels.wanted.add(this.wake);
  }

  override async beforeApplicationShutdown(): Promise<void> {
    await super.beforeApplicationShutdown();
    await this.stopAll();
    await this.tunnels.release(this.owner);
  }

  protected async round(): Promise<void> {
    const mine = new Map((await this.tunnels.claim(this.owner)).map((tunnel) => [tunnel.id, tunnel]));
    for (const [id, { wanted, stop }] of this.running) {
      const now = mine.get(id);
      if (!now || !isSame(now, wanted)) stop.abort();
    }
    for (const tunnel of this.isStopped ? [] : mine.values()) {
      if (this.running.has(tunnel.id)) continue;
      const stop = new AbortController();
      const done = this.keepUp(tunnel, stop.signal).finally(() => this.running.delete(tunnel.id));
      this.running.set(tunnel.id, { wanted: tunnel, stop, done });
    }
  }

  private async stopAll(): Promise<void> {
    const all = [...this.running.values()];
    for (const { stop } of all) stop.abort();
    await Promise.all(all.map(({ done }) => done));
  }

  /** One tunnel, up again and again until it is stopped. Never throws. */
  private async keepUp(wanted: TunnelEntity, stop: AbortSignal): Promise<void> {
    const { id, hostId, reconnects, session: lastSession } = wanted;
    let retryMs = firstRetryMs;
    let session = lastSession;
    let count = reconnects;
    const stopping = new Promise<'stopped'>((resolve) =>
      stop.addEventListener('abort', () => resolve('stopped'), { once: true }),
    );
    while (!stop.aborted) {
      try {
        // What goes through a tunnel ends with its connection, however that ends: see `openTunnel`.
        await using connection = await this.hosts.connect({ id: hostId }, stop);
        const own = await sessionOf(connection, stop);
        const forwards: OpenTunnel[] = [];
        for (const options of this.endsOf(wanted)) forwards.push(await this.open(connection, options, session, stop));
        const [tunnel] = forwards as [OpenTunnel];
        if (wanted.hostEnd === 'socket') await this.publish(wanted, connection, forwards, { last: session, own }, stop);
        await this.tunnels.report(id, this.owner, { state: 'up', reconnects: count });
        retryMs = firstRetryMs;
        session = own ?? null;
        await this.tunnels.noteSession(id, this.owner, session);
        const measuring = this.measure(id, connection, tunnel, forwards);
        const ended = await Promise.race([connection.closed, stopping]);
        await measuring.stop();
        if (ended === 'stopped') await Promise.all(forwards.map((forward) => forward.close()));
        if (ended !== 'stopped') throw brokenTunnel(ended);
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

  /** What a tunnel has on its host, and where each of that leads; the registry first. */
  private endsOf({ hostId, hostPort, packagePort, hostEnd }: TunnelEntity): TunnelOptions[] {
    const onServed = () => serveHost(hostId);
    const socket = (name: HeldPort['name']) => (hostEnd === 'socket' ? hostSocketOf({ name }) : undefined);
    const registry = { hostPort, hostSocket: socket('registry'), target: { path: this.tunnels.target }, onServed };
    if (packagePort === null) return [registry];
    return [
      registry,
      { hostPort: packagePort, hostSocket: socket('packages'), target: { path: this.packages.socketPath }, onServed },
    ];
  }

  /**
   * The host's sockets lead here from now on, if the tunnel is still ours: of two workers only one may do that. What
   * our last connection still serves ends.
   */
  private async publish(
    { id, hostPort, packagePort }: TunnelEntity,
    connection: SshConnection,
    forwards: readonly OpenTunnel[],
    { last, own }: { last: string | null; own: string | undefined },
    stop: AbortSignal,
  ): Promise<void> {
    await assertHeldLocally(connection, { name: 'registry', port: hostPort }, stop);
    if (packagePort !== null) await assertHeldLocally(connection, { name: 'packages', port: packagePort }, stop);
    if (!(await this.tunnels.isHeldFor(id, this.owner, publishMs)))
      throw new AppError('tunnel_failed', { detail: 'another worker keeps the tunnel now' });
    for (const forward of forwards) await forward.publish(stop);
    if (last && last !== own) await endSession(connection, last, stop);
  }

  /** Opens a tunnel; where the port is still held for our last connection, that is ended. */
  private async open(
    connection: SshConnection,
    options: TunnelOptions,
    session: string | null,
    stop: AbortSignal,
  ): Promise<OpenTunnel> {
    const deadline = Date.now() + releaseMs;
    for (let hasEnded = false; ; await delay(100, undefined, { signal: stop })) {
      try {
        return await openTunnel(connection, options);
      } catch (error) {
        if (!session || !(error instanceof AppError) || error.code !== 'host_port_taken' || Date.now() > deadline)
          throw error;
        if (!hasEnded) await endSession(connection, session, stop);
        hasEnded = true;
      }
    }
  }

  /** The tunnel goes on; the host has to know what is missing. */
  private async noteRefused(id: string, refused: number): Promise<void> {
    const error = new AppError('host_channels_exceeded', {
      detail: `${refused} were refused; ${maxChannels} may be open at a time`,
    });
    this.logger.warn({ tunnelId: id, err: error }, 'connections through the tunnel were refused');
    await this.tunnels.warn(id, this.owner, toProblem(error));
  }

  /** Latency and throughput of a tunnel that is up, until `stop`. */
  private measure(
    id: string,
    connection: SshConnection,
    tunnel: OpenTunnel,
    all: OpenTunnel[],
  ): { stop(): Promise<void> } {
    const stop = new AbortController();
    const loop = async () => {
      let bytesBefore = 0;
      let refusedBefore = 0;
      for (
        let since = performance.now();
        !stop.signal.aborted;
        await delay(measureMs, undefined, { signal: stop.signal })
      ) {
        const latencyMs = Math.round((await connection.roundTrip()) * 100) / 100;
        const [bytes, at] = [tunnel.bytesSent(), performance.now()];
        const bytesPerSecond = Math.round(((bytes - bytesBefore) / Math.max(1, at - since)) * 1000);
        await this.tunnels.measured(id, this.owner, { latencyMs, bytesSent: String(bytes), bytesPerSecond });
        const refused = Math.max(...all.map((one) => one.refused()));
        if (refused > refusedBefore) await this.noteRefused(id, refused);
        refusedBefore = refused;
        [bytesBefore, since] = [bytes, at];
      }
    };
    const done = loop().catch((error: unknown) => {
      if (!stop.signal.aborted) this.logger.debug({ tunnelId: id, err: error }, 'the tunnel could not be measured');
    });
    return {
      stop: () => {
        stop.abort();
        return done;
      },
    };
  }
}
