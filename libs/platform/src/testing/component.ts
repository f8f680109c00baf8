import { type RegistryMode } from '@airdock/core/registry-mode';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { loadConfig, type ServiceName } from '../config.js';
import { createHttpApp } from '../http/app.js';
import { apiToken, internalToken } from '../platform.module.js';
import { listen, type Roles, rootModule, type ServiceModule } from '../service.js';

/** What a service under test runs with. */
export interface ComponentOptions {
  dataDir: string;
  redisUrl: string;
  privateRegistryType?: RegistryMode;
  /** Further configuration by dotted key, e.g. `services.registry`. */
  overrides?: Record<string, unknown>;
  roles?: Roles;
}

/**
 * One service in this process, API and worker, listening on a free loopback port: for component tests, with real parts
 * around it. A service that calls itself needs `http.port` among the overrides.
 */
export async function startComponent(
  name: ServiceName,
  service: ServiceModule,
  { dataDir, redisUrl, privateRegistryType = 'none', overrides = {}, roles = ['api', 'worker'] }: ComponentOptions,
) {
  const config = loadConfig({
    environment: { AIRDOCK_PRIVATE_REGISTRY_TYPE: privateRegistryType },
    file: '/dev/null',
    overrides: { dataDir, redisUrl, logLevel: 'silent', ...overrides },
  });
  const app: NestFastifyApplication = await createHttpApp(rootModule(config, { [name]: service }, roles), {
    title: name,
  });
  await listen(app, { port: 'http.port' in overrides ? config.http.port : 0, host: '127.0.0.1' });
  return {
    app,
    config,
    url: await app.getUrl(),
    token: apiToken(config),
    internalToken: internalToken(config),
    [Symbol.asyncDispose]: () => app.close(),
  };
}
