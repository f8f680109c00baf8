import { createHash, randomUUID } from 'node:crypto';
import type { SignedRecord } from '@airdock/backup-store/backup-records';
import type { BackupStore } from '@airdock/backup-store/backup-store';
import { AppError } from '@airdock/core/errors';
import { now } from '@airdock/platform/database';
import type { TargetProblem } from '../backup-target/backup-target.schema.js';
import type { BackupTargetService } from '../backup-target/backup-target.service.js';

/**
 * Bytes of records of a round that nobody has read yet: whoever fills a disk with them must not keep the service busy.
 */
const maxRoundBytes = 96 * 1024 * 1024;
const maxRoundRecords = 500;
/** Another worker may be at it now. */
const readingMs = 60_000;

/** Of this process: what another one began to read and never ended it has died of. */
const reader = randomUUID();

/**
 * Reads records that this service does not know yet. They may be of anybody: what cannot be read is told of at the
 * target, and not read again while it stays as it is; nor is one during whose reading a process died.
 */
export class RecordFinder {
  private readonly problems: TargetProblem[] = [];

  constructor(
    private readonly targets: BackupTargetService,
    private readonly target: string,
    private readonly store: BackupStore,
  ) {}

  /** Those that can be read, one at a time. What is wrong with the others is kept when the end is reached. */
  async *read(ids: Iterable<string>): AsyncGenerator<SignedRecord> {
    const known = await this.knownProblems();
    if (!known) return;
    let bytes = 0;
    let records = 0;
    let isComplete = true;
    for (const id of ids) {
      const file = await this.store.recordFile(id);
      if (!file) continue;
      const fingerprint = createHash('sha256')
        .update(`${id} ${file.size} ${file.modifiedAt}`)
        .digest('hex')
        .slice(0, 16);
      const before = known.find((problem) => problem.fingerprint === fingerprint);
      if (before) {
        this.problems.push(before);
        continue;
      }
      bytes += file.size;
      records += 1;
      if (records > 1 && (bytes > maxRoundBytes || records > maxRoundRecords)) {
        isComplete = false;
        break;
      }
      await this.targets.noteReading(this.target, { backupId: id, fingerprint, reader, since: now() });
      let found: SignedRecord | undefined;
      try {
        found = await this.store.readSigned(id, { allowUnsigned: true });
      } catch (error) {
        if (!(error instanceof AppError) || error.family === 'unavailable') throw error;
        if (error.code !== 'resource_not_found')
          this.problems.push({
            backupId: id,
            fingerprint,
            code: error.code,
            detail: (error.details.detail ?? error.message).slice(0, 500),
          });
      } finally {
        await this.targets.noteReading(this.target, null);
      }
      if (found) yield found;
    }
    // Of those that the round did not come to, what is known stays so.
    const others = isComplete
      ? []
      : known.filter(({ fingerprint }) => !this.problems.some((problem) => problem.fingerprint === fingerprint));
    await this.targets.noteProblems(this.target, [...this.problems, ...others]);
  }

  /** With the record that somebody died of, which is kept at once. Undefined while another worker may be at one. */
  private async knownProblems(): Promise<TargetProblem[] | undefined> {
    const state = await this.targets.stateOf(this.target);
    const known = state?.problems ?? [];
    const { reading } = state ?? {};
    if (!reading || reading.reader === reader) return known;
    if (Math.abs(Date.now() - Date.parse(reading.since)) < readingMs) return undefined;
    const { backupId, fingerprint } = reading;
    known.push({
      backupId,
      fingerprint,
      code: 'backup_corrupt',
      detail: 'Airdock ended while it read this record, and reads it no more',
    });
    await this.targets.noteProblems(this.target, known);
    await this.targets.noteReading(this.target, null);
    return known;
  }
}
