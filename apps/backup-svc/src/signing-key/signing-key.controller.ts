import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { Body, Controller, Delete, Get, Param, Post } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateSigningKey, SigningKey, SigningKeyList } from './signing-key.schema.js';
import { SigningKeyService } from './signing-key.service.js';

@ApiTags('backup-signing-keys')
@Controller({ path: 'backup-signing-keys', version: '1' })
export class SigningKeyController {
  constructor(private readonly keys: SigningKeyService) {}

  @Get()
  @Operation({
    id: 'listBackupSigningKeys',
    summary: 'The key that this DU signs backups with, and those of sites whose backups it takes',
    returns: SigningKeyList,
  })
  async list(): Promise<{ items: SigningKey[] }> {
    return { items: await this.keys.list() };
  }

  @Post()
  @Idempotent()
  @Operation({
    id: 'createBackupSigningKey',
    summary: 'Take the backups of another site',
    returns: SigningKey,
    status: 201,
  })
  create(@Body({ schema: CreateSigningKey }) body: CreateSigningKey): Promise<SigningKey> {
    return this.keys.create(body);
  }

  @Get(':id')
  @Operation({ id: 'getBackupSigningKey', summary: 'One key; own is that of this DU', returns: SigningKey })
  get(@Param('id') id: string): Promise<SigningKey> {
    return this.keys.get(id);
  }

  @Delete(':id')
  @Operation({
    id: 'deleteBackupSigningKey',
    summary: 'Take the backups of another site no more, nor those that were imported from it',
  })
  remove(@Param('id') id: string): Promise<void> {
    return this.keys.remove(id);
  }
}
