import { AppError, fromProblem, toProblem } from '@airdock/core/errors';
import { whyNoSandbox } from '@airdock/disk/programs/sandbox';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { CONFIG, type Config } from '@airdock/platform/config';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { type Job } from '@airdock/platform/jobs/job.schema';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { probeRegistry, registrySockets } from '@airdock/registry/engine/process-engine';
import { Inject, Injectable, Logger } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { type Repository } from 'typeorm';
import { CollectionClaimService } from './collection-claim.service.js';
import { ExternalRegistryService } from './external-registry.service.js';
import { RegistryEntity } from './registry.entity.js';
import type { PutRegistry, Registry } from './registry.schema.js';
import { registryRowId as id, RegistryRowService } from './registry-row.service.js';
import { StorageService } from './storage.service.js';

export const applyJobType = 'registry.apply';

const probe = async (address: string | null) =>
  address === null ? { ok: false, latencyMs: 0 } : probeRegistry(address, 1_000);

/** The registry as users see and want it. */
@Injectable()
export class RegistryService {
  private readonly logger = new Logger(RegistryService.name);

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(RegistryEntity, 'registry') private readonly registries: Repository<RegistryEntity>,
    private readonly jobs: JobsService,
    private readonly targets: OutboundTargets,
    private readonly storage: StorageService,
    private readonly rows: RegistryRowService,
    private readonly external: ExternalRegistryService,
    private readonly claims: CollectionClaimService,
  ) {
    for (const warning of config.warnings) this.logger.warn(warning);
  }

  async get(): Promise<Registry> {
    const row = await this.rows.load();
    const { mode, error, version } = row;
    const shared = await this.sharedOf(row);
    if (mode === 'none') {
      const nothing = {
        host: null,
        url: null,
        sockets: null,
        address: null,
        engine: null,
        health: null,
        storage: null,
      };
      return { mode, ...nothing, ...shared, error, version };
    }
    const { port, storageDir, socketDir } = this.config.registry;
    const { storageError, localhostError } = shared;
    const url = mode === 'local' ? `http://localhost:${port}` : (row.externalUrl ?? '');
    // Tunnels must not lead to an endpoint that takes pushes, and an external registry has no other that we know of.
    const sockets = mode === 'local' ? registrySockets(socketDir) : null;
    const { address, refusal } = sockets
      ? { address: storageError ? sockets.readOnly : sockets.readWrite, refusal: null }
      : await this.external.reach(url);
    const problem = error ?? refusal;
    const [readWrite, readOnly] = await Promise.all([probe(address), probe(sockets?.readOnly ?? address)]);
    const seen = { ...readWrite, readOnlyOk: readOnly.ok, localhostOk: !localhostError };
    const withStorage = storageError ? { ...seen, ok: false, error: storageError.code } : seen;
    const unwell = { ok: false, readOnlyOk: false, localhostOk: false };
    return {
      mode,
      // What image-svc begins local references with, in every mode; in mode external no tunnel leads there yet.
      host: `localhost:${port}`,
      url,
      sockets,
      address,
      engine:
        mode === 'local'
          ? { kind: 'process', version: row.engineVersion, isSandboxed: whyNoSandbox() === undefined }
          : { kind: 'external', version: null, isSandboxed: null },
      health: problem ? { ...seen, ...unwell, error: problem.code } : withStorage,
      storage:
        mode === 'local' && row.storage
          ? {
              path: storageDir,
              id: storageError ? null : row.storageId,
              recordedId: row.recordedStorageId,
              ...row.storage,
            }
          : null,
      ...shared,
      error: problem,
      version,
    };
  }

  /** What is told of the registry in every mode. */
  private async sharedOf(row: RegistryEntity) {
    const { mode, fence, collectingJobId, foreignProcesses } = row;
    const changed = await this.storage.look(row);
    return {
      warnings: this.config.warnings,
      // Until it was settled that it is back nothing writes there.
      storageError: mode === 'local' ? (changed ? toProblem(changed) : row.storageError) : null,
      collecting: collectingJobId !== null && (await this.claims.isOpen(collectingJobId)),
      fence: fence && { upgradeId: fence.upgradeId, since: fence.since },
      localhostError: mode === 'local' ? row.localhostError : null,
      foreignProcesses: (mode === 'local' && foreignProcesses) || [],
    };
  }

  /**
   * Changes the wanted state and starts the job that follows it. `ifMatch` is the version that the caller saw. Throws
   * `resource_changed`, `registry_fenced`, `registry_target_forbidden`, `registry_external_silent`.
   */
  async put(request: JobRequest, { mode, externalUrl }: PutRegistry, ifMatch?: number): Promise<Job> {
    const row = await this.rows.load();
    const { version, fence } = row;
    if (fence) throw new AppError('registry_fenced', { detail: `upgrade ${fence.upgradeId}` });
    if (ifMatch !== undefined && ifMatch !== version)
      throw new AppError('resource_changed', { detail: `the registry is at version ${version}` });
    if (mode === 'external' && externalUrl !== undefined && externalUrl !== this.config.registry.externalUrl)
      await this.targets.check(externalUrl);
    // Where there is none nothing is lost by one that is not there yet.
    const isKept = row.mode === 'none' || (row.mode === 'external' && row.externalUrl === externalUrl);
    if (mode === 'external' && externalUrl !== undefined && !isKept) await this.external.assertAnswering(externalUrl);
    const change = this.registries
      .createQueryBuilder()
      .update()
      .set({ mode, externalUrl: externalUrl ?? null, version: version + 1, error: null })
      .where({ id, version });
    return this.jobs.submit({ ...request, type: applyJobType, resource: '/v1/registry' }, [change]);
  }

  /**
   * Takes the folder that is there for the storage, and starts the job that follows. Throws `storage_adoption_refused`,
   * `registry_off`, `registry_external`.
   */
  async adopt(request: JobRequest, storageId: string): Promise<Job> {
    const row = await this.rows.load();
    assertMode(row);
    const change = await this.storage.adopt(row, storageId);
    return this.jobs.submit({ ...request, type: applyJobType, resource: '/v1/registry' }, change ? [change] : []);
  }

  /** Throws `registry_off`, `registry_external`, `registry_fenced`, `registry_storage_changed`. */
  async assertLocal(): Promise<void> {
    const row = await this.rows.load();
    assertMode(row);
    if (row.fence) throw new AppError('registry_fenced', { detail: `upgrade ${row.fence.upgradeId}` });
    await this.assertStorage();
  }

  async hasItsStorage(): Promise<boolean> {
    return (await this.storage.look(await this.rows.load())) === undefined;
  }

  /** Whether the storage is there and is known to be the registry's: what is put there lies on no other disk. */
  async ownsStorage(): Promise<boolean> {
    const row = await this.rows.load();
    return row.mode === 'local' && row.recordedStorageId !== null && (await this.storage.look(row)) === undefined;
  }

  /**
   * Throws `registry_storage_changed` or `registry_storage_read_only` while nothing may be written to the storage
   * folder.
   */
  async assertStorage(): Promise<void> {
    const row = await this.rows.load();
    const changed = await this.storage.look(row);
    if (changed) throw changed;
    if (row.mode === 'local' && row.storageError) throw fromProblem(row.storageError);
  }
}

function assertMode({ mode }: RegistryEntity): void {
  if (mode === 'none') throw new AppError('registry_off');
  if (mode === 'external') throw new AppError('registry_external');
}
