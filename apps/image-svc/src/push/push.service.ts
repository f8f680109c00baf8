import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError, toProblem } from '@airdock/core/errors';
import { formatPlatform } from '@airdock/core/oci/manifest';
import { isPlatformWanted } from '@airdock/core/oci/runs';
import { matchesPattern, selectedName, selectImages } from '@airdock/core/oci/select-images';
import { pollUntil } from '@airdock/core/poll-until';
import type { ImageSource, UnusableImage } from '@airdock/oci/image/image-source';
import { filterPlatforms } from '@airdock/oci/image/platform-filter';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { UploadSessions } from '@airdock/oci/registry-client/upload-sessions';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { Job, JobState } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { findPageWithState, getWithState } from '@airdock/platform/jobs/job-resource';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import { type CopiedImage, copyImages, failureOf, type ImageToCopy } from '@airdock/registry/copy/copy-image';
import { planCopy } from '@airdock/registry/copy/plan-copy';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BundleService } from '../bundle/bundle.service.js';
import { ImageService } from '../image/image.service.js';
import { type LocalName, LocalNamesService, refuseCollisions } from '../image/local-names.service.js';
import { toSeenImage } from '../image/seen-image.schema.js';
import { PushPlanService, type PushTask } from '../push-plan/push-plan.service.js';
import { PushEntity } from './push.entity.js';
import type { CreatePush, Push, PushedImage } from './push.schema.js';
import { PushSpaceService } from './push-space.service.js';

const fencePauseMs = 2_000;

export const pushJobType = 'image.push';
const recordAtOnce = 50;
const abandonedMs = 24 * 60 * 60 * 1000;
const shownItems = 8;
const shownParts = 16;

/** Brings the images of a bundle into the registry. */
@Injectable()
export class PushService {
  constructor(
    @InjectRepository(PushEntity, 'image') private readonly pushes: Repository<PushEntity>,
    private readonly bundles: BundleService,
    private readonly images: ImageService,
    private readonly names: LocalNamesService,
    private readonly plans: PushPlanService,
    private readonly space: PushSpaceService,
    private readonly jobs: JobsService,
  ) {}

  /** Throws `bundle_not_ready`, `image_not_found`, `image_name_collision`, `registry_off`. */
  async create(
    request: JobRequest,
    { bundleId, images, platforms, naming, winners, dryRun }: CreatePush,
  ): Promise<Job> {
    const seen = await this.bundles.images(bundleId);
    const leftOut = unusableOf(await this.bundles.unusable(bundleId), seen, images);
    const isWanted = (own: string) => platforms?.some((platform) => isPlatformWanted(own, platform)) ?? true;
    const selected = selectImages(
      seen.filter((image) => image.platforms.length === 0 || image.platforms.some(isWanted)),
      images,
    );
    const assigned = dryRun ? undefined : this.names.assign(selected, { kinds: naming, winners });
    const [names] = await Promise.all([assigned, dryRun ? this.images.registry() : this.images.openRegistry()]);
    refuseCollisions(names?.collisions ?? []);
    const id = newId();
    const row = columns<PushEntity>({
      id,
      bundleId,
      images: images ?? null,
      platforms: platforms ?? null,
      naming: naming ?? null,
      winners: winners ?? null,
      dryRun,
      plan: null,
      results: null,
      leftOut,
      reservedBytes: '0',
      jobId: request.id,
      createdAt: now(),
    });
    return this.jobs.submit({ ...request, type: pushJobType, resource: `/v1/pushes/${id}` }, [
      this.pushes.createQueryBuilder().insert().values(row),
    ]);
  }

  list(query: PageQuery): Promise<Page<Push>> {
    return findPageWithState(this.pushes, this.jobs, query, toResource);
  }

  get(id: string): Promise<Push> {
    return getWithState(this.pushes, this.jobs, id, toResource);
  }

