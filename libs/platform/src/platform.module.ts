import { BullModule } from '@nestjs/bullmq';
import { type DynamicModule, Global, Module } from '@nestjs/common';
import { APP_GUARD } from '@nestjs/core';
import { LoggerModule } from 'nestjs-pino';
import { CONFIG, type Config } from './config.js';
import { Authentication, AuthGuard } from './http/authentication.js';
import { FailedLogins } from './http/failed-logins.js';
import { Metrics } from './http/health.controller.js';
import { Journal } from './http/journal.js';
import { SecretBox } from './secrets.js';
import { TokenFile } from './token-file.js';

/** Injection token of the `TokenFile` that operators' requests are compared with. */
export const ADMIN_TOKEN = Symbol('ADMIN_TOKEN');
/** Injection token of the `TokenFile` that services show each other. */
export const INTERNAL_TOKEN = Symbol('INTERNAL_TOKEN');

/** Where Redis answers, as ioredis takes it. A socket path keeps the embedded Redis off the network. */
function redisConnection({ redisUrl }: Config) {
  const retryStrategy = (times: number) => Math.min(times * 100, 1000);
  if (!redisUrl) throw new Error('no redisUrl: the DU starts a Redis of its own before its modules');
  if (redisUrl.startsWith('/')) return { path: redisUrl, retryStrategy };
  const { hostname, port, username, password, pathname, protocol } = new URL(redisUrl);
  return {
    host: hostname,
    port: Number(port || 6379),
    ...(username ? { username: decodeURIComponent(username) } : {}),
    ...(password ? { password: decodeURIComponent(password) } : {}),
    ...(pathname.length > 1 ? { db: Number(pathname.slice(1)) } : {}),
    ...(protocol === 'rediss:' ? { tls: {} } : {}),
    retryStrategy,
  };
}

/** What every process has once, however many services it runs. */
@Global()
@Module({})
export class PlatformModule {
  static forRoot(config: Config): DynamicModule {
    const providers = [
      { provide: CONFIG, useValue: config },
      { provide: SecretBox, useFactory: () => new SecretBox(config.secretsKeyFile) },
      { provide: ADMIN_TOKEN, useFactory: () => new TokenFile(config.tokenFile) },
      { provide: INTERNAL_TOKEN, useFactory: () => new TokenFile(config.internalTokenFile) },
      {
        provide: Authentication,
        inject: [ADMIN_TOKEN, INTERNAL_TOKEN, FailedLogins],
        useFactory: (admin: TokenFile, internal: TokenFile, failures: FailedLogins) =>
          new Authentication(admin, internal, failures),
      },
      FailedLogins,
      Journal,
      Metrics,
    ];
    return {
      module: PlatformModule,
      imports: [
        LoggerModule.forRoot({
          // The default `{/*splat}` matches nothing with Nest's Fastify adapter.
          forRoutes: ['*splat'],
          pinoHttp: {
            level: config.logLevel,
            // Bodies are never logged; these headers hold tokens.
            redact: ['req.headers.authorization', 'req.headers["x-auth-token"]', 'req.headers.cookie'],
            // Middleware sees a shortened `url`.
            autoLogging: {
              ignore: (request: { originalUrl?: string }) =>
                request.originalUrl === '/livez' || request.originalUrl === '/readyz',
            },
            customLogLevel: (_request, response) => (response.statusCode >= 500 ? 'warn' : 'debug'),
          },
        }),
        BullModule.forRootAsync({ useFactory: () => ({ prefix: 'airdock', connection: redisConnection(config) }) }),
      ],
      providers: [...providers, { provide: APP_GUARD, useClass: AuthGuard }],
      exports: [CONFIG, SecretBox, ADMIN_TOKEN, INTERNAL_TOKEN, Authentication, Journal, Metrics],
    };
  }
}

/** The token that clients show. Made on the first start, 0600. */
export const apiToken = (config: Config): string => new TokenFile(config.tokenFile).token;

/** The token that services show each other, also where only they may call. Made on the first start, 0600. */
export const internalToken = (config: Config): string => new TokenFile(config.internalTokenFile).token;
