import { type JobContext, JobProcessor, JobType } from '@airdock/platform/jobs/job-processor';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { Injectable } from '@nestjs/common';
import { BackupOperationService, operationJobTypes } from './backup-operation.service.js';

/** Decorated, so that Nest knows what its constructor wants. */
@Injectable()
abstract class BackupOperationProcessor extends JobProcessor {
  constructor(
    jobs: JobsService,
    private readonly operations: BackupOperationService,
  ) {
    super(jobs);
  }

  protected run(context: JobContext) {
    return this.operations.run(context);
  }
}

@JobType(operationJobTypes.verify, 1)
export class VerifyBackupsProcessor extends BackupOperationProcessor {}

@JobType(operationJobTypes.prune, 1)
export class PruneBackupsProcessor extends BackupOperationProcessor {}

@JobType(operationJobTypes.export, 1)
export class ExportBackupProcessor extends BackupOperationProcessor {}

@JobType(operationJobTypes.import, 1)
export class ImportBackupProcessor extends BackupOperationProcessor {}
