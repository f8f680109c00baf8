import { createHash } from 'node:crypto';
import { assertSucceeded, followJob } from '@airdock/clients/follow-job';
import { createBackup, createRestore, getBackup, getRestore, retryJob } from '@airdock/clients/generated/sdk.gen';
import type { Job, Restore } from '@airdock/clients/generated/types.gen';
import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { Injectable } from '@nestjs/common';
import { RegistryRowService } from '../registry/registry-row.service.js';
import type { DuUpgradeEntity } from './du-upgrade.entity.js';
import { DuUpgradeRows } from './du-upgrade.rows.js';

/** The images of an upgrade: backed up, brought back and compared by jobs of backup-svc, each of which is begun once. */
@Injectable()
export class DuUpgradeData {
  constructor(
    private readonly upgrades: DuUpgradeRows,
    private readonly rows: RegistryRowService,
    private readonly clients: ServiceClients,
  ) {}

  async hasRegistry(): Promise<boolean> {
    return (await this.rows.load()).mode === 'local';
  }

  /** One backup for a phase, however often it is begun. Returns the names that it skipped. */
  async backUp(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<string[]> {
    const client = this.clients.backup;
    const { data: begun } = await createBackup({
      client,
      headers: { 'Idempotency-Key': `${upgrade.id}-${upgrade.phase}` },
      body: { target: upgrade.target, description: `upgrade of the DU to ${upgrade.toVersion}` },
      signal,
      throwOnError: true,
    });
    const seen = await followJob(client, begun.id, signal);
    // Of an earlier attempt: whoever retries the upgrade has put right what was in its way.
    if (seen.state !== 'succeeded') await retryJob({ client, path: { id: begun.id }, signal, throwOnError: true });
    assertSucceeded(await followJob(client, begun.id, signal));
    const id = idOf(begun);
    const { data: backup } = await getBackup({ client, path: { id }, signal, throwOnError: true });
    await this.upgrades.save(upgrade, { backupId: id });
    return (backup.skipped ?? []).map(({ name }) => name);
  }

  /** Brings back what is gone, and nothing else. */
  async restore(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if (!upgrade.backupId || !(await this.hasRegistry())) return;
    // Rows come back only where the tables were lost: what was deleted since then must stay so.
    // With them the fence was lost too: what was pushed meanwhile stays.
    const options = upgrade.hasLostTables ? { onConflict: 'keep' } : { settings: false };
    const seen = await this.restoreOnce(upgrade, { ...options, dryRun: true }, signal);
    const { missing = [], conflicts = [], missingBytes = 0 } = seen.report ?? {};
    const isGone = missing.length + conflicts.length + missingBytes > 0;
    // What this DU has signed is its own settings: where an attempt before this one has brought half of them, nobody
    // has to confirm the rest.
    const confirm = seen.report?.signature.state === 'own' ? seen.report.planDigest : upgrade.confirm;
    await this.restoreOnce(upgrade, { ...options, ...(confirm && { confirm }) }, signal);
    const restored = isGone || (upgrade.report?.restored ?? false);
    await this.upgrades.save(upgrade, {
      report: { images: 0, present: 0, missing: [], changed: [], engineVersion: null, restored },
    });
  }

  /** Throws `du_upgrade_incomplete` unless everything of the backup is there, by count and digest. */
  async compare(upgrade: DuUpgradeEntity, signal: AbortSignal): Promise<void> {
    if (!upgrade.backupId || !(await this.hasRegistry())) return;
    const { report } = await this.restoreOnce(upgrade, { dryRun: true }, signal);
    const path = { id: upgrade.backupId };
    const { data: backup } = await getBackup({ client: this.clients.backup, path, signal, throwOnError: true });
    const missing = [...(report?.missing ?? []), ...(report?.broken ?? []).map(({ name }) => name)];
    const changed = report?.conflicts ?? [];
    const [images, present] = [backup.images ?? 0, report?.present ?? 0];
    const { engineVersion } = await this.rows.load();
    const restored = upgrade.report?.restored ?? false;
    const differing = missing.length + (upgrade.hasLostTables ? 0 : changed.length + (report?.missingBytes ?? 0));
    await this.upgrades.save(upgrade, {
      report: { images, present, missing, changed, restored, engineVersion },
      // Whoever tries again has changed something: that attempt looks for itself.
      restores: upgrade.restores + (differing > 0 ? 1 : 0),
    });
    if (differing > 0)
      throw new AppError('du_upgrade_incomplete', {
        detail: `${missing.length} of ${images} names are missing, ${changed.length} lead to something else`,
      });
  }

  /**
   * One restore for an attempt of a phase: after a kill the one that runs, or has succeeded, is found by its key. One
   * that failed is over, and the next attempt begins another.
   */
  private async restoreOnce(upgrade: DuUpgradeEntity, options: object, signal: AbortSignal): Promise<Restore> {
    const client = this.clients.backup;
    const body = { backupId: upgrade.backupId ?? '', allowUnsigned: upgrade.allowUnsigned, ...options };
    // A dry run says what it found in its phase; what writes must not be begun twice by two phases.
    const place = 'dryRun' in options ? upgrade.phase : '';
    const key = createHash('sha256')
      .update(`${upgrade.id} ${upgrade.restores} ${place} ${JSON.stringify(body)}`)
      .digest('hex');
    const headers = { 'Idempotency-Key': key };
    const { data: begun } = await createRestore({ client, headers, body, signal, throwOnError: true });
    const ended = await followJob(client, begun.id, signal);
    if (ended.state !== 'succeeded') await this.upgrades.save(upgrade, { restores: upgrade.restores + 1 });
    assertSucceeded(ended);
    const { data } = await getRestore({ client, path: { id: idOf(begun) }, signal, throwOnError: true });
    return data;
  }
}

const idOf = ({ resource }: Job): string => resource.split('/').at(-1) ?? '';
