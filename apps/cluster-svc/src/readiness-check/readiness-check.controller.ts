import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import {
  CreateReadinessCheck,
  Readiness,
  ReadinessCheck,
  ReadinessCheckPage,
  ReadinessQuery,
} from '../readiness/readiness.schema.js';
import { ReadinessCheckService } from './readiness-check.service.js';

@ApiTags('readiness')
@Controller({ version: '1' })
export class ReadinessController {
  constructor(private readonly checks: ReadinessCheckService) {}

  @Get('clusters/:id/readiness')
  @Operation({
    id: 'getClusterReadiness',
    summary: 'Would this cluster stand up now, with no network: from what is known',
    returns: Readiness,
  })
  ofCluster(@Param('id') id: string, @Query({ schema: ReadinessQuery }) query: ReadinessQuery): Promise<Readiness> {
    return this.checks.ofCluster(id, query);
  }

  @Post('readiness-checks')
  @Idempotent()
  @Operation({
    id: 'createReadinessCheck',
    summary: 'Would it stand up: hosts pull for the answer, and `fix` pushes what is missing',
    returns: Job,
    status: 202,
  })
  create(
    @Body({ schema: CreateReadinessCheck }) body: CreateReadinessCheck,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.checks.create(request, body);
  }

  @Get('readiness-checks')
  @Operation({ id: 'listReadinessChecks', summary: 'Readiness checks, newest first', returns: ReadinessCheckPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<ReadinessCheck>> {
    return this.checks.list(query);
  }

  @Get('readiness-checks/:id')
  @Operation({
    id: 'getReadinessCheck',
    summary: 'One readiness check, with its answer when the job has succeeded',
    returns: ReadinessCheck,
  })
  get(@Param('id') id: string): Promise<ReadinessCheck> {
    return this.checks.get(id);
  }
}
