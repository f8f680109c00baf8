import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { AppError, fromProblem, type Problem, toProblem } from '@airdock/core/errors';
import { whyNoSandbox } from '@airdock/disk/programs/sandbox';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { whyNoRegistry } from '@airdock/oci/registry-client/registry-probe';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { pinUrl } from '@airdock/outbound/pinned-url';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, isUniqueViolation, now } from '@airdock/platform/database';
import { type DiskReserve, isMountedReadOnly, whatIsShort } from '@airdock/platform/disk-reserve';
import type { NoticeSource } from '@airdock/platform/http/health.controller';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { isEnded, type Job } from '@airdock/platform/jobs/job.schema';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { dataReserve } from '@airdock/platform/service';
import { localPushCredential } from '@airdock/registry/engine/local-push';
import {
  describe,
  ProcessRegistryEngine,
  probeRegistry,
  registrySockets,
  storageUsage,
} from '@airdock/registry/engine/process-engine';
import { RegistryStorage } from '@airdock/registry/folder/registry-storage';
import { Inject, Injectable, Logger } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { IsNull, type Repository } from 'typeorm';
import { type ForeignProcess, RegistryEntity } from './registry.entity.js';
import type { PutRegistry, Registry } from './registry.schema.js';
import { StorageService } from './storage.service.js';

const id = 'registry';
/** A DU that ends has ten seconds in all. */
const [turnMs, endGraceMs] = [1_000, 2_000];
/** So many are named: somebody may start as many as he likes. */
const maxForeignProcesses = 20;
/** For the answers of a registry that somebody else runs. */
const externalTimeoutMs = 10_000;
export const applyJobType = 'registry.apply';

/** The engine that a DU with this configuration runs, whichever process asks. */
export const registryEngine = (
  { dataDir, registry }: Config,
  { engineBinary }: Partial<Pick<RegistryEntity, 'engineBinary'>> = {},
): ProcessRegistryEngine =>
  new ProcessRegistryEngine({
    stateDir: join(dataDir, 'registry'),
    storageDir: registry.storageDir,
    socketDir: registry.socketDir,
    binary: engineBinary ?? registry.binary,
    front: { port: registry.port, push: registry.localPush ? localPushCredential(dataDir) : null },
  });

/** Of the disk of a folder that takes no more, or nothing at all. */
async function diskNotice(name: string, folder: string, reserve: DiskReserve): Promise<Record<string, string>> {
  const short = await whatIsShort(folder);
  if (short) return { [`disk:${name}`]: `full: hardly any ${short === 'bytes' ? 'byte' : 'inode'} is free` };
  if (await reserve.isGivenOut()) return { [`disk:${name}`]: 'full: what was kept in reserve is given out' };
  return (await isMountedReadOnly(folder)) ? { [`disk:${name}`]: 'mounted read-only' } : {};
}

const probe = async (address: string | null) =>
  address === null ? { ok: false, latencyMs: 0 } : probeRegistry(address, 1_000);

