import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Controller, Get, Post } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { SecretsKey } from './secrets-key.schema.js';
import { SecretsKeyService } from './secrets-key.service.js';

@ApiTags('secrets')
@Controller({ path: 'secrets-key', version: '1' })
export class SecretsKeyController {
  constructor(private readonly secretsKey: SecretsKeyService) {}

  @Get()
  @Operation({
    id: 'getSecretsKey',
    summary: 'Which key stored secrets are sealed with, and whether it is being exchanged',
    returns: SecretsKey,
  })
  get(): SecretsKey {
    return this.secretsKey.get();
  }

  @Post('rotations')
  @Idempotent()
  @Operation({
    id: 'rotateSecretsKey',
    summary: 'Exchange the key, and seal all stored secrets anew',
    returns: Job,
    status: 202,
  })
  rotate(@JobRequest() request: JobRequest): Promise<Job> {
    return this.secretsKey.rotate(request);
  }
}
