import { AppError } from '@airdock/core/errors';
import {
  formatName,
  formatReference,
  localReferences,
  type NameKind,
  parseReference,
  type Reference,
} from '@airdock/core/oci/reference';
import { CONFIG, type Config } from '@airdock/platform/config';
import { atomically, chunks, columns } from '@airdock/platform/database';
import { Inject, Injectable } from '@nestjs/common';
import { InjectRepository } from '@nestjs/typeorm';
import { In, type Repository } from 'typeorm';
import { ImageEntity, ImageNameEntity } from './image.entity.js';

/** As much of an image as its names depend on. */
export interface NamedImage {
  /** Upstream references. */
  names: string[];
  imageIds: string[];
  /** Null until the layers of a docker-archive are compressed. */
  digest: string | null;
}

export interface NamingRule {
  /** Default: as configured. */
  kinds?: readonly NameKind[] | undefined;
  /** Upstream references that get a name which another image wants or has too. */
  winners?: readonly string[] | undefined;
}

export interface Collision {
  /** `repository:tag` in the local registry. */
  name: string;
  /** Upstream references. */
  sources: string[];
}

export interface LocalName {
  /** With the registry, e.g. `localhost:5100/pause:3.2`. */
  full: string;
  /** Without it, e.g. `pause:3.2`. */
  name: string;
  repository: string;
  /** Undefined for an image that is known by digest only. */
  tag: string | undefined;
}

interface Wish extends LocalName {
  upstream: string;
  identity: string;
}

/** Which names images get in the local registry, and who has them. */
@Injectable()
export class LocalNamesService {
  constructor(
    @Inject(CONFIG) private readonly config: Config,
    @InjectRepository(ImageNameEntity, 'image') private readonly imageNames: Repository<ImageNameEntity>,
    @InjectRepository(ImageEntity, 'image') private readonly images: Repository<ImageEntity>,
  ) {}

  /** `localhost:5100` */
  get localRegistry(): string {
    return `localhost:${this.config.registry.port}`;
  }

  /** All names of an upstream reference by the rule alone, the first one first. */
  namesOf(upstream: string, { kinds = this.config.naming }: NamingRule = {}): LocalName[] {
    return localReferences(parseReference(upstream), this.localRegistry, kinds).map(toLocalName);
  }

  /**
   * The names that each image would get, in the order of the images, and those that two want. A name that another image
   * has, or wants too, goes to the winner that the rule names; the same image under two upstreams may share one.
   */
  async assign(
    images: readonly NamedImage[],
    rule: NamingRule = {},
  ): Promise<{ names: LocalName[][]; collisions: Collision[] }> {
    const { granted, collisions } = await this.decide(images, rule);
    return { names: images.map((image) => this.pick(image, granted, rule)), collisions };
  }

  /**
   * Takes the names of images before anything of them is visible. Returns those of each image, in the order of the
   * images. Throws `image_name_collision` with both sources, also when another push was faster.
   */
  async reserve(images: readonly NamedImage[], rule: NamingRule = {}): Promise<LocalName[][]> {
    const first = await this.decide(images, rule);
    refuseCollisions(first.collisions);
    const rows = [...first.granted.values()].map(({ name, upstream, identity }) => ({ name, upstream, identity }));
    const absent = rows.filter(({ name }) => !first.held.has(name));
    for (const chunk of chunks(absent))
      await this.imageNames.createQueryBuilder().insert().values(chunk).orIgnore().execute();
    // Another push may have been faster.
    const { granted, held, collisions } = await this.decide(images, rule);
    refuseCollisions(collisions);
    for (const { name, upstream, identity, full } of granted.values()) {
      const holder = held.get(name);
      if (!holder || holder.identity === identity) continue;
      await this.take({ name, upstream, identity }, holder, full);
    }
    return images.map((image) => this.pick(image, granted, rule));
  }

  /**
   * The same upstream with new content keeps its name; a winner takes it from the one who had it, whose catalogue entry
   * loses it in the same commit.
   */
  private async take(row: ImageNameEntity, holder: ImageNameEntity, full: string): Promise<void> {
    const statements = [
      this.imageNames
        .createQueryBuilder()
        .update()
        .set({ upstream: row.upstream, identity: row.identity })
        .where({ name: row.name, upstream: holder.upstream, identity: holder.identity }),
    ];
    const loser = holder.upstream === row.upstream ? null : await this.images.findOneBy({ upstream: holder.upstream });
    const remaining = loser?.localReferences.filter((reference) => reference !== full);
    const loses =
      loser &&
      remaining &&
      this.images
        .createQueryBuilder()
        .update()
        .set(columns<ImageEntity>({ localReferences: remaining }))
        .where({ id: loser.id });
    if (!(await atomically(this.images.manager.dataSource, loses ? [...statements, loses] : statements)))
      throw new AppError('image_name_collision', {
        detail: `${row.name} changed hands`,
        name: row.name,
        sources: [holder.upstream, row.upstream],
      });
  }

