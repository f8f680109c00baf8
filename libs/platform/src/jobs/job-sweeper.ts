import { BackgroundLoop } from '../background-loop.js';
import type { ServiceDatabase } from '../database.js';
import { QuietDatabase } from '../quiet-database.js';
import type { JobsService } from './jobs.service.js';

/** Runs in workers: jobs whose wake-up or worker was lost are woken up again. */
export class JobSweeper extends BackgroundLoop {
  protected readonly pauseMs = 2_000;

  private readonly quiet: QuietDatabase;

  constructor(
    private readonly jobs: JobsService,
    database: ServiceDatabase,
  ) {
    super();
    this.quiet = new QuietDatabase(database);
  }

  protected round(): Promise<void> {
    return this.quiet.unlessQuiet(() => this.jobs.claims.sweep());
  }
}
