import type { NameKind } from '@airdock/core/oci/reference';
import type { UnusableImage } from '@airdock/oci/image/image-source';
import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { PushPlan } from '../push-plan/push-plan.schema.js';
import type { PushedImage } from './push.schema.js';

@Entity('push')
export class PushEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') bundleId!: string;
  @Column('simple-json', { nullable: true }) images!: string[] | null;
  @Column('simple-json', { nullable: true }) platforms!: string[] | null;
  @Column('simple-json', { nullable: true }) naming!: NameKind[] | null;
  @Column('simple-json', { nullable: true }) winners!: string[] | null;
  @Column('boolean') dryRun!: boolean;
  @Column('simple-json', { nullable: true }) plan!: PushPlan | null;
  @Column('simple-json', { nullable: true }) results!: PushedImage[] | null;
  /** What of the selection the bundle has and cannot be pushed. */
  @Column('simple-json', { nullable: true }) leftOut!: UnusableImage[] | null;
  /** What it has promised itself of the registry's disk while it runs, bytes. */
  @Column('varchar') reservedBytes!: string;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
