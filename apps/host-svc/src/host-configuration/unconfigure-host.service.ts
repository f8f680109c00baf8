import { setTimeout as delay } from 'node:timers/promises';
import type { RuntimeHost } from '@airdock/host/runtime/runtime-host';
import { HostSystem } from '@airdock/host/system/host-system';
import { CONFIG, type Config } from '@airdock/platform/config';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { Inject, Injectable } from '@nestjs/common';
import { type Brought, ConfigurationOptions, type Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostCheckService } from '../host-check/host-check.service.js';
import { PackageRepositoryService } from '../package-repository/package-repository.service.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import type { HostConfigurationResult } from './host-configuration.schema.js';
import { change, HostSteps, type Outcome, stepLog } from './host-steps.js';
import { HeldPorts, heldPortFiles } from './ports-step.js';
import { unconfigureRepositories } from './repositories-step.js';
import { chooseRuntime, runtimeOf, unconfigureRuntime } from './runtime-step.js';

const closeMs = 10_000;
const noPorts = { holder: undefined, why: '', held: [] };

/** Takes away from a host what configurations have put there, and nothing else, in the opposite order. */
@Injectable()
export class UnconfigureHost {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly hosts: HostService,
    private readonly checks: HostCheckService,
    private readonly tunnels: TunnelService,
    private readonly packageRepositories: PackageRepositoryService,
  ) {}

  /**
   * Notes each step in `result` as it goes. What cannot be taken away, since others use it now, stays and is named in
   * the warnings.
   */
  async run(host: Host, dryRun: boolean, result: HostConfigurationResult, signal: AbortSignal): Promise<void> {
    const note = stepLog(result);
    await using connection = await this.hosts.connect(host, signal);
    const facts = await new HostSystem(connection, signal).facts();
    const options = host.configuration ?? ConfigurationOptions.parse({});
    const steps = new HostSteps(this.config, connection, facts, options, dryRun, true, signal);
    const left = await this.hosts.brought(host.id);
    const name = chooseRuntime(steps);

    const runtime = facts[name].version ? runtimeOf(steps, name) : undefined;
    note('images', await this.removeImages(steps, runtime, left, result.warnings));
    note('packages', await this.removePackages(steps, left, result.warnings));
    const goesWithPackages =
      facts.family !== undefined &&
      this.config.packages.docker[facts.family].some((one) => left.packages.includes(one));
    const stays = dryRun
      ? name !== 'docker' || !goesWithPackages
      : (await steps.system.facts())[name].version !== undefined;
    note('runtime', await unconfigureRuntime(steps, name, runtime !== undefined && stays));
    note('repositories', await unconfigureRepositories(steps, this.packageRepositories));
    const hasTunnel = (await this.tunnels.find(host.id)) !== undefined;
    if (hasTunnel && !dryRun) await this.closeTunnel(host, connection, result.warnings, signal);
    const closed = hasTunnel ? [change('tunnel', 'close', `127.0.0.1:${this.config.registry.port}`)] : [];
    steps.files.readAhead(heldPortFiles());
    const given = await new HeldPorts(steps, noPorts, this.tunnels.ports).takeBack();
    note('tunnel', steps.outcome([...closed, ...given], 'the tunnel to the DU'));
    if (connection.noise) result.warnings.push(`login: prints around every command: ${connection.noise}`);
    if (!dryRun) await this.hosts.saveUnconfigured(host.id, left);
  }

  /**
   * Its owner closes it at its next look, which a configuration that follows must not overtake: the port would be
   * taken.
   */
  private async closeTunnel(
    host: Host,
    connection: SshConnection,
    warnings: string[],
    signal: AbortSignal,
  ): Promise<void> {
    await this.tunnels.remove(host.id);
    const deadline = Date.now() + closeMs;
    while ((await this.checks.inspect(host, connection, signal, { tries: false })).isPortTaken) {
      if (Date.now() > deadline)
        return void warnings.push(`something still listens on the registry port after ${closeMs / 1000} s`);
      await delay(200, undefined, { signal });
    }
  }

  /** Leaves in `left.images` what is in use. */
  private async removeImages(
    steps: HostSteps,
    runtime: RuntimeHost | undefined,
    left: Brought,
    warnings: string[],
  ): Promise<Outcome> {
    const names = left.images;
    if (names.length > 0 && !runtime) return { status: 'skipped', detail: 'the runtime gives no answer', changes: [] };
    if (steps.dryRun || !runtime)
      return steps.outcome(
        names.map((name) => change('image', 'remove', name)),
        `${names.length} names`,
      );
    const used: string[] = [];
    for (const name of names) {
      steps.signal.throwIfAborted();
      if (!(await runtime.remove(name))) used.push(name);
    }
    if (used.length > 0) warnings.push(`in use, and left: ${used.join(', ')}`);
    const removed = names.filter((name) => !used.includes(name));
    left.images = used;
    return steps.outcome(
      removed.map((name) => change('image', 'remove', name)),
      `${removed.length} names`,
    );
  }

  /** Leaves in `left.packages` those that others need. */
  private async removePackages(steps: HostSteps, left: Brought, warnings: string[]): Promise<Outcome> {
    const { family } = steps.facts;
    if (!family || left.packages.length === 0) return steps.outcome([], 'none were brought');
    const installed = await steps.system.installedPackages(family);
    const names = left.packages.filter((name) => installed.has(name));
    if (!steps.dryRun) {
      try {
        if (names.length > 0) await steps.system.remove(family, names);
        left.packages = [];
      } catch (error) {
        steps.signal.throwIfAborted();
        left.packages = names;
        warnings.push(`packages stay: ${(error as Error).message}`);
        return steps.outcome([], `left: ${names.join(', ')}`);
      }
    }
    return steps.outcome(
      names.map((name) => change('package', 'remove', name)),
      names.join(', ') || 'gone already',
    );
  }
}
