import type { FactoryProvider, Type } from '@nestjs/common';
import { CONFIG, type Config, type ServiceName, serviceNames, serviceUrl } from './config.js';
import { apiToken } from './platform.module.js';

/** Provides a class that is made from the addresses of all services and the token they accept from each other. */
export const serviceClientsProvider = <T>(clients: Type<T> & (new (addresses: Record<ServiceName, string>, token: string) => T)): FactoryProvider<T> => ({
  provide: clients,
  inject: [CONFIG],
  useFactory: (config: Config) => {
    const addresses = Object.fromEntries(serviceNames.map((name) => [name, serviceUrl(config, name)])) as Record<ServiceName, string>;
    return new clients(addresses, apiToken(config));
  },
});
