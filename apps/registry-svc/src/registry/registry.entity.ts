import type { Problem } from '@airdock/core/errors';
import { type RegistryMode } from '@airdock/core/registry-mode';
import { Column, Entity, PrimaryColumn } from 'typeorm';

export interface RegistryFence {
  upgradeId: string;
  since: string;
}

/** A process of somebody else that passes for the registry. */
export interface ForeignProcess {
  kind: 'listener' | 'decoy';
  port: number | null;
  pid: number | null;
  uid: number;
  program: string | null;
}

/** The wanted state of the registry, and what was last seen of it. One row. */
@Entity('registry')
export class RegistryEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') mode!: RegistryMode;
  /**
   * The configuration file's value when it was last read: a change in the file wins over the API, a restart does not.
   */
  @Column('varchar') configuredMode!: RegistryMode;
  @Column('varchar', { nullable: true }) configuredUrl!: string | null;
  @Column('varchar', { nullable: true }) externalUrl!: string | null;
  @Column('integer') version!: number;
  @Column('varchar', { nullable: true }) engineVersion!: string | null;
  /** Of the storage folder, when blobs may be placed in it directly. */
  @Column('varchar', { nullable: true }) storageId!: string | null;
  /**
   * Of the folder that is the registry's storage, since it was on for the first time: another one counts as changed.
   */
  @Column('varchar', { nullable: true }) recordedStorageId!: string | null;
  /** What a folder without an id gets when it is adopted. */
  @Column('varchar', { nullable: true }) offeredStorageId!: string | null;
  /** Why nothing is written to the storage folder. */
  @Column('simple-json', { nullable: true }) storageError!: Problem | null;
  @Column('simple-json', { nullable: true }) storage!: {
    usedBytes: number;
    freeBytes: number;
    measuredAt: string;
  } | null;
  /** The program, when a DU upgrade has brought another one than is configured. */
  @Column('varchar', { nullable: true }) engineBinary!: string | null;
  /** Pushes are kept away. */
  @Column('simple-json', { nullable: true }) fence!: RegistryFence | null;
  /** The job of the garbage collection that was begun last. */
  @Column('varchar', { nullable: true }) collectionJobId!: string | null;
  /** That job, while it keeps others away from the registry. */
  @Column('varchar', { nullable: true }) collectingJobId!: string | null;
  @Column('simple-json', { nullable: true }) error!: Problem | null;
  /** Why there is no front on localhost, while the registry itself works. */
  @Column('simple-json', { nullable: true }) localhostError!: Problem | null;
  /** Seen when the supervisor looked last. */
  @Column('simple-json', { nullable: true }) foreignProcesses!: ForeignProcess[] | null;
}
