import type { GivenNames } from '@airdock/oci/image/image-names';
import type { ImageList, UnusableImage } from '@airdock/oci/image/image-source';
import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { SeenImage } from '../image/seen-image.schema.js';
import type { PushPlan } from '../push-plan/push-plan.schema.js';

@Entity('bundle')
export class BundleEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') name!: string;
  /** Real path on this machine, also of an upload. */
  @Column('varchar') path!: string;
  @Column('varchar', { nullable: true }) uploadId!: string | null;
  @Column('varchar') sizeBytes!: string;
  /** Size and time of change when it was registered: a file that changed is not the one that was read. */
  @Column('varchar') fingerprint!: string;
  /** For images that have no name in the bundle. */
  @Column('simple-json') names!: GivenNames;
  /** What the file's bytes must have, as it was declared. */
  @Column('varchar', { nullable: true }) sha256!: string | null;
  @Column('varchar', { nullable: true }) format!: string | null;
  /** null until it has been read. */
  @Column('simple-json', { nullable: true }) images!: SeenImage[] | null;
  @Column('simple-json', { nullable: true }) unusable!: UnusableImage[] | null;
  /** null stands for false. */
  @Column('boolean', { nullable: true }) strict!: boolean | null;
  @Column('simple-json', { nullable: true }) lists!: ImageList[] | null;
  /** What a push of it would do, when it was last compared with the registry. */
  @Column('simple-json', { nullable: true }) plan!: PushPlan | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
