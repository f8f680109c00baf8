import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { Body, Controller, Post } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateHostImport, HostImport } from './host-import.schema.js';
import { HostImportService } from './host-import.service.js';

@ApiTags('hosts')
@Controller({ path: 'hosts/imports', version: '1' })
export class HostImportController {
  constructor(private readonly imports: HostImportService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'importHosts',
    summary: 'Register the hosts of an inventory, all or none unless `partial`',
    returns: HostImport,
    status: 200,
  })
  create(@Body({ schema: CreateHostImport }) body: CreateHostImport): Promise<HostImport> {
    return this.imports.create(body);
  }
}
