import { Column, Entity, PrimaryColumn } from 'typeorm';

/** An image as it was seen in a bundle. */
export interface SeenImage {
  names: string[];
  digest: string | null;
  imageIds: string[];
  platforms: string[];
  sizeBytes: number;
}

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
  @Column('varchar', { nullable: true }) format!: string | null;
  /** null until it has been read. */
  @Column('simple-json', { nullable: true }) images!: SeenImage[] | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