/** The registry's wanted state, and the engine that follows it. */
@Injectable()
export class RegistryService implements NoticeSource {
  private readonly logger = new Logger(RegistryService.name);
  private hasWarned = false;
  private readonly ending = new AbortController();
  /** The supervisor and a job may reconcile at the same time in one process; the engine takes one after the other. */
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(RegistryEntity, 'registry') private readonly registries: Repository<RegistryEntity>,
    private readonly jobs: JobsService,
    private readonly targets: OutboundTargets,
    private readonly storage: StorageService,
  ) {
    for (const warning of config.warnings) this.logger.warn(warning);
  }

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

  async get(): Promise<Registry> {
    const row = await this.load();
    const {
      mode,
      externalUrl,
      engineVersion,
      storageId,
      storage,
      fence,
      error,
      localhostError,
      foreignProcesses,
      version,
      collectingJobId,
    } = row;
    const changed = await this.storage.look(row);
    // Until it was settled that it is back nothing writes there.
    const storageError = mode === 'local' ? (changed ? toProblem(changed) : row.storageError) : null;
    const { port, storageDir } = this.config.registry;
    const changes = {
      warnings: this.config.warnings,
      storageError,
      collecting: collectingJobId !== null && (await this.isOpen(collectingJobId)),
      fence: fence && { upgradeId: fence.upgradeId, since: fence.since },
      localhostError: mode === 'local' ? localhostError : null,
      foreignProcesses: (mode === 'local' && foreignProcesses) || [],
    };
    if (mode === 'none')
      return {
        mode,
        host: null,
        url: null,
        sockets: null,
        address: null,
        engine: null,
        health: null,
        storage: null,
        ...changes,
        error,
        version,
      };
    const url = mode === 'local' ? `http://localhost:${port}` : (externalUrl ?? '');
    // Tunnels must not lead to an endpoint that takes pushes, and an external registry has no other that we know of.
    const sockets = mode === 'local' ? registrySockets(this.config.registry.socketDir) : null;
    const { address, refusal } = sockets
      ? { address: storageError ? sockets.readOnly : sockets.readWrite, refusal: null }
      : await this.reachExternal(url);
    const problem = error ?? refusal;
    const [readWrite, readOnly] = await Promise.all([probe(address), probe(sockets?.readOnly ?? address)]);
    const seen = { ...readWrite, readOnlyOk: readOnly.ok, localhostOk: !localhostError };
    const withStorage = storageError ? { ...seen, ok: false, error: storageError.code } : seen;
    const health = problem
      ? { ...seen, ok: false, error: problem.code, readOnlyOk: false, localhostOk: false }
      : withStorage;
    return {
      mode,
      // What image-svc begins local references with, in every mode; in mode external no tunnel leads there yet.
      host: `localhost:${port}`,
      url,
      sockets,
      address,
      engine:
        mode === 'local'
          ? { kind: 'process', version: engineVersion, isSandboxed: whyNoSandbox() === undefined }
          : { kind: 'external', version: null, isSandboxed: null },
      health,
      storage:
        mode === 'local' && storage
          ? { path: storageDir, id: storageError ? null : storageId, recordedId: row.recordedStorageId, ...storage }
          : null,
      ...changes,
      error: problem,
      version,
    };
  }

  /**
   * Where the registry of mode external may be reached now; a refusal, and no address, when its name leads where it
   * must not.
   */
  private async reachExternal(url: string): Promise<{ address: string | null; refusal: Problem | null }> {
    // Whoever wrote the configuration file may name any.
    if (url === this.config.registry.externalUrl) return { address: url, refusal: null };
    try {
      return { address: await pinUrl(this.targets, url), refusal: null };
    } catch (error) {
      return {
        address: null,
        refusal: toProblem(
          error instanceof AppError
            ? error
            : new AppError('registry_unavailable', { detail: 'its name does not resolve' }),
        ),
      };
    }
  }

  /**
   * Changes the wanted state and starts the job that follows it. `ifMatch` is the version that the caller saw. Throws
   * `resource_changed`, `registry_fenced`, `registry_target_forbidden`, `registry_external_silent`.
   */
  async put(request: JobRequest, { mode, externalUrl }: PutRegistry, ifMatch?: number): Promise<Job> {
    const row = await this.load();
    const { version, fence } = row;
    if (fence) throw new AppError('registry_fenced', { detail: `upgrade ${fence.upgradeId}` });
    if (ifMatch !== undefined && ifMatch !== version)
      throw new AppError('resource_changed', { detail: `the registry is at version ${version}` });
    if (mode === 'external' && externalUrl !== undefined && externalUrl !== this.config.registry.externalUrl)
      await this.targets.check(externalUrl);
    // Where there is none nothing is lost by one that is not there yet.
    const isKept = row.mode === 'none' || (row.mode === 'external' && row.externalUrl === externalUrl);
    if (mode === 'external' && externalUrl !== undefined && !isKept) await this.assertAnswering(externalUrl);
    const change = this.registries
      .createQueryBuilder()
      .update()
      .set({ mode, externalUrl: externalUrl ?? null, version: version + 1, error: null })
      .where({ id, version });
    return this.jobs.submit({ ...request, type: applyJobType, resource: '/v1/registry' }, [change]);
  }

  /** Throws `registry_external_silent`. */
  private async assertAnswering(url: string): Promise<void> {
    const { address, refusal } = await this.reachExternal(url);
    const why =
      address === null ? (refusal?.detail ?? refusal?.title) : await whyNoRegistry(address, externalTimeoutMs);
    if (why !== undefined) throw new AppError('registry_external_silent', { detail: `${new URL(url).origin}: ${why}` });
  }

  /**
   * Takes the folder that is there for the storage, and starts the job that follows. Throws `storage_adoption_refused`,
   * `registry_off`, `registry_external`.
   */
  async adopt(request: JobRequest, storageId: string): Promise<Job> {
    const row = await this.load();
    assertMode(row);
    const change = await this.storage.adopt(row, storageId);
    return this.jobs.submit({ ...request, type: applyJobType, resource: '/v1/registry' }, change ? [change] : []);
  }

  /** Makes the engine what the row wants. Idempotent; the reason of a failure is kept on the row and thrown. */
  async reconcile(signal?: AbortSignal): Promise<RegistryEntity> {
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

  private async follow(given?: AbortSignal): Promise<RegistryEntity> {
    const signal = given ? AbortSignal.any([given, this.ending.signal]) : this.ending.signal;
    signal.throwIfAborted();
    const row = await this.load();
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
          if (row.error || row.storageId) await this.registries.update({ id }, { error: null, storageId: null });
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
          await this.assertAnswering(row.externalUrl);
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
        await this.registries.update({ id }, columns({ engineVersion, storageId, error: null, localhostError }));
    } catch (error) {
      signal?.throwIfAborted();
      await this.registries.update({ id }, columns({ error: toProblem(error) }));
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
  private async enablePlacement({ recordedStorageId }: RegistryEntity): Promise<string | null> {
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
    const row = await this.load();
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

  /** For `/readyz`: that there are strangers. Who they are is told to those with a token. */
  async notices(): Promise<Record<string, string>> {
    const row = await this.load();
    const { mode, localhostError, foreignProcesses } = row;
    const data = await diskNotice('data', this.config.dataDir, dataReserve(this.config));
    if (mode !== 'local') return data;
    const has = (kind: 'listener' | 'decoy') => foreignProcesses?.some((one) => one.kind === kind);
    const storageError = (await this.storage.look(row))?.code ?? row.storageError?.code;
    return {
      ...data,
      ...(await diskNotice('storage', this.config.registry.storageDir, await this.storage.reserve())),
      ...(storageError ? { 'registry:storage': `${storageError}: nothing is written to it` } : {}),
      ...(localhostError || has('listener')
        ? { [`registry:localhost:${this.config.registry.port}`]: 'another program has the port, or part of it' }
        : {}),
      ...(has('decoy') ? { 'registry:processes': 'another program shows the arguments of the registry' } : {}),
    };
  }

  /**
   * Names the processes of others that pass for the registry: looks at every process of the machine, so a few times a
   * minute at the most.
   */
  async lookForOthers(): Promise<void> {
    const row = await this.load();
    if (row.mode !== 'local') return;
    const engine = registryEngine(this.config, row);
    const found: ForeignProcess[] = [
      ...(await engine.squatters()).map(({ port, pid, uid, program }) => ({
        kind: 'listener' as const,
        port,
        pid,
        uid,
        program,
      })),
      ...(await engine.decoys()).map(({ pid, uid, program }) => ({
        kind: 'decoy' as const,
        port: null,
        pid,
        uid,
        program,
      })),
    ].slice(0, maxForeignProcesses);
    const known = row.foreignProcesses ?? [];
    const fresh = found.filter((one) => !known.some((other) => isDeepStrictEqual(one, other)));
    for (const one of fresh)
      this.logger.warn(
        one.kind === 'listener'
          ? `${describe(one)} listens on port ${one.port} of localhost`
          : `${describe(one)} shows the arguments of the registry, and is not it`,
      );
    if (found.length !== known.length || fresh.length > 0)
      await this.registries.update({ id }, columns({ foreignProcesses: found }));
  }

  /**
   * Keeps pushes away from now on, or lets them in again; idempotent for one upgrade. Throws `registry_fenced` when
   * another upgrade has it.
   */
  async setFence(upgradeId: string, isUp: boolean, signal?: AbortSignal): Promise<void> {
    const row = await this.load();
    if (row.fence && row.fence.upgradeId !== upgradeId)
      throw new AppError('registry_fenced', { detail: `upgrade ${row.fence.upgradeId} has it` });
    if (isUp !== (row.fence !== null)) {
      const fence = isUp ? { upgradeId, since: now() } : null;
      const { affected } = await this.registries.update(
        { id, version: row.version },
        columns({ fence, version: row.version + 1 }),
      );
      if (affected === 0) return this.setFence(upgradeId, isUp, signal);
    }
    await this.reconcile(signal);
  }

  /** Runs another program from now on; null: the configured one. */
  async setEngineBinary(engineBinary: string | null, signal?: AbortSignal): Promise<void> {
    const row = await this.load();
    await this.registries.update({ id }, { engineBinary, version: row.version + 1 });
    await this.reconcile(signal);
  }

  /** Walks the storage, which takes a while: workers do it now and then, and requests answer from the row. */
  async measure(): Promise<void> {
    const row = await this.load();
    // Of another disk nobody wants to know.
    if (row.mode !== 'local' || row.storageError || (await this.storage.look(row))) return;
    const storage = { ...(await storageUsage(this.config.registry.storageDir)), measuredAt: now() };
    await this.registries.update({ id }, { storage });
  }

  /** Throws `registry_off`, `registry_external`, `registry_fenced`, `registry_storage_changed`. */
  async assertLocal(): Promise<void> {
    const row = await this.load();
    assertMode(row);
    if (row.fence) throw new AppError('registry_fenced', { detail: `upgrade ${row.fence.upgradeId}` });
    await this.assertStorage();
  }

  async hasItsStorage(): Promise<boolean> {
    return (await this.storage.look(await this.load())) === undefined;
  }

  /** Whether the storage is there and is known to be the registry's: what is put there lies on no other disk. */
  async ownsStorage(): Promise<boolean> {
    const row = await this.load();
    return row.mode === 'local' && row.recordedStorageId !== null && (await this.storage.look(row)) === undefined;
  }

  /**
   * Throws `registry_storage_changed` or `registry_storage_read_only` while nothing may be written to the storage
   * folder.
   */
  async assertStorage(): Promise<void> {
    const row = await this.load();
    const changed = await this.storage.look(row);
    if (changed) throw changed;
    if (row.mode === 'local' && row.storageError) throw fromProblem(row.storageError);
  }

  /** The job of the garbage collection that has not ended. */
  async openCollection(): Promise<string | undefined> {
    const { collectionJobId } = await this.load();
    return collectionJobId !== null && (await this.isOpen(collectionJobId)) ? collectionJobId : undefined;
  }

  /** Makes a job the only garbage collection, if no other was begun meanwhile. Throws `collection_running`. */
  async claimCollection(jobId: string) {
    const { collectionJobId: last } = await this.load();
    if (last !== null && (await this.isOpen(last))) {
      const { resource } = await this.jobs.get(last);
      throw new AppError('collection_running', {
        detail: resource,
        jobId: last,
        collectionId: resource.split('/').at(-1),
      });
    }
    const { sql, parameters } = this.jobs.noneOpen(last === null ? [] : [last]);
    return this.registries
      .createQueryBuilder()
      .update()
      .set({ collectionJobId: jobId })
      .where({ id, collectionJobId: last ?? IsNull() })
      .andWhere(sql, parameters);
  }

  /** A job that was retried is the only garbage collection again. Throws `collection_running`. */
  async retakeCollection(jobId: string): Promise<void> {
    if ((await this.load()).collectionJobId === jobId) return;
    const { affected } = await (await this.claimCollection(jobId)).execute();
    if (affected === 0) throw new AppError('collection_running', { detail: 'another one was begun' });
  }

  /** Whether this garbage collection keeps others away. Of a job that has ended the mark counts no more. */
  async setCollecting(jobId: string, isCollecting: boolean): Promise<void> {
    await this.registries.update({ id, collectionJobId: jobId }, { collectingJobId: isCollecting ? jobId : null });
  }

  private async isOpen(jobId: string): Promise<boolean> {
    const job = await this.jobs.find(jobId);
    return job !== undefined && !isEnded(job.state);
  }
}

function assertMode({ mode }: RegistryEntity): void {
  if (mode === 'none') throw new AppError('registry_off');
  if (mode === 'external') throw new AppError('registry_external');
}
