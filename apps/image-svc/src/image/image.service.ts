import { type RequiredRegistry, requireRegistry } from '@airdock/adapters/api-clients/require-registry';
import { ServiceClients } from '@airdock/adapters/api-clients/service-clients';
import type { SourceImage } from '@airdock/adapters/oci-client/image-source';
import { RegistryClient } from '@airdock/adapters/oci-client/registry-client';
import { AppError } from '@airdock/core/errors';
import { type Descriptor, formatPlatform } from '@airdock/core/oci/manifest';
import { formatName, localReferences, parseReference } from '@airdock/core/oci/reference';
import { isUniqueViolation, now } from '@airdock/platform/database';
import { findPage, getRow, type Page } from '@airdock/platform/http/page';
import { newId } from '@airdock/platform/ids';
import { Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import pLimit from 'p-limit';
import { In, Like, type Repository } from 'typeorm';
import { ImageEntity } from './image.entity.js';
import type { Image, ImageListQuery } from './image.schema.js';

const checksAtOnce = 8;

/** The catalogue: what was pushed, and whether it is still there. */
@Injectable()
export class ImageService {
  constructor(
    @InjectRepository(ImageEntity, 'image') private readonly images: Repository<ImageEntity>,
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

  /** Refuses images that would take a flat name from another upstream's image. Throws `image_name_collision` naming both sources. */
  async assertNoCollision(images: { names: string[]; imageIds: string[] }[]): Promise<void> {
    const taken = new Map<string, { upstream: string; identity: string }>();
    const wanted = images.flatMap(({ names, imageIds }) =>
      names.map((upstream) => ({ upstream, flatName: flatNameOf(upstream), identity: [...imageIds].sort().join() })),
    );
    for (let start = 0; start < wanted.length; start += 500) {
      const chunk = wanted.slice(start, start + 500).map(({ flatName }) => flatName);
      for (const row of await this.images.findBy({ flatName: In(chunk) }))
        taken.set(row.flatName, { upstream: row.upstream, identity: [...row.imageIds].sort().join() });
    }
    for (const { upstream, flatName, identity } of wanted) {
      const other = taken.get(flatName);
      if (other && other.upstream !== upstream && other.identity !== identity)
        throw new AppError('image_name_collision', {
          detail: `${other.upstream} and ${upstream} would both become ${flatName}`,
          name: flatName,
          sources: [other.upstream, upstream],
        });
      taken.set(flatName, { upstream, identity });
    }
  }

  /** Notes an image that is complete in the registry, under each of its upstream names. */
  async record(image: SourceImage, root: Descriptor, bundleId: string, references: string[]): Promise<void> {
    for (const upstream of image.names) {
      const own = localReferences(parseReference(upstream), '').map((reference) => `/${formatName(reference)}`);
      const row = {
        flatName: flatNameOf(upstream),
        localReferences: references.filter((reference) => own.some((name) => reference.slice(reference.indexOf('/')) === name)),
        digest: root.digest,
        mediaType: root.mediaType,
        imageIds: image.configDigests,
        platforms: image.platforms.map(formatPlatform),
        sizeBytes: String(image.sizeBytes),
        bundleId,
        pushedAt: now(),
      };
      try {
        await this.images.insert({ ...row, id: newId(), upstream, createdAt: now() });
      } catch (error) {
        if (!isUniqueViolation(error)) throw error;
        await this.images.update({ upstream }, row);
      }
    }
  }

  /** Which of these upstream references the registry cannot serve now: asked of the registry itself, not of the catalogue. */
  async missing(upstreams: string[]): Promise<string[]> {
    const known = new Map<string, ImageEntity>();
    for (let start = 0; start < upstreams.length; start += 500)
      for (const row of await this.images.findBy({ upstream: In(upstreams.slice(start, start + 500)) })) known.set(row.upstream, row);
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

/** PMK's flat name of an upstream image. */
const flatNameOf = (upstream: string): string => {
  const [first] = localReferences(parseReference(upstream), '');
  return first ? formatName(first) : upstream;
};

const toResource = (row: ImageEntity): Image => ({ ...row, sizeBytes: Number(row.sizeBytes) });
