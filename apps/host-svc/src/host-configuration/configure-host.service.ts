import { setTimeout as delay } from 'node:timers/promises';
import { getRegistry, listImages } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError, fromProblem } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { type RunsWhere, runsOn } from '@airdock/core/oci/runs';
import { ContainerdHost } from '@airdock/host/runtime/containerd-host';
import { DockerHost } from '@airdock/host/runtime/docker-host';
import type { RuntimeHost } from '@airdock/host/runtime/runtime-host';
import { HostFiles } from '@airdock/host/system/host-files';
import { CONFIG, type Config } from '@airdock/platform/config';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import type { RateLimit } from '@airdock/ssh/connection/rate-limit';
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
const besideCri =
  'images were pulled by ctr, not through the CRI as the kubelet does: log in as root, or install crictl or a curl with HTTP/2, to have that tried';
/** Images that prove the way: when one cannot be pulled, the next may. */
const maxCandidates = 10;
/** Of one bundle, as long as others have some: whoever pushed a bad one may have pushed more. */
const maxOfBundle = 2;
const maxPages = 10;
const tryMs = 180_000;

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

  /**
   * Notes each step in `result` as it goes, so that what was done is known also when a later step throws. Image data
   * keeps to the `limits`.
   */
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
    const provesEarly =
      !dryRun && hasTunnel && tunnel?.state === 'up' && host.configuration?.containerRuntime === 'docker';
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
    if (inspection.isPortTaken && hasTunnel)
      throw new AppError('host_port_taken', { detail: 'another program listens on the registry port' });
    if (inspection.refusal && hasTunnel) throw inspection.refusal;
    // Whether there is a container runtime is the matter of a later step.
    const failures = inspection.checks.filter(({ name, status }) => status === 'failure' && name !== 'docker');
    if (failures.length > 0)
      throw new AppError('host_check_failed', {
        detail: failures.map(({ name, seen }) => `${name}: ${seen}`).join('; '),
        checks: failures,
      });
    result.warnings.push(
      ...inspection.checks.filter(({ status }) => status === 'warning').map(({ name, seen }) => `${name}: ${seen}`),
    );
    note('check', {
      status: 'done',
      detail: `${inspection.facts.os} ${inspection.facts.osVersion}, ${inspection.checks.length} checks`,
      changes: [],
    });
    const remember = (brought: Partial<Brought>) => this.hosts.remember(host.id, brought);
    const steps = new HostSteps(
      this.config,
      connection,
      inspection.system,
      options,
      dryRun,
      hasTunnel,
      signal,
      remember,
      files,
    );
    const ports = new HeldPorts(steps, inspection.ports, this.tunnels.ports);

    if (!hasTunnel)
      note(
        'tunnel',
        skipped(
          hasRegistry
            ? 'the registry is external: the host reaches it by itself'
            : 'no registry: privateRegistryType is none',
        ),
      );
    else if (dryRun) {
      const isUp = tunnel?.state === 'up' && (leads || (await this.checks.leadsSoon(host.id, steps.system, signal)));
      // Nothing on the host would help.
      if (tunnel?.state === 'up' && !isUp && !registry.health?.readOnlyOk)
        throw new AppError('registry_unavailable', { detail: registry.sockets?.readOnly ?? '' });
      const planned = isUp && tunnel && tunnel.hostEnd === ports.hostEnd ? [] : [this.opened()];
      note(
        'tunnel',
        steps.outcome([...(await ports.bring()), ...planned], `127.0.0.1 of the host to ${registry.sockets?.readOnly}`),
      );
    } else {
      const held = await ports.bring();
      if (ports.isMoved) await this.tunnels.remove(host.id);
      const isKept = held.length === 0 && tunnel && leads && this.tunnels.isUpFor(tunnel, ports.hostEnd);
      const { hostPort, target, since } = isKept ? tunnel : await this.ensureLeads(host.id, steps, ports);
      const isSame = tunnel?.state === 'up' && tunnel.since === since;
      note(
        'tunnel',
        steps.outcome([...held, ...(isSame ? [] : [this.opened()])], `127.0.0.1:${hostPort} leads to ${target}`),
      );
    }

    note('repositories', await configureRepositories(steps, this.packageRepositories));
    const { runtime, ...outcome } = await configureRuntime(steps);
    note('runtime', outcome);

    const platform = `linux/${inspection.facts.architecture}`;
    const where: RunsWhere = {
      platform,
      ...(runtime
        ? {
            runtime: {
              name: runtime.name,
              version: inspection.system[runtime.name].version ?? (await runtime.version()),
            },
          }
        : {}),
    };
    if (skipsImages) note('images', skipped(options.skipDockerImgImport ? 'skipDockerImgImport' : 'skipDockerInstall'));
    else if (bundleIds.length === 0) note('images', skipped('no bundles were named'));
    else {
      const rename = hasRegistry && !options.skipImageRenaming;
      const warming = { clients: this.clients, runtime, where, rename, limits, warnings: result.warnings };
      for (const id of bundleIds) note('images', await warmImages(steps, id, warming));
    }

    if (dryRun || !runtime) return;
    if (hasTunnel) {
      const isUntouched = runtime.name === 'docker' && result.steps.every(({ changes }) => changes.length === 0);
      note('verify', (isUntouched && (await early)) || (await this.verify(host, runtime, where, result.warnings)));
    }
    if (!inspection.hasDocker && runtime.name === 'docker') await this.checks.inspect(host, connection, signal);
    await this.hosts.saveConfigured(host.id, { ...options, containerRuntime: runtime.name });
  }

  /**
   * The tunnel is up, and the host gets an answer from the registry through it. A connection that died is noticed by
   * its owner within 20 s, and made anew.
   */
  private async ensureLeads(hostId: string, steps: HostSteps, ports: HeldPorts): Promise<Tunnel> {
    const deadline = Date.now() + leadsMs;
    for (;;) {
      // A port that the tunnel itself has held until now is free for the host's own unit when the tunnel has moved to
      // its socket.
      const tunnel = await this.tunnels.ensureUp(hostId, steps.signal, ports.hostEnd);
      await ports.listen();
      if (await this.checks.leads(steps.system)) return tunnel;
      if (Date.now() > deadline)
        throw new AppError('tunnel_failed', {
          detail: `the tunnel is up, but on the host 127.0.0.1:${tunnel.hostPort} gives no answer of the registry`,
        });
      await delay(500, undefined, { signal: steps.signal });
    }
  }

  private opened(): Change {
    return change('tunnel', 'open', `127.0.0.1:${this.config.registry.port}`);
  }

  /**
   * A real pull through the tunnel, by digest: of a small image, since the way is what is tested. Where one cannot be
   * pulled the next is tried: an image of somebody else that is not what it says stops nobody.
   */
  private async verify(host: Host, runtime: RuntimeHost, where: RunsWhere, warnings: string[]): Promise<Outcome> {
    const candidates = await this.smallestImages(where);
    if (candidates.length === 0) return skipped(`the catalogue has no image that runs on ${where.platform} yet`);
    let first: AppError | undefined;
    const failures: string[] = [];
    const deadline = Date.now() + tryMs;
    for (const reference of candidates) {
      if (first && Date.now() > deadline) break;
      await this.hosts.remember(host.id, { images: [reference] });
      const { error } = await this.checks.pullOne(runtime, reference);
      if (!error) {
        if (runtime instanceof ContainerdHost && runtime.isBesideCri) warnings.push(besideCri);
        warnings.push(...failures.map((why) => `not pulled, though another image was: ${why}`));
        return pulled(reference);
      }
      failures.push(error.detail ?? error.title);
      // What vanished from the registry says nothing of the way.
      if (error.code === 'image_not_found') continue;
      if (error.code !== 'host_pull_failed') throw fromProblem(error);
      first ??= fromProblem(error);
    }
    if (first) throw first;
    return skipped(`no longer in the registry: ${candidates.join(', ')}`);
  }

  /**
   * The pull of `verify` while the host is looked at. It holds when nothing is changed afterwards. Only of an image
   * that the host has, so that nothing gets there before the checks have passed. Undefined where the host has it not,
   * or could not pull it: `verify` tells what is wrong.
   */
  private async verifyEarly(
    { facts }: Host,
    connection: SshConnection,
    signal: AbortSignal,
  ): Promise<Outcome | undefined> {
    try {
      if (!facts) return undefined;
      const docker = new DockerHost(connection, signal);
      const runtime = { name: 'docker' as const, version: facts.dockerVersion ?? undefined };
      for (const reference of await this.smallestImages({ platform: `linux/${facts.architecture}`, runtime })) {
        if (!(await docker.has(reference))) continue;
        return (await this.checks.pullOne(docker, reference)).error ? undefined : pulled(reference);
      }
      return undefined;
    } catch {
      return undefined;
    }
  }

  /**
   * The local references, by digest, of small images of the catalogue that surely run there, the smallest first, of
   * several bundles.
   */
  private async smallestImages(where: RunsWhere): Promise<string[]> {
    const [found, spare] = [new Set<string>(), new Set<string>()];
    const ofBundle = new Map<string, number>();
    let cursor: string | undefined;
    for (let page = 0; page < maxPages && found.size < maxCandidates; page++) {
      const query = { sort: 'smallest' as const, platform: where.platform, limit: 100, ...(cursor ? { cursor } : {}) };
      const { data } = await listImages({ client: this.clients.image, query, throwOnError: true });
      for (const { localReferences, digest, bundleId, ...image } of data.items) {
        const [local] = localReferences;
        if (!local || !runsOn(image, where)) continue;
        const { registry, repository } = parseReference(local);
        const count = (ofBundle.get(bundleId ?? '') ?? 0) + 1;
        ofBundle.set(bundleId ?? '', count);
        (count > maxOfBundle && bundleId ? spare : found).add(
          formatReference({ registry, repository, digest: digest as Digest }),
        );
      }
      cursor = data.nextCursor;
      if (!cursor) break;
    }
    return [...found, ...spare].slice(0, maxCandidates);
  }
}

const pulled = (reference: string): Outcome => ({
  status: 'done',
  detail: `the host pulled ${reference}`,
  changes: [],
});
