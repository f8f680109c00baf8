import { Operation } from '@airdock/platform/http/operation';
import { Controller, Get } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { PackageRepositoryList } from './package-repository.schema.js';
import { PackageRepositoryService } from './package-repository.service.js';

@ApiTags('package-repositories')
@Controller({ path: 'package-repositories', version: '1' })
export class PackageRepositoryController {
  constructor(private readonly packageRepositories: PackageRepositoryService) {}

  @Get()
  @Operation({
    id: 'listPackageRepositories',
    summary: 'Package repositories of the configuration, and whether hosts can use them',
    returns: PackageRepositoryList,
  })
  async list(): Promise<PackageRepositoryList> {
    return { items: await this.packageRepositories.list() };
  }
}
