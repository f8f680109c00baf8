import type { Provider, Type } from '@nestjs/common';
import {
  CONFIG,
  type Config,
  type ServiceEndpoint,
  type ServiceName,
  serviceEndpoint,
  serviceNames,
} from './config.js';
import { EventSink } from './events/event-sink.js';
import { INTERNAL_TOKEN } from './platform.module.js';
import type { TokenFile } from './token-file.js';

/**
 * Provides a class that is made from where all services answer and the token that they show each other. It is also
 * where the events of the service go.
 */
export const serviceClientsProvider = <T extends EventSink>(
  clients: Type<T> & (new (endpoints: Record<ServiceName, ServiceEndpoint>, token: () => string) => T),
): Provider[] => [
  {
    provide: clients,
    inject: [CONFIG, INTERNAL_TOKEN],
    useFactory: (config: Config, token: TokenFile) => {
      const endpoints = Object.fromEntries(serviceNames.map((name) => [name, serviceEndpoint(config, name)])) as Record<
        ServiceName,
        ServiceEndpoint
      >;
      return new clients(endpoints, () => token.token);
    },
  },
  { provide: EventSink, useExisting: clients },
];
