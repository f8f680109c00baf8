import { AppError } from '@airdock/core/errors';
import { isDigest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { formatReference, parseReference, upstreamOf, withoutDigest } from '@airdock/core/oci/reference';
import { companionSubject } from '@airdock/oci/image/image-names';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { chunks } from '@airdock/platform/database';
import type { JobRequest } from '@airdock/platform/http/idempotency';
import { getRow } from '@airdock/platform/http/page';
import type { Job } from '@airdock/platform/jobs/job.schema';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { RunsJob } from '@airdock/platform/jobs/runs-job';
import type { ImagePart } from '@airdock/registry/copy/copy-image';
import { describeRegistryImage } from '@airdock/registry/copy/registry-image';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit, { type LimitFunction } from 'p-limit';
import { In, type Repository } from 'typeorm';
import { ImageEntity, ImageNameEntity } from './image.entity.js';
import type { DeleteImageQuery, ImageDeletion, ImageInUse } from './image.schema.js';
import { ImageService, type RecordedImage } from './image.service.js';
import { ImageUsersService } from './image-users.service.js';
import { LocalNamesService } from './local-names.service.js';

export const rebuildJobType = 'image.rebuild-catalogue';
const requestsAtOnce = 8;

interface FoundTag {
  repository: string;
  tag: string;
  root: Descriptor;
}

/** Keeps catalogue and registry the same: removes from both, and makes the catalogue anew from the registry. */
@Injectable()
export class CatalogueService {
  constructor(
    @InjectRepository(ImageEntity, 'image') private readonly rows: Repository<ImageEntity>,
    @InjectRepository(ImageNameEntity, 'image') private readonly imageNames: Repository<ImageNameEntity>,
    private readonly images: ImageService,
    private readonly names: LocalNamesService,
    private readonly users: ImageUsersService,
    private readonly jobs: JobsService,
  ) {}

  /** One image, with who needs it. */
  async get(id: string): Promise<ImageInUse> {
    const image = await this.images.get(id);
    const usedBy = await this.users.usersOf([image.upstream]).catch((error: unknown) => {
      if (error instanceof AppError && error.code === 'dependency_unavailable') return null;
      throw error;
    });
    return { ...image, usedBy };
  }

  /** Removes the names of one upstream reference. What they lead to goes with the last name that does. */
  async remove(id: string, query: DeleteImageQuery): Promise<ImageDeletion> {
    return this.removeRows([await getRow(this.rows, id)], query);
  }

  /** Removes a digest under all of its names. Throws `image_not_found`. */
  async removeDigest(digest: string, query: DeleteImageQuery): Promise<ImageDeletion> {
    const rows = await this.rows.findBy({ digest });
    if (rows.length === 0) throw new AppError('image_not_found', { detail: digest, digest });
    return this.removeRows(rows, query);
  }

  /**
   * Throws `image_in_use`. The registry first: a row without an image can be removed again, an image without a row
   * would be forgotten.
   */
  private async removeRows(rows: readonly ImageEntity[], { dryRun, force }: DeleteImageQuery): Promise<ImageDeletion> {
    const usedBy = force ? null : await this.users.usersOf(rows.map(({ upstream }) => upstream));
    const users = Object.entries(usedBy ?? {}).flatMap(([kind, list]) =>
      list.map(({ name }) => `${kind === 'clusters' ? 'cluster' : 'image set'} ${name}`),
    );
    if (users.length > 0 && !dryRun) throw new AppError('image_in_use', { detail: users.join(', '), usedBy });
    const others = (await this.rows.find()).filter(({ id }) => !rows.some((row) => row.id === id));
    const kept = new Set(others.flatMap(({ parts }) => parts.map(({ digest }) => digest)));
    const parts = new Map(rows.flatMap((row) => row.parts).map((part) => [part.digest, part]));
    const sum = (list: ImagePart[]) => list.reduce((total, { size }) => total + size, 0);
    const [freed, shared] = [
      [...parts.values()].filter(({ digest }) => !kept.has(digest)),
      [...parts.values()].filter(({ digest }) => kept.has(digest)),
    ];
    // A name that another upstream shares, because it is the same image, still leads somewhere.
    const keptNames = new Set(others.flatMap(({ localReferences }) => localReferences));
    const localReferences = [...new Set(rows.flatMap((row) => row.localReferences))].filter(
      (reference) => !keptNames.has(reference),
    );
    if (!dryRun) {
      const { address } = await this.images.openRegistry();
      await using registry = new RegistryClient(address);
      for (const row of rows) await this.removeFromRegistry(registry, row, localReferences, others);
      await this.forget(rows.map(({ upstream }) => upstream));
    }
    return {
      dryRun,
      upstreams: rows.map(({ upstream }) => upstream),
      localReferences,
      freedBytes: sum(freed),
      sharedBytes: sum(shared),
      usedBy,
    };
  }

  private async forget(upstreams: readonly string[]): Promise<void> {
    for (const chunk of chunks(upstreams)) {
      await this.imageNames.delete({ upstream: In(chunk) });
      await this.rows.delete({ upstream: In(chunk) });
    }
  }

  private async removeFromRegistry(
    registry: RegistryClient,
    row: ImageEntity,
    removed: readonly string[],
    others: readonly ImageEntity[],
  ): Promise<void> {
    const { digest } = row;
    if (!isDigest(digest)) return;
    // Also as one platform of another image.
    const inUse = new Set(
      others
        .filter((other) => other.parts.some((part) => part.digest === digest))
        .flatMap((other) => other.localReferences.map((name) => parseReference(name).repository)),
    );
    for (const { repository, tag } of row.localReferences
      .filter((name) => removed.includes(name))
      .map(parseReference)) {
      // Someone else may have pushed something else under the name.
      if (tag && (await registry.headManifest(repository, tag))?.digest === digest)
        await registry.deleteTag(repository, tag);
      if (inUse.has(repository)) continue;
      const own = new Set(row.parts.filter(({ kind }) => kind === 'manifest').map((part) => part.digest));
      for (const other of await registry.listTags(repository)) {
        const subject = companionSubject(other);
        if (subject && own.has(subject)) await registry.deleteTag(repository, other);
      }
      await registry.deleteManifest(repository, digest);
    }
  }

  start(request: JobRequest): Promise<Job> {
    return this.jobs.submit({ ...request, type: rebuildJobType, resource: '/v1/images' });
  }

  /**
   * Reads all tags of the registry. A name below its upstream tells the upstream; a flat name belongs to the upstream
   * that would be rewritten to it and is the same image, else to what the catalogue knows, else to itself. Rows whose
   * names have all gone are removed; of the others, bundle and time of the first push stay.
   */
  @RunsJob(rebuildJobType)
  async rebuild(context: JobContext): Promise<Record<string, unknown>> {
    const { signal, progress } = context;
    const { address } = await this.images.registryForJob(context, 'read');
    await using registry = new RegistryClient(address);
    const limit = pLimit(requestsAtOnce);
    progress({ phase: 'list' });
    const { found, tagsOf } = await listTags(registry, limit, signal);
    const known = await this.rows.find();
    const upstreams = this.upstreamsOf(found, known);
    const broken: string[] = [];
    let itemsDone = 0;
    const recorded: RecordedImage[] = [];
    const describe = async (upstream: string, tags: readonly FoundTag[]) => {
      const image = await describeOrNothing(registry, tags, tagsOf, signal);
      progress({ phase: 'describe', itemsDone: ++itemsDone, itemsTotal: upstreams.size });
      if (!image) return void broken.push(upstream);
      const bundleId = known.find((each) => each.upstream === upstream)?.bundleId ?? null;
      recorded.push({ ...this.recordOf(upstream, tags, image), bundleId });
    };
    await Promise.all([...upstreams].map(([upstream, tags]) => limit(() => describe(upstream, tags))));
    await this.images.record(recorded);
    await this.names.adopt(recorded);
    const gone: string[] = [];
    for (const row of known)
      if (!upstreams.has(row.upstream) && !(await this.isThereByDigest(registry, row, signal))) gone.push(row.upstream);
    if (gone.length > 0) await this.images.assertStorage();
    await this.forget(gone);
    return { images: recorded.length, removed: gone.length, broken: broken.slice(0, 100) };
  }

  private recordOf(
    upstream: string,
    tags: readonly FoundTag[],
    image: Awaited<ReturnType<typeof describeRegistryImage>>,
  ): Omit<RecordedImage, 'bundleId'> {
    return {
      upstream,
      localReferences: tags.map(({ repository, tag }) =>
        formatReference({ registry: this.names.localRegistry, repository, tag }),
      ),
      digest: image.root.digest,
      mediaType: image.root.mediaType,
      imageIds: image.configDigests,
      platforms: image.platforms,
      zstdPlatforms: image.zstdPlatforms,
      parts: image.parts,
      sizeBytes: String(image.sizeBytes),
    };
  }

  /** No list tells of what was pushed without a tag. */
  private async isThereByDigest(
    registry: RegistryClient,
    { localReferences, digest }: ImageEntity,
    signal: AbortSignal,
  ): Promise<boolean> {
    for (const { repository, tag } of localReferences.map(parseReference))
      if (tag === undefined && (await registry.headManifest(repository, digest, { signal }))) return true;
    return false;
  }

  /** The tags of each upstream reference, the name that PMK would use first. */
  private upstreamsOf(found: readonly FoundTag[], known: readonly ImageEntity[]): Map<string, FoundTag[]> {
    const byName = new Map(found.map((each) => [`${each.repository}:${each.tag}`, each]));
    const upstreams = new Map<string, FoundTag[]>();
    const taken = new Set<FoundTag>();
    const claim = (upstream: string, digest: string) => {
      const own = this.names
        .namesOf(upstream, { kinds: ['flat', 'upstream'] })
        .map(({ name }) => byName.get(name))
        .filter((each) => each?.root.digest === digest) as FoundTag[];
      for (const each of own) taken.add(each);
      if (own.length > 0) upstreams.set(upstream, own);
    };
    for (const each of found) {
      const upstream = upstreamOf(each);
      if (upstream) claim(formatReference(upstream), each.root.digest);
    }
    for (const { upstream, digest } of known)
      if (!upstreams.has(withoutDigest(upstream))) claim(withoutDigest(upstream), digest);
    for (const each of found) {
      if (taken.has(each)) continue;
      upstreams.set(
        formatReference({ registry: this.names.localRegistry, repository: each.repository, tag: each.tag }),
        [each],
      );
    }
    return upstreams;
  }
}

/** Every tag that leads to an image, and all tags of each repository. */
async function listTags(
  registry: RegistryClient,
  limit: LimitFunction,
  signal: AbortSignal,
): Promise<{ found: FoundTag[]; tagsOf: Map<string, string[]> }> {
  const tagsOf = new Map<string, string[]>();
  const found: FoundTag[] = [];
  const list = async (repository: string) => {
    const tags = await registry.listTags(repository, { signal });
    tagsOf.set(repository, tags);
    for (const tag of tags.filter((each) => !companionSubject(each))) {
      const root = await registry.headManifest(repository, tag, { signal });
      if (root) found.push({ repository, tag, root });
    }
  };
  const repositories = await registry.listRepositories({ signal });
  await Promise.all(repositories.map((repository) => limit(() => list(repository))));
  return { found, tagsOf };
}

/** Undefined for a damaged image, which must not hide all others. */
async function describeOrNothing(
  registry: RegistryClient,
  tags: readonly FoundTag[],
  tagsOf: ReadonlyMap<string, string[]>,
  signal: AbortSignal,
) {
  const [first] = tags;
  if (!first) return undefined;
  const { repository, root } = first;
  try {
    return await describeRegistryImage(registry, repository, root, tagsOf.get(repository) ?? [], signal);
  } catch (error) {
    if (error instanceof AppError && error.family !== 'unavailable') return undefined;
    throw error;
  }
}
