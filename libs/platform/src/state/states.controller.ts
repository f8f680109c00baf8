import { AppError } from '@airdock/core/errors';
import { Body, Controller, Get, Inject, Param, Put } from '@nestjs/common';
import { ApiTags } from '@nestjs/swagger';
import { Internal } from '../http/access.js';
import { Operation } from '../http/operation.js';
import { PutStateRows, ServiceState, StateRowsResult } from './state.schema.js';
import type { StateService } from './state.service.js';

/** The state of all services in this process. */
export const STATE_SERVICES = Symbol('STATE_SERVICES');

/** `/v1/states`: what backups hold of a service. */
@ApiTags('states')
@Controller({ path: 'states', version: '1' })
export class StatesController {
  constructor(@Inject(STATE_SERVICES) private readonly states: StateService[]) {}

  @Get(':service')
  @Internal()
  @Operation({
    id: 'getState',
    summary: "A service's state, as backups keep it; secrets in it are sealed",
    returns: ServiceState,
  })
  get(@Param('service') service: string): Promise<ServiceState> {
    return this.stateOf(service).read();
  }

  @Put(':service/tables/:table')
  @Internal()
  @Operation({
    id: 'putStateRows',
    summary: "Bring rows of a service's state back, as restores do",
    returns: StateRowsResult,
  })
  put(
    @Param('service') service: string,
    @Param('table') table: string,
    @Body({ schema: PutStateRows }) body: PutStateRows,
  ): Promise<StateRowsResult> {
    return this.stateOf(service).write(table, body);
  }

  private stateOf(service: string): StateService {
    const state = this.states.find((candidate) => candidate.service === service);
    if (!state) throw new AppError('resource_not_found', { detail: `no service ${service.slice(0, 60)} here` });
    return state;
  }
}
