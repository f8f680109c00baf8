import type { FactoryProvider, Type } from '@nestjs/common';
import {
  CONFIG,
  type Config,
  type ServiceEndpoint,
  type ServiceName,
  serviceEndpoint,
  serviceNames,
} from './config.js';
import { INTERNAL_TOKEN } from './platform.module.js';
import type { TokenFile } from './token-file.js';

/** Provides a class that is made from where all services answer and the token that they show each other. */
export const serviceClientsProvider = <T>(
  clients: Type<T> & (new (endpoints: Record<ServiceName, ServiceEndpoint>, token: () => string) => T),
): FactoryProvider<T> => ({
  provide: clients,
  inject: [CONFIG, INTERNAL_TOKEN],
  useFactory: (config: Config, token: TokenFile) => {
    const endpoints = Object.fromEntries(serviceNames.map((name) => [name, serviceEndpoint(config, name)])) as Record<
      ServiceName,
      ServiceEndpoint
    >;
    return new clients(endpoints, () => token.token);
  },
});
