import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, type Problem, toProblem } from '@airdock/core/errors';
import { whyNoSandbox } from '@airdock/disk/programs/sandbox';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { CONFIG, type Config } from '@airdock/platform/config';
import { now } from '@airdock/platform/database';
import { localPushCredential } from '@airdock/registry/engine/local-push';
import { ProcessRegistryEngine, registrySockets } from '@airdock/registry/engine/process-engine';
import { RegistryStorage } from '@airdock/registry/folder/registry-storage';
import { Inject, Injectable, Logger } from '@nestjs/common';
import { ExternalRegistryService } from '../registry/external-registry.service.js';
import { type RegistryRow, RegistryRowService } from '../registry/registry-row.service.js';
import { StorageService } from '../registry/storage.service.js';

/** A DU that ends has ten seconds in all. */
const [turnMs, endGraceMs] = [1_000, 2_000];

/** The engine that a DU with this configuration runs, whichever process asks. */
export const registryEngine = (
  { dataDir, registry }: Config,
  { engineBinary }: Partial<Pick<RegistryRow, 'engineBinary'>> = {},
): ProcessRegistryEngine =>
  new ProcessRegistryEngine({
    stateDir: join(dataDir, 'registry'),
    storageDir: registry.storageDir,
    socketDir: registry.socketDir,
    binary: engineBinary ?? registry.binary,
    front: { port: registry.port, push: registry.localPush ? localPushCredential(dataDir) : null },
  });

