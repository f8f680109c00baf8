import { randomUUID } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, type Problem, toProblem } from '@airdock/core/errors';
import {
  ensureFolderMark,
  type FolderMark,
  readFolderMark,
  whyNotSame,
  writeFolderMark,
} from '@airdock/disk/files/folder-mark';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns } from '@airdock/platform/database';
import { DiskReserve, isMountedReadOnly } from '@airdock/platform/disk-reserve';
import { dataReserve } from '@airdock/platform/service';
import { storageChanged, storageMarker } from '@airdock/registry/folder/registry-storage';
import { Inject, Injectable, Logger } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { IsNull, type Repository } from 'typeorm';
import { RegistryEntity } from './registry.entity.js';

/** A disk may hang, and nobody who asks for the registry waits for that. */
const lookTimeoutMs = 2_000;

/**
 * Whether the folder of the registry's storage is the one that the row knows. Where it is not, nothing is written there
 * until it is back, or is adopted by name.
 */
@Injectable()
export class StorageService {
  private readonly logger = new Logger(StorageService.name);
  private looking: Promise<FolderMark> | undefined;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(RegistryEntity, 'registry') private readonly registries: Repository<RegistryEntity>,
  ) {}

  private get folder(): string {
    return this.config.registry.storageDir;
  }

  /**
   * `registry_storage_changed` or `registry_storage_read_only`, as it is now; undefined when all is well, and before
   * the registry was on for the first time.
   */
  async look({ mode, recordedStorageId, offeredStorageId }: RegistryEntity): Promise<AppError | undefined> {
    if (mode !== 'local' || recordedStorageId === null) return undefined;
    const mark = await this.mark();
    const why = whyNotSame(recordedStorageId, mark);
    if (why === undefined)
      return (await this.isReadOnly())
        ? new AppError('registry_storage_read_only', { detail: `${this.folder} is mounted read-only` })
        : undefined;
    const foundId = mark.state === 'marked' ? mark.id : null;
    // What has no id gets the one that is offered, so that the old disk is not taken for it when it comes back.
    const adoptableId = mark.state === 'unreadable' ? null : (foundId ?? offeredStorageId);
    return storageChanged(this.folder, `${why}, and the registry's storage has the id ${recordedStorageId}`, {
      ...{ folderState: mark.state, recordedId: recordedStorageId, foundId, adoptableId },
    });
  }

  private isReadOnly(): Promise<boolean> {
    return Promise.race([isMountedReadOnly(this.folder), delay(lookTimeoutMs, false, { ref: false })]);
  }

  private mark(): Promise<FolderMark> {
    this.looking ??= readFolderMark(this.folder, storageMarker).finally(() => {
      this.looking = undefined;
    });
    return Promise.race([
      this.looking,
      delay(lookTimeoutMs, { state: 'unreadable', why: 'its disk does not answer' } as const, { ref: false }),
    ]);
  }

  /** What is kept free on its disk: that of the data folder where both are on one. */
  async reserve(): Promise<DiskReserve> {
    const isShared = (await deviceOf(this.folder)) === (await deviceOf(this.config.dataDir));
    return isShared ? dataReserve(this.config) : new DiskReserve(join(this.folder, 'airdock-reserve'));
  }

  /** Writes down which folder it is when none is known, and what is wrong with it, or no more. Returns that. */
  async settle(row: RegistryEntity): Promise<AppError | undefined> {
    if (row.mode !== 'local') return undefined;
    if (row.offeredStorageId === null) {
      row.offeredStorageId = randomUUID();
      await this.registries.update({ id: row.id }, { offeredStorageId: row.offeredStorageId });
    }
    if (row.recordedStorageId === null) {
      // An Airdock of before noted it where it placed blobs.
      row.recordedStorageId = row.storageId ?? (await ensureFolderMark(this.folder, storageMarker));
      await this.registries.update(
        { id: row.id, recordedStorageId: IsNull() },
        { recordedStorageId: row.recordedStorageId },
      );
      this.logger.log(`the registry's storage is ${row.recordedStorageId}, in ${this.folder}`);
    }
    const changed = await this.look(row);
    if (changed?.details.detail !== row.storageError?.detail) {
      if (changed)
        this.logger.error(`${changed.code}: ${changed.details.detail}; nothing is written there until that is over`);
      else this.logger.warn(`the registry's storage ${row.recordedStorageId} is there again`);
      const storageError: Problem | null = changed ? toProblem(changed) : null;
      await this.registries.update({ id: row.id }, columns<RegistryEntity>({ storageError }));
      row.storageError = storageError;
    }
    return changed;
  }

  /**
   * The change of the row that makes a folder with another id, or with none, the registry's storage. The id that the
   * registry knows says that only the mark was lost, and is written anew. Nothing to change when it is that already.
   * Throws `storage_adoption_refused`, `registry_storage_changed` where the folder cannot be looked at.
   */
  async adopt(row: RegistryEntity, storageId: string) {
    const changed = await this.look(row);
    const isSame = !changed || changed.code === 'registry_storage_read_only';
    if (isSame && storageId === row.recordedStorageId) return undefined;
    if (isSame)
      throw new AppError('storage_adoption_refused', {
        detail: `the registry has its storage, ${row.recordedStorageId ?? 'which has no id yet'}`,
      });
    const { folderState, foundId, adoptableId } = changed.details;
    if (folderState === 'unreadable') throw changed;
    const isAccepted = storageId === adoptableId || (foundId === null && storageId === row.recordedStorageId);
    if (!isAccepted)
      throw new AppError('storage_adoption_refused', {
        detail: `what is there can be adopted as ${String(adoptableId)}`,
        adoptableId,
      });
    if (foundId === null) await writeFolderMark(this.folder, storageMarker, storageId);
    this.logger.warn(`${this.folder} is adopted as ${storageId}, in place of ${row.recordedStorageId}`);
    return this.registries
      .createQueryBuilder()
      .update()
      .set({ recordedStorageId: storageId, offeredStorageId: randomUUID(), storageId: null, version: row.version + 1 })
      .where({ id: row.id, version: row.version });
  }
}

const deviceOf = (folder: string): Promise<number | undefined> =>
  stat(folder).then(
    ({ dev }) => dev,
    () => undefined,
  );