  /**
   * Pushes what is missing. A failed image does not stop the others; the job fails afterwards with the first failure,
   * and a retry pushes only what is missing then.
   */
  @RunsJob(pushJobType)
  async run(context: JobContext): Promise<Record<string, unknown>> {
    const { resourceId, signal, progress } = context;
    const push = await getRow(this.pushes, resourceId);
    const use = push.dryRun ? 'look' : 'write';
    const target = await pollUntil({ everyMs: fencePauseMs, signal }, async () => {
      const found = await this.images.registryForJob(context, use);
      if (!found.isFenced || push.dryRun) return found;
      progress({ phase: 'waiting for the upgrade of the DU' });
      return undefined;
    });
    await using registry = new RegistryClient(target.address);
    await using source = await this.open(push, signal);
    const images = selectImages(source.images, push.images ?? undefined);
    const rule = { kinds: push.naming ?? undefined, winners: push.winners ?? undefined };
    const task = { source, images, rule, target, registry };
    progress({ phase: 'compare', itemsTotal: images.length });
    if (push.dryRun) {
      const plan = await this.plans.plan(task, signal);
      await this.pushes.update({ id: push.id }, columns<PushEntity>({ plan }));
      return {
        images: plan.images.length,
        missingBytes: plan.missingBytes,
        collisions: plan.collisions.length,
        ...leftOutOf(push),
      };
    }
    const localNames = await this.names.reserve(images.map(toSeenImage), rule);
    const toCopy = images.map((image, index) => ({ image, names: localNames[index] as LocalName[] }));
    const sessions = new UploadSessions(join(this.bundles.workDir, 'uploads', push.id), target.storageDir ?? undefined);
    try {
      const present = await this.reserveSpace(push.id, toCopy, task, signal);
      const copied = await this.copy(push, toCopy, present, task, sessions, context);
      return { images: copied.length, ...leftOutOf(push) };
    } catch (error) {
      // A worker that shuts down, or a registry that is away for a while: the next run goes on with what has begun.
      const isResumable = signal.aborted
        ? (signal.reason as { code?: string }).code !== 'job_cancelled'
        : error instanceof AppError && error.family === 'unavailable';
      if (!isResumable) await sessions.discard((session) => registry.cancelUpload(session));
      throw error;
    } finally {
      await this.space.release(push.id);
    }
  }

  /** Gives uploads up that no push went on with for a day. Returns how many pushes they were of. */
  async sweep(): Promise<number> {
    const folder = join(this.bundles.workDir, 'uploads');
    const old: string[] = [];
    for (const name of await readdir(folder).catch(() => [])) {
      const { mtimeMs = Date.now() } = (await stat(join(folder, name)).catch(() => undefined)) ?? {};
      if (Date.now() - mtimeMs > abandonedMs) old.push(join(folder, name));
    }
    if (old.length === 0) return 0;
    const { address, storageDir } = await this.images.openRegistry();
    await using registry = new RegistryClient(address);
    for (const path of old)
      await new UploadSessions(path, storageDir ?? undefined).discard((session) => registry.cancelUpload(session));
    return old.length;
  }

  private async open({ bundleId, platforms }: PushEntity, signal: AbortSignal): Promise<ImageSource> {
    const source = await this.bundles.open(bundleId, signal);
    if (!platforms) return source;
    try {
      return await filterPlatforms(source, platforms);
    } catch (error) {
      await source[Symbol.asyncDispose]();
      throw error;
    }
  }

