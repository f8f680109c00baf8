import { AppError } from '@airdock/core/errors';
import { pollUntil } from '@airdock/core/poll-until';
import { CONFIG, type Config } from '@airdock/platform/config';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job, JobState } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import {
  type CollectOptions,
  RegistryCollector,
  type Sweep,
  type SweepStep,
} from '@airdock/registry/folder/registry-collector';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { CollectionClaimService } from '../registry/collection-claim.service.js';
import { RegistryService } from '../registry/registry.service.js';
import { RegistryWatchService } from '../registry-engine/registry-watch.service.js';
import { GarbageCollectionEntity } from './garbage-collection.entity.js';
import type { CreateGarbageCollection, Garbage, GarbageCollection } from './garbage-collection.schema.js';
import { RegistryUsers } from './registry-users.service.js';

export const collectJobType = 'registry.collect-garbage';
const hourMs = 60 * 60 * 1000;
const lookMs = 1_000;

const phases: Record<SweepStep, string> = {
  looked: 'remove links',
  unlinked: 'look again',
  lookedAgain: 'set aside',
  setAside: 'look a last time',
  settled: 'free',
  condemned: 'free',
  removed: 'done',
};

/** Frees what nothing in the local registry needs. How, and why in this order: docs/adr/0011-garbage-collection.md. */
@Injectable()
export class GarbageCollectionService {
  private readonly collector: RegistryCollector;
  /** Of this process; only one process works for the registry. */
  private isRunning = false;
  private recovering: Promise<void> | undefined;

  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(GarbageCollectionEntity, 'registry')
    private readonly collections: Repository<GarbageCollectionEntity>,
    private readonly registry: RegistryService,
    private readonly claims: CollectionClaimService,
    private readonly watch: RegistryWatchService,
    private readonly users: RegistryUsers,
    private readonly jobs: JobsService,
  ) {
    this.collector = new RegistryCollector(config.registry.storageDir);
  }

  /** Throws `registry_off`, `registry_external`, `collection_running`. */
  async create(request: JobRequest, { dryRun, protectHours, waitMinutes }: CreateGarbageCollection): Promise<Job> {
    const first = await this.jobs.findRequested(request.requestKey);
    if (first) return first;
    await this.registry.assertLocal();
    const id = newId();
    const row: GarbageCollectionEntity = {
      ...{ id, dryRun, protectHours: protectHours ?? this.config.registry.garbageCollection.protectHours, waitMinutes },
      ...{ estimate: null, sweeps: {}, jobId: request.id, createdAt: now() },
    };
    const claim = await this.claims.claim(request.id);
    try {
      return await this.jobs.submit(
        { ...request, type: collectJobType, resource: `/v1/registry/garbage-collections/${id}` },
        [claim, this.collections.createQueryBuilder().insert().values(columns(row))],
      );
    } catch (error) {
      if (!(error instanceof AppError && error.code === 'resource_changed')) throw error;
      // Says which.
      await this.claims.claim(request.id);
      throw new AppError('collection_running', { detail: 'another one was begun, and has ended' });
    }
  }

  list(query: PageQuery): Promise<Page<GarbageCollection>> {
    return findPageWithState(this.collections, this.jobs, query, toResource);
  }

  get(id: string): Promise<GarbageCollection> {
    return getWithState(this.collections, this.jobs, id, toResource);
  }

  /** A run that was cut short has only set things aside: they are brought back, and it begins anew. */
  @RunsJob(collectJobType, { concurrency: 1 })
  async run(context: JobContext): Promise<Record<string, unknown>> {
    this.isRunning = true;
    try {
      await this.recovering?.catch(() => undefined);
      return await this.collect(context);
    } finally {
      this.isRunning = false;
    }
  }

  private async collect({ resourceId, jobId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const row = await getRow(this.collections, resourceId);
    await this.registry.assertLocal();
    await this.claims.retake(jobId);
    await this.collector.recover(async (sweep) => {
      await this.note(sweep);
      // What was swept stays until its layers are forgotten: image-svc may not have answered.
      await this.keepOthersAway(row, jobId, signal, progress);
      await this.users.forgetLayers();
    });
    await this.claims.setCollecting(jobId, false);
    const { uploadHours } = this.config.registry.garbageCollection;
    const options: CollectOptions = {
      protectMs: row.protectHours * hourMs,
      uploadMs: uploadHours * hourMs,
      needed: () => this.users.needed(),
      signal,
    };
    progress({ phase: 'look' });
    const estimate = await this.collector.estimate(options);
    const { sweeps } = await getRow(this.collections, resourceId);
    if (Object.keys(sweeps).length === 0) await this.collections.update({ id: row.id }, { estimate });
    const { blobs, revisions, links, uploads } = estimate;
    if (row.dryRun) return { dryRun: true, blobs, bytes: estimate.bytes };
    // On a full disk the first has room to set a part aside, and makes more.
    if (blobs + revisions + links + uploads > 0) while (await this.sweep(row, jobId, options, progress));
    const { freed } = await this.get(resourceId);
    return { blobs: freed?.blobs ?? 0, bytes: freed?.bytes ?? 0 };
  }

  /** Puts right what collections have left that were cut short, unless one will do that itself. */
  async recover(): Promise<void> {
    // What lies in another folder is another registry's.
    if (!(await this.registry.hasItsStorage()) || !(await this.collector.hasLeftovers()) || (await this.claims.open()))
      return;
    if (this.isRunning) return;
    this.recovering ??= this.collector
      .recover((sweep) => this.note(sweep))
      .finally(() => {
        this.recovering = undefined;
      });
    await this.recovering;
  }

  /** True when there is more to sweep. */
  private async sweep(
    row: GarbageCollectionEntity,
    jobId: string,
    options: CollectOptions,
    progress: JobContext['progress'],
  ): Promise<boolean> {
    let isPartial: boolean;
    try {
      await this.keepOthersAway(row, jobId, options.signal, progress);
      progress({ phase: 'look' });
      const sweep = await this.collector.sweep({
        ...options,
        owner: row.id,
        onStep: (step) => progress({ phase: phases[step] }),
        onProgress: progress,
      });
      await this.note(sweep);
      await this.registry.assertStorage();
      await this.users.forgetLayers();
      // Nobody sees any more what is left to do.
      await this.claims.setCollecting(jobId, false);
      await sweep.remove();
      isPartial = sweep.isPartial;
    } finally {
      await this.claims.setCollecting(jobId, false);
    }
    await this.watch.measure();
    return isPartial;
  }

  /**
   * Returns when no job of another service relies on the registry, and none will before `setCollecting(…, false)`:
   * first the mark, then the look at them; they are marked as running first, and then look at the mark. While some run
   * there is no mark, or those that wait for it would be waited for. Throws `registry_busy`.
   */
  private async keepOthersAway(
    { waitMinutes }: GarbageCollectionEntity,
    jobId: string,
    signal: AbortSignal | undefined,
    progress: JobContext['progress'],
  ) {
    let running: Awaited<ReturnType<RegistryUsers['runningJobs']>> = [];
    const isAlone = await pollUntil({ everyMs: lookMs, timeoutMs: waitMinutes * 60_000, signal }, async () => {
      running = await this.users.runningJobs();
      if (running.length === 0) {
        await this.claims.setCollecting(jobId, true);
        running = await this.users.runningJobs();
        if (running.length === 0) return true;
        await this.claims.setCollecting(jobId, false);
      }
      progress({ phase: 'waiting for running jobs' });
      return undefined;
    });
    if (isAlone) return;
    throw new AppError('registry_busy', {
      detail: `${running
        .slice(0, 5)
        .map(({ id, type }) => `${type} ${id}`)
        .join(', ')} after ${waitMinutes} minutes`,
      jobs: running,
    });
  }

  private async note({ id, owner, freed }: Sweep): Promise<void> {
    const row = await this.collections.findOneBy({ id: owner });
    if (row)
      await this.collections.update(
        { id: owner },
        columns<GarbageCollectionEntity>({ sweeps: { ...row.sweeps, [id]: freed } }),
      );
  }
}

function toResource({ sweeps, ...row }: GarbageCollectionEntity, state: JobState): GarbageCollection {
  const all = Object.values(sweeps);
  return { ...row, state, freed: all.length > 0 ? all.reduce(add) : null };
}

const add = (a: Garbage, b: Garbage): Garbage => ({
  blobs: a.blobs + b.blobs,
  bytes: a.bytes + b.bytes,
  revisions: a.revisions + b.revisions,
  links: a.links + b.links,
  uploads: a.uploads + b.uploads,
  repositories: [...a.repositories, ...b.repositories],
  largest: [...a.largest, ...b.largest],
});
