import { getRegistry } from '@airdock/clients/generated/sdk.gen';
import type { Registry } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import type { RunsWhere } from '@airdock/core/oci/runs';
import { pollUntil } from '@airdock/core/poll-until';
import { ConfigurationWork } from '@airdock/host/configuration/configuration-work';
import { HeldPorts, heldPortFiles } from '@airdock/host/configuration/held-ports';
import { warmImages } from '@airdock/host/configuration/images-step';
import { configureRepositories, listPaths } from '@airdock/host/configuration/repositories-step';
import { configureRuntime, daemonJson } from '@airdock/host/configuration/runtime-step';
import type { Inspection } from '@airdock/host/inspection/inspect-host';
import type { RuntimeHost } from '@airdock/host/runtime/runtime-host';
import { HostFiles } from '@airdock/host/system/host-files';
import { type HostChange, hostChange, type StepOutcome, type StepStatus, skipped } from '@airdock/host/work/host-work';
import { CONFIG, type Config } from '@airdock/platform/config';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import type { RateLimit } from '@airdock/ssh/connection/rate-limit';
import { Inject, Injectable } from '@nestjs/common';
import type { ConfigurationOptions, Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostImageService } from '../host-image/host-image.service.js';
import { HostProbe } from '../host-probe/host-probe.service.js';
import { PullProof } from '../host-probe/pull-proof.service.js';
import { PackageRepositoryService } from '../package-repository/package-repository.service.js';
import type { Tunnel } from '../tunnel/tunnel.schema.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import type { HostConfigurationEntity } from './host-configuration.entity.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';

type Configuration = Pick<HostConfigurationEntity, 'bundleIds' | 'dryRun' | 'options'>;

/** What was found of a host before anything is changed. */
interface Findings {
  inspection: Inspection;
  files: HostFiles;
  tunnel: Tunnel | undefined;
  canReachRegistry: boolean;
  /** A pull that was proved beside the inspection; it holds while nothing is changed. */
  earlyProof: StepOutcome<'done'> | undefined;
}

const reachMs = 30_000;
const reachPauseMs = 500;

