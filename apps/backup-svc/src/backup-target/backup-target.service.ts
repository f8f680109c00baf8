import { isDeepStrictEqual } from 'node:util';
import type { BackupStorage } from '@airdock/backup-store/backup-storage';
import { BackupStore } from '@airdock/backup-store/backup-store';
import { FolderStorage } from '@airdock/backup-store/folder-storage';
import type { LockOptions, StoreLock } from '@airdock/backup-store/store-lock';
import { AppError, toProblem } from '@airdock/core/errors';
import { type BackupTargetConfig, CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { readSecretFile } from '@airdock/platform/secret-file';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { SigningKeyService } from '../signing-key/signing-key.service.js';
import { BackupTargetEntity } from './backup-target.entity.js';
import type { AdoptBackupTarget, BackupTarget, ReadingRecord, TargetProblem } from './backup-target.schema.js';

/** The lock that a job takes for its work in a store. */
export const lockFor = ({ jobId, signal, progress }: JobContext): LockOptions => ({
  ...{ kind: 'shared', id: jobId, signal },
  onWait: ([holder = '']) => progress({ phase: `waiting for ${holder}` }),
});

/** What the result of a job says that has read without a lock, since none could be written. */
export const withoutLock = ({ missing }: StoreLock) =>
  missing ? { withoutLock: `${missing.code}: a prune from elsewhere would not have waited for this job` } : {};

/** The places where backups are kept, as they are configured. */
@Injectable()
export class BackupTargetService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(BackupTargetEntity, 'backup') private readonly targets: Repository<BackupTargetEntity>,
    private readonly signingKeys: SigningKeyService,
  ) {}

  get names(): string[] {
    return Object.keys(this.config.backup.targets);
  }

  /** Throws `resource_not_found`. */
  assertKnown(name: string): void {
    this.configOf(name);
  }

  async list(): Promise<BackupTarget[]> {
    return Promise.all(
      this.names.map(async (name) => {
        const row = await this.targets.findOneBy({ name });
        const storeId = row?.storeId ?? null;
        const problems = (row?.problems ?? [])
          .slice(0, maxProblems)
          .map(({ backupId, code, detail }) => ({ backupId, code, detail }));
        const shown = {
          name,
          location: this.locationOf(name),
          storeId,
          encrypted: this.config.backup.encryption.recipients.length > 0,
          problems,
        };
        try {
          await using store = await this.find(name);
          await using storage = store ? undefined : await this.storageOf(name);
          return {
            ...shown,
            storeId: store?.id ?? null,
            freeBytes: (await (store?.storage ?? storage)?.freeBytes()) ?? null,
            error: null,
          };
        } catch (error) {
          return { ...shown, freeBytes: null, error: toProblem(error) };
        }
      }),
    );
  }

  /**
   * The store of a target; the first one that is seen there belongs there. Throws `resource_not_found`,
   * `backup_target_unavailable`, `backup_target_changed`, `backup_format_unsupported`, `configuration_invalid`.
   */
  open(name: string): Promise<BackupStore> {
    return this.openStore(name, true);
  }

  /**
   * The store of a target that has or had one; undefined while there never was any: reading makes none, since a disk
   * may still have to be mounted.
   */
  async find(name: string): Promise<BackupStore | undefined> {
    const isKnown = (await this.targets.findOneBy({ name })) !== null;
    try {
      return await this.openStore(name, false);
    } catch (error) {
      if (!isKnown && error instanceof AppError && error.code === 'backup_target_unavailable') return undefined;
      throw error;
    }
  }

  private async openStore(name: string, create: boolean): Promise<BackupStore> {
    const storage = await this.storageOf(name);
    try {
      const known = await this.targets.findOneBy({ name });
      const options = { ...(await this.keys()), compress: this.config.backup.compress, expectedId: known?.storeId };
      const store = await BackupStore.open(storage, { ...options, create });
      if (!known)
        await this.targets
          .createQueryBuilder()
          .insert()
          .values({ name, storeId: store.id, takenOverAt: now() })
          .orIgnore()
          .execute();
      return store;
    } catch (error) {
      await storage[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** A store that lies elsewhere, with the keys of this DU. */
  async read(storage: BackupStorage): Promise<BackupStore> {
    return BackupStore.open(storage, { ...(await this.keys()), create: false });
  }

  /**
   * From now on the store that is there now belongs there; empty storage becomes one. Throws `backup_unsigned`,
   * `backup_signer_unknown` for a backup there that nobody known has signed, unless that is allowed, and
   * `backup_signature_wrong`.
   */
  async adopt(name: string, { allowUnsigned }: AdoptBackupTarget): Promise<BackupTarget> {
    const storage = await this.storageOf(name);
    await using store = await BackupStore.open(storage, await this.keys());
    await store.expectSignatures({ allowUnsigned });
    await this.targets.save({ name, storeId: store.id, takenOverAt: now(), problems: null, reading: null });
    const [target] = (await this.list()).filter((one) => one.name === name);
    return target as BackupTarget;
  }

  /** What is known of a target. */
  stateOf(name: string): Promise<BackupTargetEntity | null> {
    return this.targets.findOneBy({ name });
  }

  /** Before a record of somebody is read, and after (null). */
  async noteReading(name: string, reading: ReadingRecord | null): Promise<void> {
    await this.targets.update({ name }, { reading });
  }

  async noteProblems(name: string, problems: readonly TargetProblem[]): Promise<void> {
    const before = (await this.targets.findOneBy({ name }))?.problems ?? [];
    if (!isDeepStrictEqual(before, problems)) await this.targets.update({ name }, { problems: [...problems] });
  }

  /** The backups of before there were signatures are signed now. */
  async noteTakenOver(name: string): Promise<void> {
    await this.targets.update({ name }, { takenOverAt: now() });
  }

  private configOf(name: string): BackupTargetConfig {
    // A name such as `constructor` is none of ours.
    const found = Object.hasOwn(this.config.backup.targets, name) ? this.config.backup.targets[name] : undefined;
    if (!found)
      throw new AppError('resource_not_found', {
        detail: `no backup target ${name.slice(0, 60)}; there are ${this.names.join(', ')}`,
      });
    return found;
  }

  private locationOf(name: string): string {
    const target = this.configOf(name);
    return 'folder' in target ? target.folder : `s3://${target.s3.bucket}/${target.s3.prefix}`;
  }

  private async storageOf(name: string): Promise<BackupStorage> {
    const target = this.configOf(name);
    if ('folder' in target) return FolderStorage.open(target.folder);
    const { secretKeyFile, ...s3 } = target.s3;
    // Loaded by those who need it: it is large.
    const { S3Storage } = await import('@airdock/backup-store/s3-storage');
    return new S3Storage({ ...s3, secretAccessKey: (await readKey(secretKeyFile)).trim() });
  }

  private async keys() {
    const { encryption, signingKeyFile } = this.config.backup;
    const identities = encryption.identityFile
      ? ((await readKey(encryption.identityFile)).match(/AGE-SECRET-KEY-[A-Z0-9-]+/g) ?? [])
      : [];
    if (encryption.identityFile && identities.length === 0)
      throw invalid(encryption.identityFile, 'holds no AGE-SECRET-KEY');
    const signingKey = signingKeyFile ? (await readKey(signingKeyFile)).trim() : undefined;
    if (signingKeyFile && !/^[0-9a-f]{64}$/i.test(signingKey ?? ''))
      throw invalid(signingKeyFile, 'does not hold 64 hex digits');
    const signatures = await this.signingKeys.recordKeys();
    return {
      signatures,
      keys: { recipients: encryption.recipients, identities },
      hmacKey: signingKey ? Buffer.from(signingKey, 'hex') : undefined,
    };
  }
}

/** In an answer. */
const maxProblems = 20;

const invalid = (file: string, what: string, cause?: unknown) =>
  new AppError('configuration_invalid', { detail: `${file} ${what}` }, { cause });

/** Throws `configuration_invalid`, and `file_exposed` when others can read it. */
async function readKey(file: string): Promise<string> {
  try {
    return readSecretFile(file);
  } catch (cause) {
    throw cause instanceof AppError ? cause : invalid(file, 'cannot be read', cause);
  }
}
