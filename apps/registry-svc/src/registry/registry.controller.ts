import { AppError } from '@airdock/core/errors';
import { JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Headers, Post, Put, Res } from '@nestjs/common';
import { ApiHeader, ApiTags } from '@nestjs/swagger';
import { AdoptStorage, PutRegistry, Registry } from './registry.schema.js';
import { RegistryService } from './registry.service.js';

@ApiTags('registry')
@Controller({ path: 'registry', version: '1' })
export class RegistryController {
  constructor(private readonly registry: RegistryService) {}

  @Get()
  @Operation({
    id: 'getRegistry',
    summary: 'Mode, addresses, engine, health and space of the local registry',
    returns: Registry,
  })
  async get(@Res({ passthrough: true }) reply: { header(name: string, value: string): unknown }): Promise<Registry> {
    const registry = await this.registry.get();
    void reply.header('etag', `"${registry.version}"`);
    return registry;
  }

  @Put()
  @ApiHeader({ name: 'If-Match', required: false, schema: { type: 'string' } })
  @Operation({ id: 'putRegistry', summary: 'Switch the registry on or off', returns: Job, status: 202 })
  async put(
    @Body({ schema: PutRegistry }) body: PutRegistry,
    @JobRequest() request: JobRequest,
    @Headers('if-match') ifMatch: string | undefined,
  ): Promise<Job> {
    const seen = ifMatch === undefined || ifMatch === '*' ? undefined : Number(/^"(\d+)"$/.exec(ifMatch)?.[1]);
    if (Number.isNaN(seen))
      throw new AppError('resource_changed', { detail: 'If-Match is not an ETag of this resource' });
    // Putting the same state twice is harmless as it is.
    return this.registry.put({ ...request, requestKey: null }, body, seen);
  }

  @Post('storage-adoptions')
  @Operation({
    id: 'adoptStorage',
    summary: "Take the folder that is there for the registry's storage, after it was changed",
    returns: Job,
    status: 202,
  })
  adopt(@Body({ schema: AdoptStorage }) { storageId }: AdoptStorage, @JobRequest() request: JobRequest): Promise<Job> {
    // Doing it twice is harmless as it is.
    return this.registry.adopt({ ...request, requestKey: null }, storageId);
  }
}
