import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { BackupOperation, BackupOperationPage, CreateBackupOperation } from './backup-operation.schema.js';
import { BackupOperationService } from './backup-operation.service.js';

@ApiTags('backup-operations')
@Controller({ path: 'backup-operations', version: '1' })
export class BackupOperationController {
  constructor(private readonly operations: BackupOperationService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createBackupOperation',
    summary: 'Verify, prune, export or import backups',
    returns: Job,
    status: 202,
  })
  create(
    @Body({ schema: CreateBackupOperation }) body: CreateBackupOperation,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.operations.create(request, body);
  }

  @Get()
  @Operation({
    id: 'listBackupOperations',
    summary: 'Operations on backups, newest first',
    returns: BackupOperationPage,
  })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<BackupOperation>> {
    return this.operations.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getBackupOperation', summary: 'One operation and what came of it', returns: BackupOperation })
  get(@Param('id') id: string): Promise<BackupOperation> {
    return this.operations.get(id);
  }
}