/** The engine, which follows what the row of the registry wants. */
@Injectable()
export class RegistryEngineService {
  private readonly logger = new Logger(RegistryEngineService.name);
  private hasWarned = false;
  private readonly ending = new AbortController();
  /** The supervisor and a job may reconcile at the same time in one process; the engine takes one after the other. */
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    private readonly rows: RegistryRowService,
    private readonly storage: StorageService,
    private readonly external: ExternalRegistryService,
  ) {}

  /** Makes the engine what the row wants. Idempotent; the reason of a failure is kept on the row and thrown. */
  async reconcile(signal?: AbortSignal): Promise<RegistryRow> {
    const mine = this.turn.then(() => this.follow(signal));
    this.turn = mine.catch(() => undefined);
    return mine;
  }

  /** Ends the registry, whatever it is at, and starts it no more in this process. Throws `process_not_ended`. */
  async endForGood(): Promise<void> {
    this.ending.abort(new AppError('job_cancelled', { detail: 'the DU ends, and its registry with it' }));
    await Promise.race([this.turn, delay(turnMs, undefined, { ref: false })]);
    await registryEngine(this.config).stop({ graceMs: endGraceMs });
  }

  private async follow(given?: AbortSignal): Promise<RegistryRow> {
    const signal = given ? AbortSignal.any([given, this.ending.signal]) : this.ending.signal;
    signal.throwIfAborted();
    const row = await this.rows.load();
    try {
      const engine = registryEngine(this.config, row);
      await engine.setFence(row.fence !== null);
      let localhostError: Problem | null = null;
      let changed: AppError | undefined;
      if (row.mode === 'local') {
        this.warnOfNoSandbox();
        changed = await this.storage.settle(row);
        // There is nothing to be read in a folder that is not there, and nobody makes one below a mount.
        if (changed?.details.folderState === 'absent') {
          await engine.stop();
          if (row.error || row.storageId) await this.rows.note({ error: null, storageId: null });
          return row;
        }
        const { repair, frontError } = await engine.start(signal, { isReadOnly: changed !== undefined });
        const { changed: repaired, failed } = repair;
        if (frontError) {
          localhostError = toProblem(frontError);
          if (!row.localhostError)
            this.logger.warn(`nothing of Airdock on localhost:${this.config.registry.port}: ${frontError.message}`);
        }
        if (repaired.length > 0)
          this.logger.warn(
            `the registry had not written to the end, now completed or removed: ${repaired.slice(0, 20).join(', ')}`,
          );
        if (failed.length > 0)
          this.logger.error(
            `the registry has not written to the end, and that could not be repaired: ${failed.slice(0, 20).join(', ')}`,
          );
      } else {
        // Pulls go on from what is there until the other answers.
        if (row.mode === 'external' && row.externalUrl && (await engine.pids()).length > 0)
          await this.external.assertAnswering(row.externalUrl);
        await engine.stop();
      }
      const engineVersion = row.mode === 'local' ? await engine.version() : null;
      const storageId =
        row.mode === 'local' && this.config.registry.directPlacement && !changed
          ? await this.enablePlacement(row)
          : null;
      if (
        row.error ||
        row.engineVersion !== engineVersion ||
        row.storageId !== storageId ||
        row.localhostError?.detail !== localhostError?.detail
      )
        await this.rows.note({ engineVersion, storageId, error: null, localhostError });
    } catch (error) {
      signal?.throwIfAborted();
      await this.rows.note({ error: toProblem(error) });
      throw error;
    }
    return row;
  }

  private warnOfNoSandbox(): void {
    const reason = whyNoSandbox();
    if (reason && !this.hasWarned)
      this.logger.warn(`the registry's engine and decompressors run without a sandbox: ${reason}`);
    this.hasWarned = true;
  }

  /**
   * Id of the storage folder, when the registry that runs now keeps its blobs as we know it. A push over HTTP is always
   * possible.
   */
  private async enablePlacement({ recordedStorageId }: RegistryRow): Promise<string | null> {
    await using registry = new RegistryClient(registrySockets(this.config.registry.socketDir).readWrite);
    const storageId = await RegistryStorage.enable(
      this.config.registry.storageDir,
      registry,
      recordedStorageId ?? undefined,
    );
    if (!storageId)
      this.logger.warn('this registry keeps its blobs in a layout that is not known here: pushes go over HTTP');
    return storageId ?? null;
  }

  /**
   * True when the row wants a local registry and it does not run or, if asked, does not answer; or when the last try
   * failed.
   */
  async needsReconcile(isAsked = true): Promise<boolean> {
    const row = await this.rows.load();
    if (row.mode === 'external') return isAsked && row.error?.code === 'registry_external_silent';
    if (row.mode !== 'local') return false;
    const changed = await this.storage.look(row);
    if (changed?.details.detail !== row.storageError?.detail) return true;
    if (changed?.details.folderState === 'absent') return row.error !== null;
    const engine = registryEngine(this.config, row);
    return (
      row.error !== null ||
      (isAsked && row.localhostError !== null) ||
      (row.fence !== null) !== engine.isFenced ||
      !(await engine.isHealthy({ isAsked, isReadOnly: changed !== undefined }))
    );
  }

  /**
   * Keeps pushes away from now on, or lets them in again; idempotent for one upgrade. Throws `registry_fenced` when
   * another upgrade has it.
   */
  async setFence(upgradeId: string, isUp: boolean, signal?: AbortSignal): Promise<void> {
    const row = await this.rows.load();
    if (row.fence && row.fence.upgradeId !== upgradeId)
      throw new AppError('registry_fenced', { detail: `upgrade ${row.fence.upgradeId} has it` });
    if (isUp !== (row.fence !== null)) {
      const fence = isUp ? { upgradeId, since: now() } : null;
      if (!(await this.rows.want(row, { fence }))) return this.setFence(upgradeId, isUp, signal);
    }
    await this.reconcile(signal);
  }

  /** Runs another program from now on; null: the configured one. */
  async setEngineBinary(engineBinary: string | null, signal?: AbortSignal): Promise<void> {
    const row = await this.rows.load();
    if (!(await this.rows.want(row, { engineBinary }))) return this.setEngineBinary(engineBinary, signal);
    await this.reconcile(signal);
  }
}