  private async copy(
    push: PushEntity,
    toCopy: ImageToCopy[],
    present: ReadonlySet<ImageToCopy>,
    { source, target, registry }: PushTask,
    sessions: UploadSessions,
    { signal, progress }: JobContext,
  ): Promise<CopiedImage[]> {
    const complete: CopiedImage[] = [];
    let recorded: Promise<void> = Promise.resolve();
    // What is complete in the registry is in the catalogue, also when the push is cancelled afterwards.
    const record = () => {
      const batch = complete.splice(0);
      recorded = recorded.then(() => this.record(batch, push));
      // A failure is thrown by the last call, which is awaited; until then it must not end the process.
      recorded.catch(() => undefined);
      return recorded;
    };
    let copied: CopiedImage[];
    try {
      copied = await copyImages({
        source,
        registry,
        storage: target.storage,
        repairs: target.repairs,
        sessions,
        present,
        images: toCopy,
        signal,
        onProgress: ({ active, ...done }) =>
          progress({ phase: 'push', ...done, items: () => active(shownItems, shownParts) }),
        onImage: (image) => {
          if (!image.error && complete.push(image) >= recordAtOnce) void record();
        },
      });
    } finally {
      await record();
    }
    const results = copied.map(
      ({ image, digest, names, error }): PushedImage => ({
        names: image.names,
        digest: digest ?? null,
        localReferences: names.map((name) => `${this.names.localRegistry}/${name}`),
        error: error ? toProblem(error) : null,
      }),
    );
    await this.names.release(copied.flatMap(({ image, error }) => (error ? image.names : [])));
    await this.pushes.update({ id: push.id }, columns<PushEntity>({ results }));
    const failure = failureOf(copied);
    if (failure) throw failure;
    await rm(join(this.bundles.workDir, 'uploads', push.id), { recursive: true, force: true });
    return copied;
  }

  private async record(copied: readonly CopiedImage[], { bundleId, naming }: PushEntity): Promise<void> {
    const rows = copied.flatMap(({ image, digest, mediaType, parts, names }) => {
      const references = names.map((name) => `${this.names.localRegistry}/${name}`);
      return image.names.map((upstream) => ({
        upstream,
        // The names that this reference stands for; all of the image when it shares those of another.
        localReferences: this.ownReferences(upstream, references, naming),
        digest: digest ?? '',
        mediaType: mediaType ?? '',
        imageIds: image.configDigests,
        platforms: image.platforms.map(formatPlatform),
        zstdPlatforms: (image.zstdPlatforms ?? []).map(formatPlatform),
        parts,
        sizeBytes: String(parts.reduce((sum, { size }) => sum + size, 0)),
        bundleId,
      }));
    });
    await this.images.record(rows);
  }

  private ownReferences(upstream: string, references: readonly string[], naming: PushEntity['naming']): string[] {
    const own = this.names.namesOf(upstream, { kinds: naming ?? undefined }).map(({ full }) => full);
    return references.filter((reference) => own.includes(reference));
  }

  /** Promises the missing bytes to this push. Returns the images that are there already. */
  private async reserveSpace(
    pushId: string,
    images: ImageToCopy[],
    { source, target: { storage, repairs, storageDir }, registry }: PushTask,
    signal: AbortSignal,
  ): Promise<ReadonlySet<ImageToCopy>> {
    // The disk of a registry of others is not ours to see.
    if (storageDir === null) return new Set();
    const { images: planned, missingBytes } = await planCopy({ source, images, registry, storage, repairs, signal });
    if (missingBytes > 0) await this.space.reserve(pushId, missingBytes, storageDir);
    return new Set(images.filter((_, index) => planned[index]?.state === 'present'));
  }
}

const toResource = (row: PushEntity, state: JobState): Push => ({
  ...row,
  leftOut: row.leftOut ?? [],
  state,
});

/** For the result of a job, which webhooks carry. */
const leftOutOf = ({ leftOut }: PushEntity) =>
  leftOut?.length ? { leftOut: leftOut.slice(0, shownItems), leftOutCount: leftOut.length } : {};

/** What a selection would have taken too. Throws the reason of the first that it names in full. */
function unusableOf(
  unusable: readonly UnusableImage[],
  seen: readonly { names: string[] }[],
  selection: readonly string[] | undefined,
): UnusableImage[] {
  if (!selection) return [...unusable];
  const [whole, wanted] = [new Set(seen.flatMap((image) => image.names)), new Set(selection.map(selectedName))];
  const isAsked = (name: string | null): name is string => name !== null && wanted.has(selectedName(name));
  const asked = unusable.find(({ name }) => isAsked(name) && !whole.has(selectedName(name)));
  if (asked) throw new AppError(asked.code, { detail: `${asked.name}: ${asked.detail}`, image: asked.name });
  return unusable.filter(
    ({ name }) => isAsked(name) || (name !== null && selection.some((pattern) => matchesPattern(name, pattern))),
  );
}
