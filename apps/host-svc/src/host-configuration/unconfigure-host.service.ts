import { setTimeout as delay } from 'node:timers/promises';
import { ConfigurationWork } from '@airdock/host/configuration/configuration-work';
import { HeldPorts, heldPortFiles } from '@airdock/host/configuration/held-ports';
import { unconfigureRepositories } from '@airdock/host/configuration/repositories-step';
import { chooseRuntime, runtimeOf, unconfigureRuntime } from '@airdock/host/configuration/runtime-step';
import type { RuntimeHost, RuntimeName } from '@airdock/host/runtime/runtime-host';
import { HostSystem } from '@airdock/host/system/host-system';
import {
  type HostAdditions,
  hostChange,
  type StepOutcome,
  type StepStatus,
  skipped,
} from '@airdock/host/work/host-work';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import { ConfigurationOptions, type Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostProbe } from '../host-probe/host-probe.service.js';
import { PackageRepositoryService } from '../package-repository/package-repository.service.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';

const closeMs = 10_000;
const closePauseMs = 200;
const noPorts = { holder: undefined, why: '', held: [] };

/** Removes from a host what configurations have added to it, and nothing else, in the opposite order. */
@Injectable()
export class UnconfigureHost {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly hosts: HostService,
    private readonly probe: HostProbe,
    private readonly tunnels: TunnelService,
    private readonly packageRepositories: PackageRepositoryService,
  ) {}

  /**
   * Adds each step to `result` when it has ended. What others use now cannot be removed: it stays, and is named in the
   * warnings.
   */
  async run(host: Host, dryRun: boolean, result: HostConfigurationResult, signal: AbortSignal): Promise<void> {
    const startedAt = performance.now();
    await using connection = await this.hosts.connect(host, signal);
    const work = new ConfigurationWork({
      site: this.config,
      wishes: host.configuration ?? ConfigurationOptions.parse({}),
      facts: await new HostSystem(connection, signal).facts(),
      hasTunnel: true,
      connection,
      signal,
      dryRun,
      startedAt,
      onStep: (step) => result.steps.push(step),
      onWarning: (warning) => result.warnings.push(warning),
    });
    const additions = await this.hosts.additions(host.id);
    const name = chooseRuntime(work);
    const runtime = work.facts[name].version ? runtimeOf(work, name) : undefined;
    const images = await removeImages(work, runtime, additions.images);
    work.record('images', images.outcome);
    const packages = await removePackages(work, additions.packages);
    work.record('packages', packages.outcome);
    const isRuntimeThere = runtime !== undefined && (await this.isRuntimeKept(work, name, additions));
    work.record('runtime', await unconfigureRuntime(work, name, isRuntimeThere));
    work.record('repositories', await unconfigureRepositories(work, this.packageRepositories));
    work.record('tunnel', await this.removeTunnel(host, work));
    if (connection.noise) work.warn(`login: prints around every command: ${connection.noise}`);
    if (dryRun) return;
    await this.hosts.saveUnconfigured(host.id, { images: images.remaining, packages: packages.remaining });
  }

  /** The runtime is still there when the packages are removed that configurations have added. */
  private async isRuntimeKept(work: ConfigurationWork, name: RuntimeName, { packages }: HostAdditions) {
    if (!work.dryRun) return (await work.system.facts())[name].version !== undefined;
    const { family } = work.facts;
    const isRemoved = family !== undefined && this.config.packages.docker[family].some((one) => packages.includes(one));
    return name !== 'docker' || !isRemoved;
  }

  private async removeTunnel(host: Host, work: ConfigurationWork): Promise<StepOutcome> {
    const hasTunnel = (await this.tunnels.find(host.id)) !== undefined;
    if (hasTunnel && !work.dryRun) await this.closeTunnel(host, work);
    const closed = hasTunnel ? [hostChange('tunnel', 'close', `127.0.0.1:${this.config.registry.port}`)] : [];
    work.files.readAhead(heldPortFiles());
    const units = await new HeldPorts(work, noPorts, this.tunnels.ports).unconfigure();
    return work.outcome([...closed, ...units], 'the tunnel to the DU');
  }

  /**
   * Waits until the owner of the tunnel has closed it, which it does at its next look: to a configuration that comes
   * before that the port would be taken.
   */
  private async closeTunnel(host: Host, work: ConfigurationWork): Promise<void> {
    const { connection, signal } = work;
    await this.tunnels.remove(host.id);
    const deadline = Date.now() + closeMs;
    while ((await this.probe.inspect(host, connection, signal, { triesTunnel: false })).isPortTaken) {
      if (Date.now() > deadline)
        return work.warn(`something still listens on the registry port after ${closeMs / 1000} s`);
      await delay(closePauseMs, undefined, { signal });
    }
  }
}

/** How a removal ended, and what is still on the host. */
interface Removal {
  outcome: StepOutcome<StepStatus | 'skipped'>;
  remaining: string[];
}

/** Images that a container uses remain. */
async function removeImages(
  work: ConfigurationWork,
  runtime: RuntimeHost | undefined,
  names: string[],
): Promise<Removal> {
  if (names.length > 0 && !runtime) return { outcome: skipped('the runtime gives no answer'), remaining: names };
  const used: string[] = [];
  for (const name of work.dryRun ? [] : names) {
    work.signal.throwIfAborted();
    if (runtime && !(await runtime.remove(name))) used.push(name);
  }
  if (used.length > 0) work.warn(`in use, and left: ${used.join(', ')}`);
  const removed = names.filter((name) => !used.includes(name));
  const changes = removed.map((name) => hostChange('image', 'remove', name));
  return { outcome: work.outcome(changes, `${removed.length} names`), remaining: used };
}

/** Packages that others need remain. */
async function removePackages(work: ConfigurationWork, added: string[]): Promise<Removal> {
  const { family } = work.facts;
  if (!family || added.length === 0) return { outcome: work.outcome([], 'none were brought'), remaining: added };
  const installed = await work.system.installedPackages(family);
  const names = added.filter((name) => installed.has(name));
  if (!work.dryRun && names.length > 0) {
    try {
      await work.system.remove(family, names);
    } catch (error) {
      work.signal.throwIfAborted();
      work.warn(`packages stay: ${(error as Error).message}`);
      return { outcome: work.outcome([], `left: ${names.join(', ')}`), remaining: names };
    }
  }
  const changes = names.map((name) => hostChange('package', 'remove', name));
  return { outcome: work.outcome(changes, names.join(', ') || 'gone already'), remaining: [] };
}
