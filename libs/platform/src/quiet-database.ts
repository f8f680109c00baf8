import type { ServiceDatabase } from './database.js';

/**
 * Keeps what looks into a database again and again from doing so while nothing was written to it. Where that is not
 * known, on PostgreSQL, it looks each time.
 */
export class QuietDatabase {
  private quietSince: string | undefined;

  constructor(private readonly database: ServiceDatabase) {}

  /**
   * Calls `look`, unless it has found the database quiet and nothing was written since: it tells whether there was
   * nothing to do, now and at any later time.
   */
  async unlessQuiet(look: () => Promise<boolean>): Promise<void> {
    // Before the look: what is written meanwhile is looked at the next time.
    const mark = this.database.changeMark();
    if (mark !== undefined && mark === this.quietSince) return;
    this.quietSince = (await look()) ? mark : undefined;
  }
}
