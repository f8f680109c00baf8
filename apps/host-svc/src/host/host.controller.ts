import { Idempotent } from '@airdock/platform/http/idempotency';
import { Operation } from '@airdock/platform/http/operation';
import { type Page } from '@airdock/platform/http/page';
import { Body, Controller, Delete, Get, Param, Patch, Post, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { CreateHost, Host, HostListQuery, HostPage, PatchHost } from './host.schema.js';
import { HostService } from './host.service.js';
import { HostTunnelService } from './host-tunnel.service.js';

@ApiTags('hosts')
@Controller({ path: 'hosts', version: '1' })
export class HostController {
  constructor(
    private readonly hosts: HostService,
    private readonly tunnels: HostTunnelService,
  ) {}

  @Post()
  @Idempotent()
  @Operation({
    id: 'createHost',
    summary: 'Register a host with its credential and its host key',
    returns: Host,
    status: 201,
  })
  create(@Body({ schema: CreateHost }) body: CreateHost): Promise<Host> {
    return this.hosts.create(body);
  }

  @Get()
  @Operation({ id: 'listHosts', summary: 'Hosts, newest first, by label if wanted', returns: HostPage })
  list(@Query({ schema: HostListQuery }) query: HostListQuery): Promise<Page<Host>> {
    return this.hosts.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getHost', summary: 'One host', returns: Host })
  get(@Param('id') id: string): Promise<Host> {
    return this.hosts.get(id);
  }

  @Patch(':id')
  @Operation({ id: 'patchHost', summary: 'Change how a host is reached, its pinned key, or labels', returns: Host })
  patch(@Param('id') id: string, @Body({ schema: PatchHost }) body: PatchHost): Promise<Host> {
    return this.hosts.patch(id, body);
  }

  @Delete(':id/quarantine')
  @Operation({
    id: 'liftHostQuarantine',
    summary: 'Let a host that is quarantined be connected to again, at once',
    returns: Host,
  })
  liftQuarantine(@Param('id') id: string): Promise<Host> {
    return this.hosts.liftQuarantine(id);
  }

  @Delete(':id')
  @Operation({ id: 'deleteHost', summary: 'Forget a host and close its tunnel; what is on the host stays' })
  async remove(@Param('id') id: string): Promise<void> {
    await this.hosts.assertNoJumpHost(id);
    // In this order: a tunnel without a host would be tried for ever.
    await this.hosts.get(id);
    await this.tunnels.remove(id);
    await this.hosts.remove(id);
  }
}
