import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { PushedImage } from './push.schema.js';

@Entity('push')
export class PushEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') bundleId!: string;
  @Column('simple-json', { nullable: true }) images!: string[] | null;
  @Column('simple-json', { nullable: true }) results!: PushedImage[] | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
