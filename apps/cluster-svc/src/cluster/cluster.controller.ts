import { Idempotent, JobRequest } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import type { Page } from '@airdock/platform/http/page';
import { Job } from '@airdock/platform/jobs/job.schema';
import { Body, Controller, Delete, Get, Param, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { Cluster, ClusterConfiguration, ClusterListQuery, ClusterPage, CreateCluster } from './cluster.schema.js';
import { ClusterService } from './cluster.service.js';
import { ClusterConfigurationService } from './cluster-configuration.service.js';

@ApiTags('clusters')
@Controller({ path: 'clusters', version: '1' })
export class ClusterController {
  constructor(
    private readonly clusters: ClusterService,
    private readonly configurations: ClusterConfigurationService,
  ) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createCluster',
    summary: 'Create a cluster from configured hosts, or register one that exists',
    returns: Job,
    status: 202,
  })
  create(@Body({ schema: CreateCluster }) body: CreateCluster, @JobRequest() request: JobRequest): Promise<Job> {
    return this.clusters.create(request, body);
  }

  @Get()
  @Operation({ id: 'listClusters', summary: 'Clusters, newest first', returns: ClusterPage })
  list(@Query({ schema: ClusterListQuery }) query: ClusterListQuery): Promise<Page<Cluster>> {
    return this.clusters.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getCluster', summary: 'One cluster', returns: Cluster })
  get(@Param('id') id: string): Promise<Cluster> {
    return this.clusters.get(id);
  }

  @Get(':id/configuration')
  @Operation({
    id: 'getClusterConfiguration',
    summary: 'What an installer of the cluster needs: registry fields, runtime files, images',
    returns: ClusterConfiguration,
  })
  configuration(@Param('id') id: string): Promise<ClusterConfiguration> {
    return this.configurations.get(id);
  }

  @Delete(':id')
  @Operation({ id: 'deleteCluster', summary: 'Forget a cluster; what runs on its hosts is not touched' })
  remove(@Param('id') id: string): Promise<void> {
    return this.clusters.remove(id);
  }
}
