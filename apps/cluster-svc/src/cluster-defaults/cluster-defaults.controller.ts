import { Operation } from '@airdock/platform/http/operation';
import { Controller, Get } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { ClusterDefaults } from './cluster-defaults.schema.js';
import { ClusterDefaultsService } from './cluster-defaults.service.js';

@ApiTags('cluster-defaults')
@Controller({ path: 'cluster-defaults', version: '1' })
export class ClusterDefaultsController {
  constructor(private readonly defaults: ClusterDefaultsService) {}

  @Get()
  @Operation({ id: 'getClusterDefaults', summary: 'What new clusters are created with', returns: ClusterDefaults })
  get(): Promise<ClusterDefaults> {
    return this.defaults.get();
  }
}
