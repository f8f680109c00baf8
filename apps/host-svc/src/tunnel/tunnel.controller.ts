import { Operation } from '@airdock/platform/http/operation';
import type { Page } from '@airdock/platform/http/page';
import { Controller, Get, Param, Query } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { Tunnel, TunnelListQuery, TunnelPage } from './tunnel.schema.js';
import { TunnelService } from './tunnel.service.js';

@ApiTags('tunnels')
@Controller({ path: 'tunnels', version: '1' })
export class TunnelController {
  constructor(private readonly tunnels: TunnelService) {}

  @Get()
  @Operation({ id: 'listTunnels', summary: 'Tunnels, newest first', returns: TunnelPage })
  list(@Query({ schema: TunnelListQuery }) query: TunnelListQuery): Promise<Page<Tunnel>> {
    return this.tunnels.list(query);
  }

  @Get(':id')
  @Operation({ id: 'getTunnel', summary: 'One tunnel', returns: Tunnel })
  get(@Param('id') id: string): Promise<Tunnel> {
    return this.tunnels.get(id);
  }
}
