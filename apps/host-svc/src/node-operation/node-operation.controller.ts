import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page, PageQuery } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateNodeOperation, NodeOperation, NodeOperationPage } from './node-operation.schema.js';
import { NodeOperationService } from './node-operation.service.js';

@ApiTags('node-operations')
@Controller({ path: 'node-operations', version: '1' })
export class NodeOperationController {
  constructor(private readonly nodeOperations: NodeOperationService) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createNodeOperation',
    summary: 'Make a Kubernetes node of a host, upgrade it, look at it, or take it apart',
    returns: Job,
    status: 202,
  })
  create(
    @Body({ schema: CreateNodeOperation }) body: CreateNodeOperation,
    @JobRequest() request: JobRequest,
  ): Promise<Job> {
    return this.nodeOperations.create(request, body);
  }

  @Get()
  @Operation({ id: 'listNodeOperations', summary: 'Operations on nodes, newest first', returns: NodeOperationPage })
  list(@Query({ schema: PageQuery }) query: PageQuery): Promise<Page<NodeOperation>> {
    return this.nodeOperations.list(query);
  }

  @Get(':id')
  @Operation({
    id: 'getNodeOperation',
    summary: 'One operation with its steps, and the nodes of the cluster after it',
    returns: NodeOperation,
  })
  get(@Param('id') id: string): Promise<NodeOperation> {
    return this.nodeOperations.get(id);
  }
}
