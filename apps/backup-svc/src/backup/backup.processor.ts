import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { BackupService, backupJobType } from './backup.service.js';

@JobType(backupJobType, 1)
export class BackupProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly backups: BackupService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.backups.run(context);
  }
}
