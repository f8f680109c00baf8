import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, isUniqueViolation } from '@airdock/platform/database';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { RegistryEntity } from './registry.entity.js';

/** The registry's row, and the processes in it that pass for the registry. */
export type { ForeignProcess, RegistryEntity as RegistryRow } from './registry.entity.js';

/** The one row of the table. */
export const registryRowId = 'registry';
const id = registryRowId;

/** The row of the registry: what is wanted, and what was found out. */
@Injectable()
export class RegistryRowService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(RegistryEntity, 'registry') private readonly registries: Repository<RegistryEntity>,
  ) {}

  /** The wanted state; on the first call, and after a change in the configuration file, what the file says. */
  async load(): Promise<RegistryEntity> {
    const configuredMode = this.config.privateRegistryType;
    const configuredUrl = this.config.registry.externalUrl ?? null;
    const configured = { mode: configuredMode, configuredMode, externalUrl: configuredUrl, configuredUrl };
    const row = await this.registries.findOneBy({ id });
    if (row?.configuredMode === configuredMode && row.configuredUrl === configuredUrl) return row;
    try {
      if (row) await this.registries.update({ id, version: row.version }, { ...configured, version: row.version + 1 });
      else
        await this.registries.insert({
          id,
          ...configured,
          version: 1,
          engineVersion: null,
          storageId: null,
          recordedStorageId: null,
          offeredStorageId: null,
          storageError: null,
          storage: null,
          engineBinary: null,
          fence: null,
          collectionJobId: null,
          collectingJobId: null,
          error: null,
          localhostError: null,
          foreignProcesses: null,
        });
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
    }
    return this.registries.findOneByOrFail({ id });
  }

  /** Writes what was found out. */
  async note(values: Partial<RegistryEntity>): Promise<void> {
    await this.registries.update({ id }, columns<RegistryEntity>(values));
  }

  /** Changes what is wanted. False when somebody else did meanwhile. */
  async want({ version }: RegistryEntity, values: Partial<RegistryEntity>): Promise<boolean> {
    const { affected } = await this.registries.update(
      { id, version },
      columns<RegistryEntity>({ ...values, version: version + 1 }),
    );
    return affected !== 0;
  }
}