/** The steps of configuring one host, each of which looks first and changes only what is not as it should be. */
@Injectable()
export class ConfigureHost {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly hosts: HostService,
    private readonly probe: HostProbe,
    private readonly proof: PullProof,
    private readonly tunnels: TunnelService,
    private readonly packageRepositories: PackageRepositoryService,
    private readonly images: HostImageService,
    private readonly clients: ServiceClients,
  ) {}

  /**
   * Adds each step to `result` when it has ended, so that the steps before a failure are known. Image data keeps to the
   * `limits`.
   */
  async run(
    host: Host,
    { bundleIds, dryRun, options }: Configuration,
    result: HostConfigurationResult,
    signal: AbortSignal,
    limits: readonly RateLimit[] = [],
  ): Promise<void> {
    const startedAt = performance.now();
    const asked = getRegistry({ client: this.clients.registry, throwOnError: true });
    // Logging in takes longer than the answer; the error is thrown where the answer is awaited.
    asked.catch(() => undefined);
    await using connection = await this.hosts.connect(host, signal);
    const { data: registry } = await asked;
    const hasTunnel = registry.sockets !== null;
    warnOfUselessOptions(options, result);

    const findings = await this.inspect(host, connection, { options, dryRun, registry, signal });
    const { inspection, files } = findings;
    assertConfigurable(inspection, hasTunnel);
    const work = new ConfigurationWork({
      site: this.config,
      wishes: options,
      facts: inspection.system,
      hasTunnel,
      connection,
      signal,
      dryRun,
      files,
      startedAt,
      onStep: (step) => result.steps.push(step),
      onWarning: (warning) => result.warnings.push(warning),
      remember: (additions) => this.hosts.remember(host.id, additions),
    });
    recordInspection(work, inspection);
    work.record('tunnel', await this.configureTunnel(host, work, findings, registry));
    work.record('repositories', await configureRepositories(work, this.packageRepositories));
    const { runtime, ...outcome } = await configureRuntime(work);
    work.record('runtime', outcome);
    const where = await whereOf(inspection, runtime);
    await this.recordImages(work, runtime, { where, options, bundleIds, registry, limits });
    if (dryRun || !runtime) return;
    if (hasTunnel) {
      const isUntouched = runtime.name === 'docker' && result.steps.every(({ changes }) => changes.length === 0);
      const early = isUntouched ? findings.earlyProof : undefined;
      work.record('verify', early ?? (await this.proof.prove(work, runtime, where, registry)));
    }
    if (!inspection.hasDocker && runtime.name === 'docker')
      await this.probe.inspect(host, connection, signal, { registry });
    await this.hosts.saveConfigured(host.id, { ...options, containerRuntime: runtime.name });
  }

  /** Looks at the host, reads the files that the steps will need, and proves a pull, all at the same time. */
  private async inspect(
    host: Host,
    connection: SshConnection,
    {
      options,
      dryRun,
      registry,
      signal,
    }: Omit<Configuration, 'bundleIds'> & { registry: Registry; signal: AbortSignal },
  ): Promise<Findings> {
    const hasTunnel = registry.sockets !== null;
    const tunnel = await this.tunnels.settled(host.id, signal);
    const provesEarly =
      !dryRun && hasTunnel && tunnel?.state === 'up' && host.configuration?.containerRuntime === 'docker';
    // The inspection takes longest, so it is begun first.
    const inspecting = this.probe.inspect(host, connection, signal, { tunnel, registry, asksRegistry: !provesEarly });
    const files = new HostFiles(connection, signal);
    files.readAhead([
      ...(options.skipDockerInstall ? [] : [daemonJson]),
      ...(options.skipYumRepoInstall ? [] : Object.values(listPaths)),
      ...(hasTunnel ? heldPortFiles() : []),
    ]);
    const proving = provesEarly ? this.proof.proveEarly(host, connection, registry, signal) : undefined;
    const inspection = await inspecting;
    const earlyProof = await proving;
    const canReachRegistry = inspection.canReachRegistry ?? earlyProof !== undefined;
    return { inspection, files, tunnel, canReachRegistry, earlyProof };
  }

  private async configureTunnel(
    host: Host,
    work: ConfigurationWork,
    findings: Findings,
    registry: Registry,
  ): Promise<StepOutcome<StepStatus | 'skipped'>> {
    if (!work.hasTunnel)
      return skipped(
        registry.mode === 'none'
          ? 'no registry: privateRegistryType is none'
          : 'the registry is external: the host reaches it by itself',
      );
    const ports = new HeldPorts(work, findings.inspection.ports, this.tunnels.ports);
    if (work.dryRun) return this.planTunnel(host, work, findings, registry, ports);
    const { tunnel, canReachRegistry } = findings;
    const changes = await ports.configure();
    if (ports.isMoved) await this.tunnels.remove(host.id);
    const isKept = changes.length === 0 && tunnel && canReachRegistry && this.tunnels.isUpFor(tunnel, ports.hostEnd);
    const { hostPort, target, since } = isKept ? tunnel : await this.openTunnel(host.id, work, ports, registry);
    const isSame = tunnel?.state === 'up' && tunnel.since === since;
    return work.outcome(
      [...changes, ...(isSame ? [] : [this.tunnelOpened()])],
      `127.0.0.1:${hostPort} leads to ${target}`,
    );
  }

  private async planTunnel(
    host: Host,
    work: ConfigurationWork,
    { tunnel, canReachRegistry }: Findings,
    { health, sockets }: Registry,
    ports: HeldPorts,
  ): Promise<StepOutcome> {
    const isUp =
      tunnel?.state === 'up' &&
      (canReachRegistry || (await this.probe.canReachRegistrySoon(host.id, work.system, work.signal)));
    // No change on the host would help.
    if (tunnel?.state === 'up' && !isUp && !health?.readOnlyOk)
      throw new AppError('registry_unavailable', { detail: sockets?.readOnly ?? '' });
    const opened = isUp && tunnel?.hostEnd === ports.hostEnd ? [] : [this.tunnelOpened()];
    return work.outcome([...(await ports.configure()), ...opened], `127.0.0.1 of the host to ${sockets?.readOnly}`);
  }

  /**
   * Opens the tunnel, and waits until the registry answers the host through it. The owner of a tunnel notices within
   * 20 s that its connection has died, and opens it again.
   */
  private async openTunnel(
    hostId: string,
    { system, signal }: ConfigurationWork,
    ports: HeldPorts,
    registry: Registry,
  ): Promise<Tunnel> {
    let port = 0;
    const tunnel = await pollUntil({ everyMs: reachPauseMs, timeoutMs: reachMs, signal }, async () => {
      // Once the tunnel has moved to its socket, the port that it held itself is free for the host's own unit.
      const opened = await this.tunnels.ensureUp(hostId, signal, { hostEnd: ports.hostEnd, registry });
      port = opened.hostPort;
      await ports.listen();
      return (await this.probe.canReachRegistry(system)) && opened;
    });
    if (tunnel) return tunnel;
    throw new AppError('tunnel_failed', {
      detail: `the tunnel is up, but on the host 127.0.0.1:${port} gives no answer of the registry`,
    });
  }

  private tunnelOpened(): HostChange {
    return hostChange('tunnel', 'open', `127.0.0.1:${this.config.registry.port}`);
  }

  private async recordImages(
    work: ConfigurationWork,
    runtime: RuntimeHost | undefined,
    {
      where,
      options,
      bundleIds,
      registry,
      limits,
    }: Pick<Configuration, 'options' | 'bundleIds'> & {
      where: RunsWhere;
      registry: Registry;
      limits: readonly RateLimit[];
    },
  ): Promise<void> {
    if (skipsImages(options))
      return work.record('images', skipped(options.skipDockerImgImport ? 'skipDockerImgImport' : 'skipDockerInstall'));
    if (bundleIds.length === 0) return work.record('images', skipped('no bundles were named'));
    const rename = registry.mode !== 'none' && !options.skipImageRenaming;
    for (const id of bundleIds) {
      const bundle = await this.images.getBundle(id, registry);
      work.record('images', await warmImages(work, bundle, { runtime, where, rename, limits }));
    }
  }
}

