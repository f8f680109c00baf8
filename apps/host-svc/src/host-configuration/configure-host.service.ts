import { setTimeout as delay } from 'node:timers/promises';
import { getRegistry, listImages } from '@airdock/adapters/api-clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import type { SshConnection } from '@airdock/adapters/ssh/connection';
import { DockerHost } from '@airdock/adapters/ssh/docker-host';
import { HostFiles } from '@airdock/adapters/ssh/host-files';
import type { RateLimit } from '@airdock/adapters/ssh/rate-limit';
import type { RuntimeHost } from '@airdock/adapters/ssh/runtime-host';
import { AppError, fromProblem } from '@airdock/core/errors';
import { isPlatform } from '@airdock/core/oci/manifest';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import type { Brought, Change, Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostCheckService } from '../host-check/host-check.service.js';
import { PackageRepositoryService } from '../package-repository/package-repository.service.js';
import type { Tunnel } from '../tunnel/tunnel.schema.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import type { HostConfigurationEntity } from './host-configuration.entity.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';
import { change, HostSteps, type Outcome, skipped, stepLog } from './host-steps.js';
import { warmImages } from './images-step.js';
import { HeldPorts, heldPortFiles } from './ports-step.js';
import { configureRepositories, listPaths } from './repositories-step.js';
import { configureRuntime, daemonJson } from './runtime-step.js';

type Configuration = Pick<HostConfigurationEntity, 'bundleIds' | 'dryRun' | 'options'>;
const leadsMs = 30_000;

