import { listBackups, listBackupTargets, listJobs } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { compareDuVersions, duCapabilities } from '@airdock/core/du-version';
import { AppError } from '@airdock/core/errors';
import { CONFIG, type Config } from '@airdock/platform/config';
import { Inject, Injectable } from '@nestjs/common';
import { RegistryService } from '../registry/registry.service.js';
import { RegistryRowService } from '../registry/registry-row.service.js';
import { registryEngine } from '../registry-engine/registry-engine.service.js';
import { RegistryWatchService } from '../registry-engine/registry-watch.service.js';
import { DuUpgradeEngine } from './du-upgrade.engine.js';
import type { DuUpgradeEntity } from './du-upgrade.entity.js';
import type { NewEngine, UpgradeProblem } from './du-upgrade.schema.js';

/** Jobs of others that an upgrade must not meet. */
const busyTypes =
  /^(image\.(push|rebuild-catalogue)|backup\.(restore|import)|registry\.collect-garbage|cluster\.(create|upgrade)|host\.(configure|operate-node))$/;

/** What can be told of an upgrade before anything is changed. */
@Injectable()
export class DuUpgradePreflight {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly registry: RegistryService,
    private readonly rows: RegistryRowService,
    private readonly watch: RegistryWatchService,
    private readonly engines: DuUpgradeEngine,
    private readonly clients: ServiceClients,
  ) {}

  /** All that was found, in the order of its checks; an upgrade with a failure among them is refused. */
  async look(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<UpgradeProblem[]> {
    return [
      ...this.versions(upgrade),
      ...(await this.registryState()),
      ...((await this.rows.load()).mode === 'local' ? await this.space(upgrade.target, signal) : []),
      ...(await this.runningJobs(signal)),
      ...(upgrade.engine ? [await this.newEngine(upgrade.engine, signal)] : []),
    ];
  }

  private versions({ fromVersion, toVersion }: DuUpgradeEntity): UpgradeProblem[] {
    const problems: UpgradeProblem[] = [];
    const add = (severity: UpgradeProblem['severity'], detail: string) =>
      problems.push({ check: 'version', severity, detail });
    if (compareDuVersions(toVersion, fromVersion) < 0) add('failure', `${toVersion} is older than ${fromVersion}`);
    const capabilities = duCapabilities(toVersion);
    if (!capabilities.hasRegistry) add('failure', `a DU of version ${toVersion} has no local registry`);
    else if (capabilities.movesClusters && !duCapabilities(fromVersion).movesClusters)
      add('info', 'from 5.3 on clusters that exist can be switched to local mode, by being upgraded');
    return problems;
  }

  private async registryState(): Promise<UpgradeProblem[]> {
    const problems: UpgradeProblem[] = [];
    const add = (severity: UpgradeProblem['severity'], detail: string) =>
      problems.push({ check: 'registry', severity, detail });
    const row = await this.rows.load();
    if (row.mode === 'none')
      add(
        'info',
        'the registry is off: there is nothing to carry over; set privateRegistryType to have one afterwards',
      );
    else if (row.mode === 'external') add('info', 'the registry is run by someone else, and is not touched');
    else if (row.error || !(await registryEngine(this.config, row).isHealthy()))
      add('failure', 'the registry does not answer');
    await this.registry.assertStorage().catch((changed: AppError) => add('failure', changed.message));
    return problems;
  }

  /** Whether the backup has a place that can be reached and is large enough, as far as that can be told before. */
  private async space(name: string, signal: AbortSignal): Promise<UpgradeProblem[]> {
    const client = this.clients.backup;
    const problem = (severity: UpgradeProblem['severity'], detail: string) => [{ check: 'space', severity, detail }];
    const { data: targets } = await listBackupTargets({ client, signal, throwOnError: true });
    const target = targets.items.find((each) => each.name === name);
    if (!target) return problem('failure', `there is no backup target ${name}`);
    if (target.error)
      return problem(
        'failure',
        `the backup target ${name} cannot be used: ${target.error.detail ?? target.error.title}`,
      );
    // What was measured last may be from before a push.
    await this.watch.measure();
    const usedBytes = (await this.rows.load()).storage?.usedBytes ?? 0;
    if (target.freeBytes === null || target.freeBytes >= usedBytes) return [];
    const query = { target: name, limit: 1 };
    const { data: backups } = await listBackups({ client, query, signal, throwOnError: true });
    // What an earlier backup has is not copied again.
    return problem(
      backups.items.length > 0 ? 'warning' : 'failure',
      `the registry has ${usedBytes} bytes, and ${target.freeBytes} are free at the backup target ${name}`,
    );
  }

  private async runningJobs(signal: AbortSignal): Promise<UpgradeProblem[]> {
    // A job that begins between the two looks is named once, as it was seen first.
    const found = new Map<string, UpgradeProblem>();
    const { registry, image, host, cluster, backup } = this.clients;
    for (const client of [registry, image, host, cluster, backup])
      for (const state of ['running', 'queued'] as const) {
        const { data } = await listJobs({ client, query: { state, limit: 500 }, signal, throwOnError: true });
        for (const { id, type } of data.items)
          if (busyTypes.test(type) && !found.has(id))
            found.set(id, { check: 'jobs', severity: 'failure', detail: `${type} is ${state}: /v1/jobs/${id}` });
      }
    return [...found.values()];
  }

  private async newEngine(engine: NewEngine, signal: AbortSignal): Promise<UpgradeProblem> {
    try {
      const { digest, version } = await this.engines.inspect(engine, signal);
      const detail = `the registry becomes ${version ?? 'one of unknown version'}: ${digest}`;
      return { check: 'engine', severity: 'info', detail };
    } catch (cause) {
      const detail = cause instanceof AppError ? (cause.details.detail ?? cause.message) : 'the engine cannot be read';
      return { check: 'engine', severity: 'failure', detail };
    }
  }
}
