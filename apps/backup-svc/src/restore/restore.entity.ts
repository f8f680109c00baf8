import { Column, Entity, PrimaryColumn } from 'typeorm';
import type { RestoreReport, RestoreRequest } from './restore.schema.js';
import type { AcceptedPlan } from './state-restore.js';

@Entity('restore')
export class RestoreEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') backupId!: string;
  @Column('varchar') target!: string;
  @Column('simple-json') request!: RestoreRequest;
  /** The password of another registry, with the id as context. */
  @Column('text', { nullable: true }) sealedPassword!: string | null;
  @Column('simple-json', { nullable: true }) report!: RestoreReport | null;
  /** From before the first write until the settings are back: what it may go on with. */
  @Column('simple-json', { nullable: true }) accepted!: AcceptedPlan | null;
  @Column('varchar') jobId!: string;
  @Column('varchar') createdAt!: string;
}