/** The steps of configuring one host, each of which looks first and changes only what is not as it should be. */
@Injectable()
export class ConfigureHost {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly hosts: HostService,
    private readonly checks: HostCheckService,
    private readonly tunnels: TunnelService,
    private readonly packageRepositories: PackageRepositoryService,
    private readonly clients: ServiceClients,
  ) {}

  /** Notes each step in `result` as it goes, so that what was done is known also when a later step throws. Image data keeps to the `limits`. */
  async run(
    host: Host,
    { bundleIds, dryRun, options }: Configuration,
    result: HostConfigurationResult,
    signal: AbortSignal,
    limits: readonly RateLimit[] = [],
  ): Promise<void> {
    const note = stepLog(result);
    const asked = getRegistry({ client: this.clients.registry, throwOnError: true });
    // Logging in takes longer; who waits for the answer gets to know.
    asked.catch(() => undefined);
    await using connection = await this.hosts.connect(host, signal);
    const { data: registry } = await asked;
    const hasRegistry = registry.mode !== 'none';
    const hasTunnel = registry.sockets !== null;
    const skipsImages = options.skipDockerImgImport || options.skipDockerInstall;
    if (options.skipImageRenaming && skipsImages)
      result.warnings.push(
        `skipImageRenaming has no meaning with ${options.skipDockerImgImport ? 'skipDockerImgImport' : 'skipDockerInstall'}: no images are brought`,
      );

    const tunnel = await this.tunnels.settled(host.id, signal);
    // Side by side; the look, which takes longest, first.
    const provesEarly = !dryRun && hasTunnel && tunnel?.state === 'up' && host.configuration?.containerRuntime === 'docker';
    const inspecting = this.checks.inspect(host, connection, signal, { tunnel, asksRegistry: !provesEarly });
    const files = new HostFiles(connection, signal);
    files.readAhead([
      ...(options.skipDockerInstall ? [] : [daemonJson]),
      ...(options.skipYumRepoInstall ? [] : Object.values(listPaths)),
      ...(hasTunnel ? heldPortFiles() : []),
    ]);
    const early = provesEarly ? this.verifyEarly(host, connection, signal) : undefined;
    const inspection = await inspecting;
    const leads = inspection.leads ?? (await early) !== undefined;
    if (inspection.isPortTaken && hasTunnel) throw new AppError('host_port_taken', { detail: 'another program listens on the registry port' });
    if (inspection.refusal && hasTunnel) throw inspection.refusal;
    // Whether there is a container runtime is the matter of a later step.
    const failures = inspection.checks.filter(({ name, status }) => status === 'failure' && name !== 'docker');
    if (failures.length > 0)
      throw new AppError('host_check_failed', { detail: failures.map(({ name, seen }) => `${name}: ${seen}`).join('; '), checks: failures });
    result.warnings.push(...inspection.checks.filter(({ status }) => status === 'warning').map(({ name, seen }) => `${name}: ${seen}`));
    note('check', { status: 'done', detail: `${inspection.facts.os} ${inspection.facts.osVersion}, ${inspection.checks.length} checks`, changes: [] });
    const remember = (brought: Partial<Brought>) => this.hosts.remember(host.id, brought);
    const steps = new HostSteps(this.config, connection, inspection.system, options, dryRun, hasTunnel, signal, remember, files);
    const ports = new HeldPorts(steps, inspection.ports, this.tunnels.ports);

    if (!hasTunnel)
      note('tunnel', skipped(hasRegistry ? 'the registry is external: the host reaches it by itself' : 'no registry: privateRegistryType is none'));
    else if (dryRun) {
      const isUp = tunnel?.state === 'up' && (leads || (await this.checks.leadsSoon(host.id, steps.system, signal)));
      // Nothing on the host would help.
      if (tunnel?.state === 'up' && !isUp && !registry.health?.readOnlyOk)
        throw new AppError('registry_unavailable', { detail: registry.sockets?.readOnly ?? '' });
      const planned = isUp && tunnel && tunnel.hostEnd === ports.hostEnd ? [] : [this.opened()];
      note('tunnel', steps.outcome([...(await ports.bring()), ...planned], `127.0.0.1 of the host to ${registry.sockets?.readOnly}`));
    } else {
      const held = await ports.bring();
      if (ports.isMoved) await this.tunnels.remove(host.id);
      const isKept = held.length === 0 && tunnel && leads && this.tunnels.isUpFor(tunnel, ports.hostEnd);
      const { hostPort, target, since } = isKept ? tunnel : await this.ensureLeads(host.id, steps, ports);
      const isSame = tunnel?.state === 'up' && tunnel.since === since;
      note('tunnel', steps.outcome([...held, ...(isSame ? [] : [this.opened()])], `127.0.0.1:${hostPort} leads to ${target}`));
    }

    note('repositories', await configureRepositories(steps, this.packageRepositories));
    const { runtime, ...outcome } = await configureRuntime(steps);
    note('runtime', outcome);

    const platform = `linux/${inspection.facts.architecture}`;
    if (skipsImages) note('images', skipped(options.skipDockerImgImport ? 'skipDockerImgImport' : 'skipDockerInstall'));
    else if (bundleIds.length === 0) note('images', skipped('no bundles were named'));
    else {
      const rename = hasRegistry && !options.skipImageRenaming;
      const warming = { clients: this.clients, runtime, platform, rename, limits, warnings: result.warnings };
      for (const id of bundleIds) note('images', await warmImages(steps, id, warming));
    }

    if (dryRun || !runtime) return;
    if (hasTunnel) {
      const isUntouched = runtime.name === 'docker' && result.steps.every(({ changes }) => changes.length === 0);
      note('verify', (isUntouched && (await early)) || (await this.verify(host, runtime, platform)));
    }
    if (!inspection.hasDocker && runtime.name === 'docker') await this.checks.inspect(host, connection, signal);
    await this.hosts.saveConfigured(host.id, { ...options, containerRuntime: runtime.name });
  }

  /** The tunnel is up, and the host gets an answer from the registry through it. A connection that died is noticed by its owner within 20 s, and made anew. */
  private async ensureLeads(hostId: string, steps: HostSteps, ports: HeldPorts): Promise<Tunnel> {
    const deadline = Date.now() + leadsMs;
    for (;;) {
      // A port that the tunnel itself has held until now is free for the host's own unit when the tunnel has moved to its socket.
      const tunnel = await this.tunnels.ensureUp(hostId, steps.signal, ports.hostEnd);
      await ports.listen();
      if (await this.checks.leads(steps.system)) return tunnel;
      if (Date.now() > deadline)
        throw new AppError('tunnel_failed', { detail: `the tunnel is up, but on the host 127.0.0.1:${tunnel.hostPort} gives no answer of the registry` });
      await delay(500, undefined, { signal: steps.signal });
    }
  }

  private opened(): Change {
    return change('tunnel', 'open', `127.0.0.1:${this.config.registry.port}`);
  }

  /** A real pull through the tunnel, by digest: of the smallest image, since the way is what is tested. */
  private async verify(host: Host, runtime: RuntimeHost, platform: string): Promise<Outcome> {
    const reference = await this.smallestImage(platform);
    if (!reference) return skipped(`the catalogue has no image for ${platform} yet`);
    await this.hosts.remember(host.id, { images: [reference] });
    const { error } = await this.checks.pullOne(runtime, reference);
    // The way is what is tested; an image that vanished from the registry is another matter.
    if (error?.code === 'image_not_found') return skipped(`${reference} is no longer in the registry`);
    if (error) throw fromProblem(error);
    return pulled(reference);
  }

  /**
   * The pull of `verify` while the host is looked at. It holds when nothing is changed afterwards. Only of an image that the host has, so that nothing gets there
   * before the checks have passed. Undefined where the host has it not, or could not pull it: `verify` tells what is wrong.
   */
  private async verifyEarly({ facts }: Host, connection: SshConnection, signal: AbortSignal): Promise<Outcome | undefined> {
    try {
      const docker = new DockerHost(connection, signal);
      const reference = facts ? await this.smallestImage(`linux/${facts.architecture}`) : undefined;
      if (!reference || !(await docker.has(reference))) return undefined;
      return (await this.checks.pullOne(docker, reference)).error ? undefined : pulled(reference);
    } catch {
      return undefined;
    }
  }

  /** The local reference of the catalogue's smallest image, by digest. */
  private async smallestImage(platform: string): Promise<string | undefined> {
    const { data } = await listImages({ client: this.clients.image, query: { limit: 500 }, throwOnError: true });
    const [smallest] = data.items.filter(({ platforms }) => platforms.some((own) => isPlatform(own, platform))).sort((a, b) => a.sizeBytes - b.sizeBytes);
    const [local] = smallest?.localReferences ?? [];
    return smallest && local && `${local.slice(0, local.lastIndexOf(':'))}@${smallest.digest}`;
  }
}

const pulled = (reference: string): Outcome => ({ status: 'done', detail: `the host pulled ${reference}`, changes: [] });
