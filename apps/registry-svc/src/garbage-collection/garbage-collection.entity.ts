import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { Garbage } from './garbage-collection.schema.js';

@Entity('garbage_collection')
export class GarbageCollectionEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('boolean') dryRun!: boolean;
  @Column('float') protectHours!: number;
  @Column('float') waitMinutes!: number;
  @Column('simple-json', { nullable: true }) estimate!: Garbage | null;
  /**
   * What each of its sweeps has freed, by the id of the sweep: a job that was killed at the end may sweep once more.
   */
  @Column('simple-json') sweeps!: Record<string, Garbage>;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
