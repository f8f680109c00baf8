import { ServiceClients } from '@airdock/clients/service-clients';
import { AppError } from '@airdock/core/errors';
import { parseReference, withoutDigest } from '@airdock/core/oci/reference';
import { platformTexts } from '@airdock/core/oci/runs';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { atomically, chunks, columns, isUniqueViolation, now } from '@airdock/platform/database';
import { cursorId, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { type RegistryUse, type RequiredRegistry, requireRegistry } from '@airdock/registry/access/require-registry';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit from 'p-limit';
import { In, type Repository } from 'typeorm';
import { ImageEntity } from './image.entity.js';
import type { Image, ImageListQuery, ImageState } from './image.schema.js';

const checksAtOnce = 8;

/** What is known of an image that is complete in the registry. */
export type RecordedImage = Pick<
  ImageEntity,
  | 'upstream'
  | 'localReferences'
  | 'digest'
  | 'mediaType'
  | 'imageIds'
  | 'platforms'
  | 'zstdPlatforms'
  | 'parts'
  | 'sizeBytes'
  | 'bundleId'
>;

/** As others work with it. */
export type CatalogueImage = Pick<ImageEntity, 'upstream' | 'localReferences' | 'digest' | 'parts'> & {
  names: string[];
};

/** The catalogue: what was pushed, and whether it is still there. */
@Injectable()
export class ImageService {
  constructor(
    @InjectRepository(ImageEntity, 'image') private readonly images: Repository<ImageEntity>,
    private readonly clients: ServiceClients,
  ) {}

  /** Where images are, to look at them. Throws `registry_off`, `registry_unavailable`. */
  registry(): Promise<RequiredRegistry> {
    return requireRegistry(this.clients.registry, { waits: false, use: 'look' });
  }

  /**
   * For a job that relies on what it finds there, and writes unless its `use` is another; after the garbage collection
   * if one is under way. Throws as `registry`, and `registry_collecting`.
   */
  registryForJob(
    { signal, progress }: Pick<JobContext, 'signal' | 'progress'>,
    use: RegistryUse = 'write',
  ): Promise<RequiredRegistry> {
    return requireRegistry(this.clients.registry, {
      use,
      signal,
      onWait: () => progress({ phase: 'waiting for a garbage collection' }),
    });
  }

  /**
   * For a job that has read, before it says that something is missing. Throws `registry_storage_changed` when the disk
   * went away meanwhile, of which nothing can be said. Waits for no garbage collection: that waits for the job.
   */
  async assertStorage(): Promise<void> {
    await this.registryToRead();
  }

  /** Where the images are that were there before. Throws `registry_storage_changed` on another disk. */
  registryToRead(): Promise<RequiredRegistry> {
    return requireRegistry(this.clients.registry, { waits: false, use: 'read' });
  }

  /**
   * Throws `registry_fenced`, `registry_storage_changed` and `registry_storage_read_only` too: for what changes the
   * registry.
   */
  async openRegistry(): Promise<RequiredRegistry> {
    const registry = await requireRegistry(this.clients.registry, { waits: false });
    if (registry.isFenced) throw new AppError('registry_fenced');
    return registry;
  }

  async list({ search, digest, platform, bundleId, sort, limit, cursor }: ImageListQuery): Promise<Page<Image>> {
    const query = this.images.createQueryBuilder('image').take(limit + 1);
    // Sizes are decimal text: of two the shorter is the smaller one.
    if (sort === 'smallest')
      query
        .addSelect('LENGTH(image.sizeBytes)', 'digits')
        .orderBy('digits')
        .addOrderBy('image.sizeBytes')
        .addOrderBy('image.id');
    else query.orderBy('image.id', 'DESC');
    const part = (text: string) => `%${text.replaceAll(/[%_\\]/g, '')}%`;
    if (cursor && sort === 'smallest') {
      const isAfter =
        'LENGTH(image.sizeBytes) > LENGTH(:size) OR LENGTH(image.sizeBytes) = LENGTH(:size) AND (image.sizeBytes > :size OR image.sizeBytes = :size AND image.id > :id)';
      query.andWhere(`(${isAfter})`, sizeCursor(cursor));
    } else if (cursor) query.andWhere('image.id < :id', { id: cursorId(cursor) });
    if (search)
      query.andWhere('(image.upstream LIKE :search OR image.localReferences LIKE :search)', { search: part(search) });
    if (digest) query.andWhere('image.digest = :digest', { digest });
    if (platform) {
      // A list of texts, each in quotes.
      const texts = platformTexts(platform).map(
        (text) => `%"${text.replaceAll(/[%_"\\]/g, '')}${text.endsWith('/') ? '' : '"'}%`,
      );
      const conditions = texts.map((_, index) => `image.platforms LIKE :platform${index}`);
      query.andWhere(
        `(${conditions.join(' OR ')})`,
        Object.fromEntries(texts.map((text, index) => [`platform${index}`, text])),
      );
    }
    if (bundleId) query.andWhere('(image.bundleId = :bundleId OR image.firstBundleId = :bundleId)', { bundleId });
    const found = await query.getMany();
    const items = found.slice(0, limit);
    const last = found.length > limit ? items.at(-1) : undefined;
    return {
      items: items.map(toResource),
      nextCursor: last && (sort === 'smallest' ? `${last.sizeBytes}-${last.id}` : last.id),
    };
  }

  async get(id: string): Promise<Image> {
    return toResource(await getRow(this.images, id));
  }

  /** The whole catalogue. */
  async all(): Promise<CatalogueImage[]> {
    const rows = await this.images.find({
      select: { upstream: true, localReferences: true, digest: true, parts: true },
    });
    return rows.map(({ upstream, localReferences, digest, parts }) => ({
      upstream,
      names: [upstream],
      localReferences,
      digest,
      parts,
    }));
  }

  /** Notes images that are complete in the registry, in parts of 50, each all or none. */
  async record(images: readonly RecordedImage[]): Promise<void> {
    for (const chunk of chunks(images, 50)) {
      // Another push may note the same image at the same time.
      for (let attempt = 1; ; attempt++) {
        const known = new Set(
          (await this.images.findBy({ upstream: In(chunk.map(({ upstream }) => upstream)) })).map(
            ({ upstream }) => upstream,
          ),
        );
        const statements = chunk.map((image) => {
          const row = columns<ImageEntity>({ ...image, pushedAt: now() });
          const first = columns<ImageEntity>({ id: newId(), firstBundleId: image.bundleId, firstPushedAt: now() });
          return known.has(image.upstream)
            ? this.images.createQueryBuilder().update().set(row).where({ upstream: image.upstream })
            : this.images
                .createQueryBuilder()
                .insert()
                .values({ ...row, ...first });
        });
        try {
          if (await atomically(this.images.manager.dataSource, statements)) break;
        } catch (error) {
          if (!isUniqueViolation(error)) throw error;
        }
        if (attempt === 5) throw new AppError('dependency_unavailable', { detail: 'the catalogue changes too fast' });
      }
      // A name with tag and digest was an upstream of its own once.
      await this.images.delete({
        upstream: In(
          chunk
            .filter(({ upstream }) => !upstream.includes('@'))
            .map(({ upstream, digest }) => `${upstream}@${digest}`),
        ),
      });
    }
  }

  /**
   * What the registry serves of these upstream references now: asked of the registry itself, not of the catalogue. In
   * their order. Throws `registry_off`, `registry_unavailable`.
   */
  async states(upstreams: readonly string[]): Promise<ImageState[]> {
    const names = upstreams.map(withoutDigest);
    const known = new Map<string, ImageEntity>();
    for (const chunk of chunks(names))
      for (const row of await this.images.findBy({ upstream: In(chunk) })) known.set(row.upstream, row);
    const { address } = await this.registry();
    await using registry = new RegistryClient(address);
    const limit = pLimit(checksAtOnce);
    return await Promise.all(
      upstreams.map((upstream, index) =>
        limit(async (): Promise<ImageState> => {
          const row = known.get(names[index] ?? '');
          const [first] = row?.localReferences ?? [];
          if (!row || !first)
            return {
              upstream,
              state: 'missing',
              localReference: null,
              digest: null,
              platforms: [],
              zstdPlatforms: [],
              sizeBytes: null,
            };
          const { repository, tag } = parseReference(first);
          const digest = (await registry.headManifest(repository, tag ?? row.digest))?.digest;
          const wanted = parseReference(upstream).digest ?? row.digest;
          const state = !digest ? 'missing' : digest === row.digest && digest === wanted ? 'present' : 'changed';
          const { platforms, zstdPlatforms } = row;
          return {
            upstream,
            state,
            localReference: first,
            digest: digest ?? null,
            platforms,
            zstdPlatforms: zstdPlatforms ?? [],
            sizeBytes: Number(row.sizeBytes),
          };
        }),
      ),
    );
  }
}

/** With the size, since the image may be gone by the time of the next page. Throws `cursor_invalid`. */
function sizeCursor(cursor: string): { size: string; id: string } {
  const [, size, id] = /^(\d{1,15})-(.+)$/.exec(cursor) ?? [];
  if (size === undefined || id === undefined) throw new AppError('cursor_invalid');
  return { size, id: cursorId(id) };
}

const toResource = ({ parts, ...row }: ImageEntity): Image => ({
  ...row,
  zstdPlatforms: row.zstdPlatforms ?? [],
  sizeBytes: Number(row.sizeBytes),
  layers: parts
    .filter(({ kind }) => kind === 'layer')
    .map(({ digest, size, platform }) => ({ digest, sizeBytes: size, platform: platform ?? null })),
  companions: parts.filter(({ kind }) => kind === 'companion').map(({ digest }) => digest),
});
