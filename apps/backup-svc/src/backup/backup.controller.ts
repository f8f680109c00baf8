import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import type { Page } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Delete, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { Backup, BackupListQuery, BackupPage, CreateBackup } from './backup.schema.js';
import { BackupService } from './backup.service.js';

@ApiTags('backups')
@Controller({ path: 'backups', version: '1' })
export class BackupController {
  constructor(private readonly backups: BackupService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createBackup',
    summary: "Back the registry's content and Airdock's own state up; pushes may go on",
    returns: Job,
    status: 202,
  })
  create(@Body({ schema: CreateBackup }) body: CreateBackup, @JobRequest() request: JobRequest): Promise<Job> {
    return this.backups.create(request, body);
  }

  @Get()
  @Operation({ id: 'listBackups', summary: 'Backups, newest first', returns: BackupPage })
  list(@Query({ schema: BackupListQuery }) query: BackupListQuery): Promise<Page<Backup>> {
    return this.backups.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getBackup', summary: 'One backup', returns: Backup })
  get(@Param('id') id: string): Promise<Backup> {
    return this.backups.get(id);
  }

  @Delete(':id')
  @Operation({
    id: 'deleteBackup',
    summary: 'Remove a backup; its blobs go with the next prune, as far as no other backup needs them',
  })
  remove(@Param('id') id: string): Promise<void> {
    return this.backups.remove(id);
  }
}
