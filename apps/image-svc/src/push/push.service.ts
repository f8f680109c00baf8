import { type CopiedImage, copyImages, failureOf } from '@airdock/adapters/oci-client/copy-image';
import type { ImageSource, SourceImage } from '@airdock/adapters/oci-client/image-source';
import { RegistryClient } from '@airdock/adapters/oci-client/registry-client';
import { AppError, toProblem } from '@airdock/core/errors';
import { columns, now } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { findPage, getRow, type Page, type PageQuery } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobEntity } from '@airdock/platform/jobs/job.entity';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import type { Repository } from 'typeorm';
import { BundleService, toSeenImage } from '../bundle/bundle.service.js';
import { ImageService } from '../image/image.service.js';
import { PushEntity } from './push.entity.js';
import type { CreatePush, Push, PushedImage } from './push.schema.js';

export const pushJobType = 'image.push';
const recordAtOnce = 50;

/** Brings the images of a bundle into the registry. */
@Injectable()
export class PushService {
  constructor(
    @InjectRepository(PushEntity, 'image') private readonly pushes: Repository<PushEntity>,
    private readonly bundles: BundleService,
    private readonly images: ImageService,
    private readonly jobs: JobsService,
  ) {}

  /** Throws `bundle_not_ready`, `image_not_found`, `image_name_collision`, `registry_off`. */
  async create(request: JobRequest, { bundleId, images: selection }: CreatePush): Promise<Job> {
    const images = select(await this.bundles.images(bundleId), selection);
    await this.images.assertNoCollision(images);
    await this.images.registry();
    const id = newId();
    const row = { id, bundleId, images: selection ?? null, results: null, jobId: request.id, createdAt: now() };
    return this.jobs.submit({ ...request, type: pushJobType, resource: `/v1/pushes/${id}` }, [this.pushes.createQueryBuilder().insert().values(row)]);
  }

  async list(query: PageQuery): Promise<Page<Push>> {
    const { items, nextCursor } = await findPage(this.pushes, query);
    const jobs = await this.jobs.byIds(items.map(({ jobId }) => jobId));
    return { items: items.map((row) => toResource(row, jobs.get(row.jobId))), nextCursor };
  }

  async get(id: string): Promise<Push> {
    const row = await getRow(this.pushes, id);
    return toResource(row, await this.jobs.find(row.jobId));
  }

  private async toPushed(image: SourceImage, source: ImageSource) {
    return { image, root: await source.prepare(image), localReferences: this.bundles.localNames(image).map(({ full }) => full) };
  }

  /**
   * Pushes what is missing. A failed image does not stop the others; the job fails afterwards with the first failure, and a retry pushes only
   * what is missing then.
   */
  async run({ resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
    const push = await getRow(this.pushes, resourceId);
    const { url, storage } = await this.images.registry();
    await using registry = new RegistryClient(url);
    await using source = await this.bundles.open(push.bundleId, signal);
    const images = select(source.images, push.images ?? undefined);
    await this.images.reserveNames(images.map(toSeenImage));
    progress({ phase: 'push', itemsTotal: images.length });
    const complete: SourceImage[] = [];
    let recorded: Promise<void> = Promise.resolve();
    // What is complete in the registry is in the catalogue, also when the push is cancelled afterwards.
    const record = () => {
      const batch = complete.splice(0);
      recorded = recorded.then(async () => this.images.record(await Promise.all(batch.map((image) => this.toPushed(image, source))), push.bundleId));
      // A failure is thrown by the last call, which is awaited; until then it must not end the process.
      recorded.catch(() => undefined);
      return recorded;
    };
    let copied: CopiedImage[];
    try {
      copied = await copyImages({
        source,
        registry,
        storage,
        images: images.map((image) => ({ image, names: this.bundles.localNames(image) })),
        signal,
        onProgress: ({ bytesDone, bytesTotal, itemsDone, itemsTotal }) => progress({ phase: 'push', bytesDone, bytesTotal, itemsDone, itemsTotal }),
        onImage: ({ image, error }) => {
          if (!error && complete.push(image) >= recordAtOnce) void record();
        },
      });
    } finally {
      await record();
    }
    const results: PushedImage[] = copied.map(({ image, digest, error }) => ({
      names: image.names,
      digest: digest ?? null,
      localReferences: this.bundles.localNames(image).map(({ full }) => full),
      error: error ? toProblem(error) : null,
    }));
    await this.images.releaseNames(copied.flatMap(({ image, error }) => (error ? image.names : [])));
    await this.pushes.update({ id: push.id }, columns({ results }));
    const failure = failureOf(copied);
    if (failure) throw failure;
    return { images: results.length };
  }
}

const toResource = (row: PushEntity, job: JobEntity | undefined): Push => ({ ...row, state: job?.state ?? 'failed' });

/** The images that a selection names. Throws `image_not_found` with every name that is not there. */
function select<T extends Pick<SourceImage, 'names'>>(images: readonly T[], selection: string[] | undefined): T[] {
  if (!selection) return [...images];
  const missing = selection.filter((name) => !images.some(({ names }) => names.includes(name)));
  if (missing.length > 0) throw new AppError('image_not_found', { detail: `not in the bundle: ${missing.slice(0, 20).join(', ')}`, missing });
  return images.filter(({ names }) => names.some((name) => selection.includes(name)));
}
