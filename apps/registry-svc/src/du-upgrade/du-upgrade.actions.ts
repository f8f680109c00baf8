import { listJobs } from '@airdock/clients/generated/sdk.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { Injectable } from '@nestjs/common';
import { RegistryRowService } from '../registry/registry-row.service.js';
import { RegistryEngineService } from '../registry-engine/registry-engine.service.js';
import { DuUpgradeData } from './du-upgrade.data.js';
import { DuUpgradeEngine } from './du-upgrade.engine.js';
import type { DuUpgradeEntity } from './du-upgrade.entity.js';
import type { Action } from './du-upgrade.machine.js';
import { DuUpgradePreflight } from './du-upgrade.preflight.js';
import { DuUpgradeRows } from './du-upgrade.rows.js';
import type { UpgradeProblem } from './du-upgrade.schema.js';

type Act = (upgrade: DuUpgradeEntity, signal: AbortSignal) => Promise<void>;

/** What the actions of an upgrade's phases do. Each may be begun again at any time. */
@Injectable()
export class DuUpgradeActions implements Record<Action, Act> {
  constructor(
    private readonly upgrades: DuUpgradeRows,
    private readonly preflight: DuUpgradePreflight,
    private readonly engines: DuUpgradeEngine,
    private readonly data: DuUpgradeData,
    private readonly rows: RegistryRowService,
    private readonly engine: RegistryEngineService,
    private readonly clients: ServiceClients,
  ) {}

  async inspect(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    const problems = await this.preflight.look(upgrade, signal);
    await this.upgrades.save(upgrade, { problems });
    const failures = problems.filter(({ severity }) => severity === 'failure');
    if (failures.length > 0)
      throw new AppError('du_upgrade_preflight_failed', { detail: failures.map(({ detail }) => detail).join('; ') });
  }

  async backUp(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if (!(await this.data.hasRegistry())) return;
    const skipped = await this.data.backUp(upgrade, signal);
    // What the first one skips, the second one looks at again.
    if (upgrade.phase !== 'finalBackup') return;
    const warnings: UpgradeProblem[] = skipped.map((name) => ({
      check: 'backup',
      severity: 'warning',
      detail: `${name} was not complete in the registry`,
    }));
    await this.upgrades.save(upgrade, { problems: [...(upgrade.problems ?? []), ...warnings] });
  }

  async forgetBackup(upgrade: DuUpgradeEntity): Promise<void> {
    await this.upgrades.save(upgrade, { backupId: null });
  }

  async requireRegistry({ backupId }: DuUpgradeEntity): Promise<void> {
    if (backupId && !(await this.data.hasRegistry()))
      throw new AppError('registry_off', { detail: 'the registry was on before the upgrade: set privateRegistryType' });
  }

  async raiseFence({ id }: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if (await this.data.hasRegistry()) await this.engine.setFence(id, true, signal);
  }

  async lowerFence({ id }: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if ((await this.rows.load()).fence?.upgradeId === id) await this.engine.setFence(id, false, signal);
  }

  async switchEngine({ id, engine }: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if (engine) await this.engine.setEngineBinary(await this.engines.install(id, engine, signal), signal);
    else await this.engine.reconcile(signal);
  }

  async switchEngineBack({ formerBinary }: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    await this.engine.setEngineBinary(formerBinary, signal);
  }

  /** Each service brings its tables up to date when it starts; here they have to answer with them. */
  async askServices(_upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    for (const client of [this.clients.image, this.clients.host, this.clients.cluster, this.clients.backup])
      await listJobs({ client, query: { limit: 1 }, signal, throwOnError: true });
  }

  async restore(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    await this.data.restore(upgrade, signal);
  }

  async compare(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    await this.data.compare(upgrade, signal);
  }
}
