import { Operation } from '@airdock/platform/http/operation';
import { Body, Controller, Get, Param, Post } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { AdoptBackupTarget, BackupTarget, BackupTargetList } from './backup-target.schema.js';
import { BackupTargetService } from './backup-target.service.js';

@ApiTags('backup-targets')
@Controller({ path: 'backup-targets', version: '1' })
export class BackupTargetController {
  constructor(private readonly targets: BackupTargetService) {}

  @Get()
  @Operation({
    id: 'listBackupTargets',
    summary: 'Where backups are kept, and whether they can be reached now',
    returns: BackupTargetList,
  })
  async list(): Promise<{ items: BackupTarget[] }> {
    return { items: await this.targets.list() };
  }

  @Post(':name/adoptions')
  @Operation({
    id: 'adoptBackupTarget',
    summary: 'Work with the store that is there now from now on, in place of the one before',
    returns: BackupTarget,
  })
  adopt(
    @Param('name') name: string,
    @Body({ schema: AdoptBackupTarget }) body: AdoptBackupTarget,
  ): Promise<BackupTarget> {
    return this.targets.adopt(name, body);
  }
}
