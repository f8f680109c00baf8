import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Body, Controller, Delete, Get, Param, Patch, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import {
  BackupSchedule,
  BackupSchedulePage,
  CreateBackupSchedule,
  UpdateBackupSchedule,
} from './backup-schedule.schema.js';
import { BackupScheduleService } from './backup-schedule.service.js';

@ApiTags('backup-schedules')
@Controller({ path: 'backup-schedules', version: '1' })
export class BackupScheduleController {
  constructor(private readonly schedules: BackupScheduleService) {}

  @Post()
  @Idempotent()
  @Operation({ id: 'createBackupSchedule', summary: 'Make backups by the clock', returns: BackupSchedule, status: 201 })
  create(@Body({ schema: CreateBackupSchedule }) body: CreateBackupSchedule): Promise<BackupSchedule> {
    return this.schedules.create(body);
  }

  @Get()
  @Operation({ id: 'listBackupSchedules', summary: 'Schedules, newest first', returns: BackupSchedulePage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<BackupSchedule>> {
    return this.schedules.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getBackupSchedule', summary: 'One schedule', returns: BackupSchedule })
  get(@Param('id') id: string): Promise<BackupSchedule> {
    return this.schedules.get(id);
  }

  @Patch(':id')
  @Operation({ id: 'updateBackupSchedule', summary: 'Change a schedule', returns: BackupSchedule })
  update(
    @Param('id') id: string,
    @Body({ schema: UpdateBackupSchedule }) body: UpdateBackupSchedule,
  ): Promise<BackupSchedule> {
    return this.schedules.update(id, body);
  }

  @Delete(':id')
  @Operation({ id: 'deleteBackupSchedule', summary: 'Remove a schedule; its backups stay' })
  remove(@Param('id') id: string): Promise<void> {
    return this.schedules.remove(id);
  }
}