const skipsImages = ({ skipDockerImgImport, skipDockerInstall }: ConfigurationOptions): boolean =>
  skipDockerImgImport || skipDockerInstall;

function warnOfUselessOptions(options: ConfigurationOptions, { warnings }: HostConfigurationResult): void {
  if (options.skipImageRenaming && skipsImages(options))
    warnings.push(
      `skipImageRenaming has no meaning with ${options.skipDockerImgImport ? 'skipDockerImgImport' : 'skipDockerInstall'}: no images are brought`,
    );
}

/** Throws `host_port_taken`, `host_check_failed`, and why sshd refuses a tunnel. */
function assertConfigurable({ isPortTaken, refusal, checks }: Inspection, hasTunnel: boolean): void {
  if (isPortTaken && hasTunnel)
    throw new AppError('host_port_taken', { detail: 'another program listens on the registry port' });
  if (refusal && hasTunnel) throw refusal;
  // A later step sees to the container runtime.
  const failures = checks.filter(({ name, status }) => status === 'failure' && name !== 'docker');
  if (failures.length > 0)
    throw new AppError('host_check_failed', {
      detail: failures.map(({ name, seen }) => `${name}: ${seen}`).join('; '),
      checks: failures,
    });
}

function recordInspection(work: ConfigurationWork, { facts, checks }: Inspection): void {
  for (const { name, status, seen } of checks) if (status === 'warning') work.warn(`${name}: ${seen}`);
  work.record('check', {
    status: 'done',
    detail: `${facts.os} ${facts.osVersion}, ${checks.length} checks`,
    changes: [],
  });
}

async function whereOf({ facts, system }: Inspection, runtime: RuntimeHost | undefined): Promise<RunsWhere> {
  const platform = `linux/${facts.architecture}`;
  if (!runtime) return { platform };
  const version = system[runtime.name].version ?? (await runtime.version());
  return { platform, runtime: { name: runtime.name, version } };
}
