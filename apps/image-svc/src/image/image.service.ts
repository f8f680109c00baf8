import { type RequiredRegistry, requireRegistry } from '@airdock/adapters/api-clients/require-registry';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import type { SourceImage } from '@airdock/adapters/oci-client/image-source';
import { RegistryClient } from '@airdock/adapters/oci-client/registry-client';
import { AppError } from '@airdock/core/errors';
import { type Descriptor, formatPlatform } from '@airdock/core/oci/manifest';
import { formatName, localReferences, parseReference } from '@airdock/core/oci/reference';
import { atomically, isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit from 'p-limit';
import { In, Like, Not, type Repository } from 'typeorm';
import { ImageEntity, ImageNameEntity } from './image.entity.js';
import type { Image, ImageListQuery } from './image.schema.js';

const checksAtOnce = 8;

/** The catalogue: what was pushed, and whether it is still there. */
@Injectable()
export class ImageService {
  constructor(
    @InjectRepository(ImageEntity, 'image') private readonly images: Repository<ImageEntity>,
    @InjectRepository(ImageNameEntity, 'image') private readonly imageNames: Repository<ImageNameEntity>,
    private readonly clients: ServiceClients,
  ) {}

  /** Where to push. Throws `registry_off`, `registry_unavailable`. */
  registry(): Promise<RequiredRegistry> {
    return requireRegistry(this.clients.registry);
  }

  async list({ search, ...query }: ImageListQuery): Promise<Page<Image>> {
    const { items, nextCursor } = await findPage(this.images, query, search ? { upstream: Like(`%${search.replaceAll(/[%_]/g, '')}%`) } : {});
    return { items: items.map(toResource), nextCursor };
  }

  async get(id: string): Promise<Image> {
    return toResource(await getRow(this.images, id));
  }

  /** Refuses images that would take a local name of another image. Throws `image_name_collision` naming both sources. */
  async assertNoCollision(images: { names: string[]; imageIds: string[] }[]): Promise<void> {
    const wanted = wantedNames(images);
    const taken = new Map<string, ImageNameEntity>();
    for (const chunk of chunks(wanted)) for (const row of await this.imageNames.findBy({ name: In(chunk.map(({ name }) => name)) })) taken.set(row.name, row);
    for (const mine of wanted) {
      const other = taken.get(mine.name);
      if (other && other.upstream !== mine.upstream && other.identity !== mine.identity) {
        const detail = `${other.upstream} and ${mine.upstream} would both become ${mine.name}`;
        throw new AppError('image_name_collision', { detail, name: mine.name, sources: [other.upstream, mine.upstream] });
      }
      taken.set(mine.name, mine);
    }
  }

  /** Takes the local names of images before anything of them is visible. Throws `image_name_collision` when another push was faster. */
  async reserveNames(images: { names: string[]; imageIds: string[] }[]): Promise<void> {
    for (const chunk of chunks(wantedNames(images))) await this.imageNames.createQueryBuilder().insert().values(chunk).orIgnore().execute();
    await this.assertNoCollision(images);
    // The same upstream with new content keeps its names.
    for (const { name, upstream, identity } of wantedNames(images)) await this.imageNames.update({ name, upstream, identity: Not(identity) }, { identity });
  }

  /** Gives the names of images back that did not get into the registry. */
  async releaseNames(upstreams: string[]): Promise<void> {
    const kept = new Set((await this.images.findBy({ upstream: In(upstreams) })).map(({ upstream }) => upstream));
    await this.imageNames.delete({ upstream: In(upstreams.filter((upstream) => !kept.has(upstream))) });
  }

  /** Notes images that are complete in the registry, under each of their upstream names: all or none. */
  async record(pushed: { image: SourceImage; root: Descriptor; localReferences: string[] }[], bundleId: string): Promise<void> {
    const rows = pushed.flatMap(({ image, root, localReferences }) =>
      image.names.map((upstream) => {
        const own = new Set(localReferences.filter((reference) => namesOf(upstream).includes(reference.slice(reference.indexOf('/') + 1))));
        return {
          upstream,
          localReferences: [...own],
          digest: root.digest,
          mediaType: root.mediaType,
          imageIds: image.configDigests,
          platforms: image.platforms.map(formatPlatform),
          sizeBytes: String(image.sizeBytes),
          bundleId,
          pushedAt: now(),
        };
      }),
    );
    for (const chunk of chunks(rows, 50)) {
      // Another push may note the same image at the same time.
      for (let attempt = 1; ; attempt++) {
        const known = new Set((await this.images.findBy({ upstream: In(chunk.map(({ upstream }) => upstream)) })).map(({ upstream }) => upstream));
        const statements = chunk.map((row) =>
          known.has(row.upstream)
            ? this.images.createQueryBuilder().update().set(row).where({ upstream: row.upstream })
            : this.images
                .createQueryBuilder()
                .insert()
                .values({ ...row, id: newId(), createdAt: now() }),
        );
        try {
          if (await atomically(this.images.manager.dataSource, statements)) break;
        } catch (error) {
          if (!isUniqueViolation(error)) throw error;
        }
        if (attempt === 5) throw new AppError('dependency_unavailable', { detail: 'the catalogue changes too fast' });
      }
    }
  }

  /** Which of these upstream references the registry cannot serve now: asked of the registry itself, not of the catalogue. */
  async missing(upstreams: string[]): Promise<string[]> {
    const known = new Map<string, ImageEntity>();
    for (const chunk of chunks(upstreams)) for (const row of await this.images.findBy({ upstream: In(chunk) })) known.set(row.upstream, row);
    const { url } = await this.registry();
    await using registry = new RegistryClient(url);
    const limit = pLimit(checksAtOnce);
    const there = await Promise.all(
      upstreams.map((upstream) =>
        limit(async () => {
          const row = known.get(upstream);
          const [first] = localReferences(parseReference(upstream), '');
          if (!row || !first) return false;
          return (await registry.headManifest(first.repository, first.tag ?? row.digest))?.digest === row.digest;
        }),
      ),
    );
    return upstreams.filter((_, index) => !there[index]);
  }
}

/** The names of an upstream image inside the local registry. */
const namesOf = (upstream: string): string[] => localReferences(parseReference(upstream), '').map(formatName);

/** All local names of images, each with who wants it. */
const wantedNames = (images: { names: string[]; imageIds: string[] }[]): ImageNameEntity[] =>
  images.flatMap(({ names, imageIds }) =>
    names.flatMap((upstream) => namesOf(upstream).map((name) => ({ name, upstream, identity: [...imageIds].sort().join() }))),
  );

/** Databases bound the number of parameters of one statement. */
function* chunks<T>(items: T[], size = 300): Generator<T[]> {
  for (let start = 0; start < items.length; start += size) yield items.slice(start, start + size);
}

const toResource = (row: ImageEntity): Image => ({ ...row, sizeBytes: Number(row.sizeBytes) });
