import { Column, Entity, Index, PrimaryColumn } from 'typeorm';

/** An image that was pushed: one row per upstream reference. */
@Entity('image')
export class ImageEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) upstream!: string;
  /** The flat name, `repository:tag`: what two upstreams can collide on. */
  @Index()
  @Column('varchar')
  flatName!: string;
  @Column('simple-json') localReferences!: string[];
  @Column('varchar') digest!: string;
  @Column('varchar') mediaType!: string;
  @Column('simple-json') imageIds!: string[];
  @Column('simple-json') platforms!: string[];
  @Column('varchar') sizeBytes!: string;
  @Column('varchar', { nullable: true }) bundleId!: string | null;
  @Column('varchar') createdAt!: string;
  @Column('varchar') pushedAt!: string;
}
