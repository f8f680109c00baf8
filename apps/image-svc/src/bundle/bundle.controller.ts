import { Internal, StreamedAnswer } from '@airdock/platform/http/access';
import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation, RawOperation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Delete, Get, Param, Post, Query, Res, StreamableFile } from '@nestjs/common';
import { ApiOkResponse, ApiTags } from '@nestjs/swagger';
import { Bundle, BundlePage, CreateBundle, DockerArchiveQuery } from './bundle.schema.js';
import { BundleService } from './bundle.service.js';

@ApiTags('bundles')
@Controller({ path: 'bundles', version: '1' })
export class BundleController {
  constructor(private readonly bundles: BundleService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createBundle',
    summary: 'Register a bundle by path or upload, and read what is inside',
    returns: Job,
    status: 202,
  })
  create(@Body({ schema: CreateBundle }) body: CreateBundle, @JobRequest() request: JobRequest): Promise<Job> {
    return this.bundles.create(request, body);
  }

  @Get()
  @Operation({ id: 'listBundles', summary: 'Bundles, newest first', returns: BundlePage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<Bundle>> {
    return this.bundles.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getBundle', summary: 'One bundle with its images', returns: Bundle })
  get(@Param('id') id: string): Promise<Bundle> {
    return this.bundles.get(id);
  }

  @Delete(':id')
  @Operation({ id: 'deleteBundle', summary: 'Forget a bundle; an uploaded file is removed, a file on the DU is not' })
  remove(@Param('id') id: string): Promise<void> {
    return this.bundles.remove(id);
  }

  @Post('forget-layers')
  @Internal()
  @Operation({
    id: 'forgetBundleLayers',
    summary: 'Forget compressed layers that the registry has no more: for registry-svc, while it collects garbage',
  })
  forgetLayers(): Promise<void> {
    return this.bundles.forgetLayers();
  }

  @Get(':id/docker-archive')
  @Internal()
  @StreamedAnswer()
  @RawOperation({
    id: 'getBundleDockerArchive',
    summary: 'The images of one platform as a tar that `docker load` takes: for host-svc, which streams it to hosts',
  })
  @ApiOkResponse({
    description: 'The tar',
    content: { 'application/x-tar': { schema: { type: 'string', format: 'binary' } } },
  })
  async dockerArchive(
    @Param('id') id: string,
    @Query({ schema: DockerArchiveQuery }) query: DockerArchiveQuery,
    @Res({ passthrough: true }) reply: { raw: NodeJS.EventEmitter },
  ): Promise<StreamableFile> {
    const gone = new AbortController();
    reply.raw.once('close', () => gone.abort());
    return new StreamableFile(await this.bundles.dockerArchive(id, query, gone.signal), { type: 'application/x-tar' });
  }
}
