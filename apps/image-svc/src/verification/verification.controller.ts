import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateVerification, Verification, VerificationPage } from './verification.schema.js';
import { VerificationService } from './verification.service.js';

@ApiTags('verifications')
@Controller({ path: 'verifications', version: '1' })
export class VerificationController {
  constructor(private readonly verifications: VerificationService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createVerification',
    summary: 'Read and hash everything of a selection of images in the registry again',
    returns: Job,
    status: 202,
  })
  create(
    @Body({ schema: CreateVerification }) body: CreateVerification,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.verifications.create(request, body);
  }

  @Get()
  @Operation({ id: 'listVerifications', summary: 'Verifications, newest first', returns: VerificationPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<Verification>> {
    return this.verifications.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getVerification', summary: 'One verification with what it found', returns: Verification })
  get(@Param('id') id: string): Promise<Verification> {
    return this.verifications.get(id);
  }
}
