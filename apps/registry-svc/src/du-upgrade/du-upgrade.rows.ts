import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';
import { writeDurably } from '@airdock/disk/files/durable-file';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns } from '@airdock/platform/database';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, Not, type Repository } from 'typeorm';
import { DuUpgradeEntity } from './du-upgrade.entity.js';
import { endedPhases } from './du-upgrade.schema.js';

/** Where upgrades are: a row each, and a file beside the tables for the one that is open. */
@Injectable()
export class DuUpgradeRows {
  private readonly stateFile: string;

  constructor(
    @Inject(CONFIG) config: Config,
    @InjectRepository(DuUpgradeEntity, 'registry') readonly table: Repository<DuUpgradeEntity>,
  ) {
    this.stateFile = join(config.dataDir, 'du-upgrade.json');
  }

  /** The upgrade that has begun and not ended. */
  async open(): Promise<DuUpgradeEntity | undefined> {
    const [open] = await this.table.find({
      where: { phase: Not(In([...endedPhases])), dryRun: false },
      order: { id: 'DESC' },
      take: 1,
    });
    return open;
  }

  /** The upgrade that was finished last. */
  async lastDone(): Promise<DuUpgradeEntity | undefined> {
    const [last] = await this.table.find({
      where: { phase: 'done', dryRun: false },
      order: { finishedAt: 'DESC', id: 'DESC' },
      take: 1,
    });
    return last;
  }

  /** First the file, then the row: whichever is newer after a kill, the phase is begun again. */
  async save(row: DuUpgradeEntity, change: Partial<DuUpgradeEntity>): Promise<void> {
    Object.assign(row, change);
    if (!row.dryRun) await writeDurably(this.stateFile, Buffer.from(`${JSON.stringify(row, null, 2)}\n`));
    await this.table.update({ id: row.id }, columns<DuUpgradeEntity>(change));
  }

  /** The file is of an open upgrade only. */
  async forgetEnded({ phase, dryRun }: DuUpgradeEntity): Promise<void> {
    if (endedPhases.includes(phase) && !dryRun) await rm(this.stateFile, { force: true });
  }

  /**
   * A row for what the file tells of, after the tables were lost. Throws `du_upgrade_file_unreadable`: that it cannot
   * be read says nothing of there being none.
   */
  async recover(): Promise<void> {
    let saved: DuUpgradeEntity;
    try {
      saved = { ...(JSON.parse(await readFile(this.stateFile, 'utf8')) as DuUpgradeEntity), hasLostTables: true };
    } catch (cause) {
      const code = errnoOf(cause);
      if (code === 'ENOENT') return;
      throw new AppError(
        'du_upgrade_file_unreadable',
        { detail: `${this.stateFile}: ${code || 'it holds no upgrade'}` },
        { cause },
      );
    }
    await this.table.createQueryBuilder().insert().values(columns<DuUpgradeEntity>(saved)).orIgnore().execute();
  }
}
