import { setTimeout as delay } from 'node:timers/promises';
import { getRegistry } from '@airdock/clients/generated/sdk.gen';
import type { Registry } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError, type Problem, toProblem } from '@airdock/core/errors';
import { parseReference } from '@airdock/core/oci/reference';
import { type Inspection, inspectHost, type Look } from '@airdock/host/inspection/inspect-host';
import type { RuntimeHost } from '@airdock/host/runtime/runtime-host';
import type { HostSystem } from '@airdock/host/system/host-system';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
import { assertUsable } from '@airdock/registry/access/require-registry';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { Inject, Injectable } from '@nestjs/common';
import pLimit from 'p-limit';
import type { Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import type { Tunnel } from '../tunnel/tunnel.schema.js';
import { TunnelService } from '../tunnel/tunnel.service.js';

const requestsAtOnce = 8;
const reachMs = 10_000;
const reachPauseMs = 500;
const ownPortMs = 3_000;
const tryMs = 500;

/** What is known already of a host that is to be inspected, and what is wanted. */
export interface InspectOptions {
  /** Default: looked up. */
  tunnel?: Tunnel | undefined;
  /** Default: asked for. */
  registry?: Registry | undefined;
  /** The host asks the registry through its tunnel. Default true. */
  asksRegistry?: boolean;
  /** What a tunnel needs of sshd is tried. Default true; not of a host that is to lose its tunnel. */
  triesTunnel?: boolean;
}

/** By reference: the digest that the registry holds, or why it is not known. */
export type WantedDigests = Map<string, string | AppError>;

/** One pull by a host: the digest that it got, or why it got none. */
export interface ProbedPull {
  reference: string;
  digest: string | null;
  error: Problem | null;
}

/** Looks at hosts, asks whether they reach the registry, and lets them pull; changes nothing else on them. */
@Injectable()
export class HostProbe {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly hosts: HostService,
    private readonly tunnels: TunnelService,
    private readonly clients: ServiceClients,
  ) {}

  /**
   * Looks at a host and stores its facts. Where its tunnel is up the host asks the registry through it. Throws as
   * `inspectHost`.
   */
  async inspect(
    host: Host,
    connection: SshConnection,
    signal: AbortSignal,
    { tunnel, registry, asksRegistry = true, triesTunnel = true }: InspectOptions = {},
  ): Promise<Inspection> {
    const { port } = this.config.registry;
    const wanted = tunnel ?? (await this.tunnels.find(host.id));
    const tries = triesTunnel ? await this.triesFor(wanted, registry) : { ports: [], sockets: false };
    const look = (ownsPort: boolean) =>
      inspectHost(connection, { port, ownsPort, asksRegistry: ownsPort && asksRegistry, tries, seenAt: now() }, signal);
    let inspection = await look(wanted?.state === 'up');
    // Our own tunnel may have taken the port: it came up meanwhile, and its row does not say so yet.
    if (inspection.isPortTaken && (await this.tunnels.isUpWithin(host.id, signal, ownPortMs)))
      inspection = await look(true);
    // Or another look at this host holds the port for a moment, to try whether sshd lets us have it.
    else if (inspection.isPortTaken && tries.ports.length > 0 && (await delay(tryMs, true, { signal })))
      inspection = await look(false);
    await this.hosts.saveFacts(host.id, inspection.facts);
    return inspection;
  }

  /**
   * What of a tunnel is tried on a host: nothing that its own tunnel proves, or is about to prove; nothing at all where
   * the registry is elsewhere, since then there are no tunnels.
   */
  private async triesFor(tunnel: Tunnel | undefined, known: Registry | undefined): Promise<Look['tries']> {
    const registry = known ?? (await getRegistry({ client: this.clients.registry })).data;
    if (registry?.sockets === null) return { ports: [], sockets: false };
    const { hostPort, packagePort } = this.tunnels.ports;
    return {
      ports: tunnel ? [] : [hostPort, ...(packagePort === null ? [] : [packagePort])],
      sockets: tunnel?.state !== 'up' || tunnel.hostEnd !== 'socket',
    };
  }

  /**
   * The registry answers the host through its tunnel. A host that has no program to ask with counts as answered, since
   * its tunnel is up.
   */
  async canReachRegistry(system: HostSystem): Promise<boolean> {
    const status = await system.statusOf(`http://127.0.0.1:${this.config.registry.port}/v2/`);
    return status === undefined || status === 200;
  }

  /**
   * The same within ten seconds: a tunnel that another worker takes over from one that was killed is back by then.
   * False at once when the tunnel is down.
   */
  async canReachRegistrySoon(hostId: string, system: HostSystem, signal: AbortSignal): Promise<boolean> {
    const deadline = Date.now() + reachMs;
    while ((await this.tunnels.settled(hostId, signal))?.state === 'up') {
      if (await this.canReachRegistry(system)) return true;
      if (Date.now() > deadline) return false;
      await delay(reachPauseMs, undefined, { signal });
    }
    return false;
  }

  /** What the registry holds under these references, or why that is not known. */
  async digestsOf(references: readonly string[], known?: Registry): Promise<WantedDigests> {
    const wanted: WantedDigests = new Map(
      references.map((reference) => [
        reference,
        new AppError('image_not_found', { detail: `${reference} is not in the registry` }),
      ]),
    );
    if (references.length === 0) return wanted;
    try {
      const registry = known ?? (await getRegistry({ client: this.clients.registry, throwOnError: true })).data;
      assertUsable(registry, 'look');
      await using client = new RegistryClient(registry.address ?? registry.url);
      const limit = pLimit(requestsAtOnce);
      await Promise.all(
        [...wanted.keys()].map((text) =>
          limit(async () => {
            const { repository, tag, digest } = parseReference(text);
            const head = await client.headManifest(repository, digest ?? tag ?? 'latest');
            if (head) wanted.set(text, head.digest);
          }),
        ),
      );
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      for (const reference of references) wanted.set(reference, error);
    }
    return wanted;
  }

  /**
   * One pull by the host's own runtime, whose digest is compared with what the registry holds. What goes wrong is in
   * the result; only a broken connection throws.
   */
  async pull(runtime: RuntimeHost, reference: string, digests: WantedDigests): Promise<ProbedPull> {
    try {
      const wanted = digests.get(reference);
      if (wanted instanceof AppError) throw wanted;
      const digest = await runtime.pull(reference);
      if (digest !== wanted)
        throw new AppError('host_pull_failed', {
          detail: `${reference}: the host got ${digest}, the registry holds ${wanted}`,
        });
      return { reference, digest, error: null };
    } catch (error) {
      if (error instanceof AppError && error.code === 'host_unreachable') throw error;
      return { reference, digest: null, error: toProblem(error) };
    }
  }
}
