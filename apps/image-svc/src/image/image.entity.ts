import type { ImagePart } from '@airdock/registry/copy/copy-image';
import { Column, Entity, PrimaryColumn } from 'typeorm';

/** An image in the registry: one row per upstream reference. */
@Entity('image')
export class ImageEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) upstream!: string;
  @Column('simple-json') localReferences!: string[];
  @Column('varchar') digest!: string;
  @Column('varchar') mediaType!: string;
  @Column('simple-json') imageIds!: string[];
  @Column('simple-json') platforms!: string[];
  /** null in rows of older versions. */
  @Column('simple-json', { nullable: true }) zstdPlatforms!: string[] | null;
  /** The root first, what belongs to it last. */
  @Column('simple-json') parts!: ImagePart[];
  @Column('varchar') sizeBytes!: string;
  @Column('varchar', { nullable: true }) firstBundleId!: string | null;
  @Column('varchar', { nullable: true }) bundleId!: string | null;
  @Column('varchar') firstPushedAt!: string;
  @Column('varchar') pushedAt!: string;
}

/**
 * Who a local name belongs to: no other image may take it. Written before the name's tag, so that two pushes at a time
 * cannot both have it.
 */
@Entity('image_name')
export class ImageNameEntity {
  /** `repository:tag` in the local registry. */
  @PrimaryColumn('varchar') name!: string;
  @Column('varchar') upstream!: string;
  /** The image IDs, sorted: two upstreams may share a name when they are the same image. */
  @Column('text') identity!: string;
}