  /** Writes down who has which names, as the registry says it. */
  async adopt(
    images: readonly Pick<ImageEntity, 'upstream' | 'localReferences' | 'imageIds' | 'digest'>[],
  ): Promise<void> {
    const rows = images.flatMap(({ upstream, localReferences: references, ...image }) =>
      references.map((reference) => ({
        name: toLocalName(parseReference(reference)).name,
        upstream,
        identity: identityOf(image),
      })),
    );
    for (const chunk of chunks(rows)) await this.imageNames.upsert(chunk, ['name']);
  }

  /** Gives the names of images back that did not get into the registry. */
  async release(upstreams: readonly string[]): Promise<void> {
    const kept = new Set<string>();
    for (const chunk of chunks(upstreams))
      for (const { upstream } of await this.images.findBy({ upstream: In(chunk) })) kept.add(upstream);
    for (const chunk of chunks(upstreams.filter((upstream) => !kept.has(upstream))))
      await this.imageNames.delete({ upstream: In(chunk) });
  }

  /** Who gets each name. */
  private async decide(images: readonly NamedImage[], rule: NamingRule) {
    const wishes = images.flatMap((image) =>
      image.names.flatMap((upstream) =>
        this.namesOf(upstream, rule).map((local): Wish => ({ ...local, upstream, identity: identityOf(image) })),
      ),
    );
    const held = new Map<string, ImageNameEntity>();
    for (const chunk of chunks([...new Set(wishes.map(({ name }) => name))]))
      for (const row of await this.imageNames.findBy({ name: In(chunk) })) held.set(row.name, row);
    const byName = new Map<string, Wish[]>();
    for (const wish of wishes) byName.set(wish.name, [...(byName.get(wish.name) ?? []), wish]);
    const granted = new Map<string, Wish>();
    const collisions: Collision[] = [];
    for (const [name, wanting] of byName) {
      const [first] = wanting as [Wish, ...Wish[]];
      const holder = held.get(name);
      // What the holder's upstream becomes now replaces what it was.
      const others = holder && !wanting.some(({ upstream }) => upstream === holder.upstream) ? [holder] : [];
      const contenders = [...others, ...wanting];
      if (contenders.every(({ identity }) => identity === first.identity)) granted.set(name, first);
      else {
        const winners = contenders.filter(({ upstream }) => rule.winners?.includes(upstream));
        const [winner] = winners;
        if (winner === undefined || winners.some(({ identity }) => identity !== winner.identity))
          collisions.push({ name, sources: [...new Set(contenders.map(({ upstream }) => upstream))] });
        const mine = wanting.find((wish) => wish === winner);
        if (mine) granted.set(name, mine);
      }
    }
    return { granted, held, collisions };
  }

  /** The names of one image among those that were granted; equal content may share the name of another. */
  private pick(image: NamedImage, granted: ReadonlyMap<string, Wish>, rule: NamingRule): LocalName[] {
    const identity = identityOf(image);
    return image.names
      .flatMap((upstream) => this.namesOf(upstream, rule))
      .filter((local) => granted.get(local.name)?.identity === identity)
      .filter((local, index, all) => all.findIndex(({ full }) => full === local.full) === index);
  }
}

/**
 * The same image saved by two tools has the same configurations, whatever its layers are compressed with. An artifact
 * is its manifest: its configuration is often the empty one that all share. Source:
 * https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidance-for-an-empty-descriptor
 */
const identityOf = ({ imageIds, digest }: Pick<NamedImage, 'imageIds' | 'digest'>): string =>
  [...imageIds].sort().join() || (digest ?? '');

const toLocalName = (reference: Reference): LocalName => {
  const { repository, tag, digest } = reference;
  return { full: formatReference(reference), name: formatName({ repository, tag, digest }), repository, tag };
};

/** Throws `image_name_collision` with the sources of the first name, and all collisions. */
export function refuseCollisions(collisions: readonly Collision[]): void {
  const [first] = collisions;
  if (!first) return;
  const more = collisions.length > 1 ? `, and ${collisions.length - 1} more names` : '';
  throw new AppError('image_name_collision', {
    detail: `${first.sources.join(' and ')} would both become ${first.name}${more}`,
    ...first,
    collisions: collisions.slice(0, 100),
  });
}
