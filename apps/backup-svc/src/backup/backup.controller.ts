import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { Backup, BackupPage, CreateBackup } from './backup.schema.js';
import { BackupService } from './backup.service.js';

@ApiTags('backups')
@Controller({ path: 'backups', version: '1' })
export class BackupController {
  constructor(private readonly backups: BackupService) {}

  @Post()
  @Idempotent()
  @Operation({ id: 'createBackup', summary: "Back the registry's content up; pushes may go on", returns: Job, status: 202 })
  create(@Body({ schema: CreateBackup }) body: CreateBackup, @JobRequest() request: JobRequest): Promise<Job> {
    return this.backups.create(request, body);
  }

  @Get()
  @Operation({ id: 'listBackups', summary: 'Backups, newest first', returns: BackupPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<Backup>> {
    return this.backups.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getBackup', summary: 'One backup', returns: Backup })
  get(@Param('id') id: string): Promise<Backup> {
    return this.backups.get(id);
  }
}
