import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { AppError, isTransient } from '@airdock/core/errors';
import { BullModule, getQueueToken } from '@nestjs/bullmq';
import {
  type DynamicModule,
  type INestApplicationContext,
  Module,
  type ModuleMetadata,
  type Provider,
  type Type,
} from '@nestjs/common';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { getDataSourceToken, TypeOrmModule } from '@nestjs/typeorm';
import type { Queue } from 'bullmq';
import { DataSource, type ObjectLiteral } from 'typeorm';
import { CONFIG, type Config, loadConfig, type ServiceName } from './config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase, translateDatabaseError } from './database.js';
import { DiskReserve } from './disk-reserve.js';
import { EventSink } from './events/event-sink.js';
import { Outbox } from './events/outbox.js';
import { OutboxForwarder } from './events/outbox-forwarder.js';
import {
  HealthController,
  NOTICE_SOURCES,
  type NoticeSource,
  READINESS_CHECKS,
  type ReadinessCheck,
} from './http/health.controller.js';
import { IdempotencyInterceptor } from './http/idempotency.js';
import type { LocalSocket } from './http/local-socket.js';
import { Servers } from './http/servers.js';
import { platformEntities } from './jobs/job.entity.js';
import { JobRetention } from './jobs/job-retention.js';
import { JobSweeper } from './jobs/job-sweeper.js';
import { JOB_SERVICES, JobDirectory, JobsController } from './jobs/jobs.controller.js';
import { JobsService } from './jobs/jobs.service.js';
import { jobProcessors } from './jobs/runs-job.js';
import { PlatformModule } from './platform.module.js';
import { exitWithProblem, stopSignal } from './process.js';
import type { Migration } from './schema/migration.js';
import { readSecretFile, securePrivateFolder } from './secret-file.js';
import { SecretBox } from './secrets.js';
import { SealedColumns } from './secrets-key/sealed-columns.js';
import { SEALED_COLUMNS, SecretsKeyController } from './secrets-key/secrets-key.controller.js';
import { StateService } from './state/state.service.js';
import type { StateTable } from './state/state-table.js';
import { STATE_SERVICES, StatesController } from './state/states.controller.js';

/** What a process does for a service: answer requests, work off jobs, or both. */
export type Role = 'api' | 'worker';
/** What of a service runs in a process. */
export type Roles = readonly Role[];

/** A service module as the DU and the entry points use it. */
export interface ServiceModule {
  register(roles: Roles): DynamicModule;
}

/** What a service consists of. */
export interface ServiceDefinition {
  module: Type;
  name: ServiceName;
  entities: (new () => ObjectLiteral)[];
  /** What makes and changes the tables of the entities, oldest first. */
  migrations: readonly Migration[];
  /** Present in the role `api`. */
  controllers: Type[];
  /** Present in both roles. */
  providers: Provider[];
  /** Present in the role `worker`: what runs by itself. */
  workers?: Provider[];
  /** Each has one method, of a provider or a worker, that runs its jobs (`@RunsJob`). */
  jobTypes: string[];
  /** Tables with a `jobId` whose rows tell of that job only, and go with it when it is old. */
  history?: (new () => ObjectLiteral)[];
  /** What of the tables belongs into backups. */
  state?: readonly StateTable[];
  /** The provider that knows what `/readyz` should tell beside the checks. */
  noticeSource?: Type<NoticeSource>;
}

/** Injection token of a service's `JobsService` outside its module. */
export const jobsToken = (name: ServiceName) => `jobs:${name}`;
const stateToken = (name: ServiceName) => `state:${name}`;
const noticesToken = (name: ServiceName) => `notices:${name}`;
const sealedToken = (name: ServiceName) => `sealed:${name}`;
/** Injection token of a service's `ServiceDatabase` outside its module. */
export const databaseToken = (name: ServiceName) => `database:${name}`;

/**
 * The Nest module of a service: its own database, its queues, its jobs, and the parts that the process's roles ask for.
 * Throws when a job type has no method that runs its jobs.
 *
 * @example
 * ```ts
 * @Module({})
 * export class ImageModule {
 *   static register(roles: Roles): DynamicModule {
 *     return defineService(roles, {
 *       module: ImageModule,
 *       name: 'image',
 *       entities: [PushEntity],
 *       migrations: imageMigrations,
 *       controllers: [PushController],
 *       providers: [PushService],
 *       jobTypes: [pushJobType],
 *     });
 *   }
 * }
 * ```
 */
export function defineService(roles: Roles, definition: ServiceDefinition): DynamicModule {
  const { module, name, controllers, providers, workers = [], jobTypes } = definition;
  const queues = jobTypes.map((type) => ({ name: type }));
  // Also where no worker is: a job that nothing runs is found at the first start.
  const processors = jobProcessors([...providers, ...workers], jobTypes);
  return {
    module,
    imports: [...databaseImports(definition), ...(queues.length > 0 ? [BullModule.registerQueue(...queues)] : [])],
    controllers: roles.includes('api') ? controllers : [],
    providers: [
      ...ownProviders(definition),
      ...providers,
      ...(roles.includes('worker') ? [...workers, ...processors, ...loopsOf(definition)] : []),
    ],
    exports: [noticesToken(name), jobsToken(name), databaseToken(name), stateToken(name), sealedToken(name)],
  };
}

/** The service's own database, and the repositories of its tables. */
function databaseImports({ name, entities, migrations }: ServiceDefinition): DynamicModule[] {
  const tables = [...platformEntities, ...entities];
  return [
    TypeOrmModule.forRootAsync({
      name,
      inject: [CONFIG],
      useFactory: (config: Config) => ({
        ...dataSourceOptions(config, name, tables, migrations),
        retryAttempts: 3,
        retryDelay: 1000,
        toRetry: (error: unknown) => isTransient(translateDatabaseError(error)),
      }),
      dataSourceFactory: async (options) => {
        if (!options) throw new Error('no data source options');
        return connectDatabase(options);
      },
    }),
    TypeOrmModule.forFeature(tables, name),
  ];
}

/** What every service has in both roles: its database, events, jobs and state, some of it for the rest of the process. */
function ownProviders({ name, jobTypes, state = [], noticeSource }: ServiceDefinition): Provider[] {
  return [
    {
      provide: ServiceDatabase,
      inject: [getDataSourceToken(name)],
      useFactory: (dataSource: DataSource) => new ServiceDatabase(dataSource),
    },
    { provide: Outbox, inject: [ServiceDatabase], useFactory: (database: ServiceDatabase) => new Outbox(database) },
    {
      provide: JobsService,
      inject: [ServiceDatabase, Outbox, ...jobTypes.map((type) => getQueueToken(type))],
      useFactory: (database: ServiceDatabase, outbox: Outbox, ...queues: Queue[]) =>
        new JobsService(name, database, new Map(jobTypes.map((type, index) => [type, queues[index] as Queue])), outbox),
    },
    IdempotencyInterceptor,
    { provide: jobsToken(name), useExisting: JobsService },
    { provide: databaseToken(name), useExisting: ServiceDatabase },
    noticeSource
      ? { provide: noticesToken(name), useExisting: noticeSource }
      : { provide: noticesToken(name), useValue: { notices: async () => ({}) } },
    {
      provide: stateToken(name),
      inject: [ServiceDatabase, SecretBox, CONFIG],
      useFactory: (database: ServiceDatabase, secrets: SecretBox, config: Config) =>
        new StateService(name, state, database, secrets, config),
    },
    {
      provide: sealedToken(name),
      inject: [ServiceDatabase, SecretBox],
      useFactory: (database: ServiceDatabase, secrets: SecretBox) => new SealedColumns(database, secrets),
    },
  ];
}

/** What every worker does by itself, beside its jobs. */
function loopsOf({ history = [] }: ServiceDefinition): Provider[] {
  return [
    {
      provide: OutboxForwarder,
      inject: [ServiceDatabase, EventSink],
      useFactory: (database: ServiceDatabase, sink: EventSink) => new OutboxForwarder(database, sink),
    },
    {
      provide: JobRetention,
      inject: [CONFIG, ServiceDatabase],
      useFactory: (config: Config, database: ServiceDatabase) => new JobRetention(config.jobs, database, history),
    },
    {
      provide: JobSweeper,
      inject: [JobsService, ServiceDatabase],
      useFactory: (service: JobsService, database: ServiceDatabase) => new JobSweeper(service, database),
    },
  ];
}

/** The root module of a process: the platform, the services, their jobs and health behind one port. */
export function rootModule(config: Config, services: Partial<Record<ServiceName, ServiceModule>>, roles: Roles): Type {
  const names = Object.keys(services) as ServiceName[];
  const metadata: ModuleMetadata = {
    imports: [PlatformModule.forRoot(config), ...Object.values(services).map((service) => service.register(roles))],
    controllers: [
      HealthController,
      ...(roles.includes('api') ? [JobsController, StatesController, SecretsKeyController] : []),
    ],
    providers: [
      JobDirectory,
      { provide: STATE_SERVICES, inject: names.map(stateToken), useFactory: (...states: StateService[]) => states },
      { provide: SEALED_COLUMNS, inject: names.map(sealedToken), useFactory: (...columns: SealedColumns[]) => columns },
      { provide: JOB_SERVICES, inject: names.map(jobsToken), useFactory: (...jobs: JobsService[]) => jobs },
      {
        provide: NOTICE_SOURCES,
        inject: names.map(noticesToken),
        useFactory: (...sources: NoticeSource[]): NoticeSource[] => [
          { notices: async () => noticesOfSecretFiles(config) },
          ...sources,
        ],
      },
      {
        provide: READINESS_CHECKS,
        inject: names.map(databaseToken),
        useFactory: (...databases: ServiceDatabase[]): ReadinessCheck[] =>
          databases.map(({ dataSource }, index) => ({
            name: `database:${names[index]}`,
            check: async () => void (await dataSource.query('SELECT 1')),
          })),
      },
    ],
  };
  class RootModule {}
  Module(metadata)(RootModule);
  return RootModule;
}

/** Where a process answers: TCP, and a Unix socket if wanted. */
export interface Listening {
  port: number;
  host: string;
  /** The servers that the application was made with, and the socket that they listen on too. */
  local?: { servers: Servers; socket: LocalSocket } | undefined;
}

/** Answers requests, and then begins to take jobs: they may call the services of this process. */
export async function listen(app: NestFastifyApplication, { port, host, local }: Listening): Promise<void> {
  await app.listen(port, host);
  await local?.servers.listenLocally(local.socket);
  startProcessors(app);
}

/** Begins to take jobs. */
export function startProcessors(app: INestApplicationContext): void {
  for (const { processors } of app.get<JobsService[]>(JOB_SERVICES))
    for (const processor of processors) processor.start();
}

/**
 * What would keep the next start from reading its secrets, while this process goes on with what it has read. Names no
 * path: everybody may ask.
 */
function noticesOfSecretFiles({ tokenFile, internalTokenFile, secretsKeyFile }: Config): Record<string, string> {
  const notices: Record<string, string> = {};
  for (const [name, path] of Object.entries({ tokenFile, internalTokenFile, secretsKeyFile }))
    try {
      readSecretFile(path);
    } catch (error) {
      notices[name] =
        error instanceof AppError
          ? `${error.code}: the next start is refused until its owner and mode are put right`
          : 'it cannot be read';
    }
  return notices;
}

/**
 * Before anything else: whatever this process makes is its own business, and so is the data folder. Throws
 * `file_exposed`.
 */
export function keepPrivate({ dataDir, tokenFile, internalTokenFile, secretsKeyFile }: Config): void {
  process.umask(0o077);
  const done = securePrivateFolder(dataDir);
  if (done) process.stderr.write(`airdock: ${done}\n`);
  // Those that are there; the others are made when they are needed.
  for (const file of [tokenFile, internalTokenFile, secretsKeyFile]) if (existsSync(file)) readSecretFile(file);
}

/** Of the disk of the data folder. A start needs some of it where that is full. */
export const dataReserve = ({ dataDir }: Config): DiskReserve => new DiskReserve(join(dataDir, 'reserve'));

/** The application of a process, answering. */
export async function serve(config: Config, module: Type, title: string): Promise<NestFastifyApplication> {
  const { port, host, socket, socketGroup } = config.http;
  const servers = new Servers(config.http);
  // Only where there is HTTP: it brings the documents of the API along.
  const { createHttpApp } = await import('./http/app.js');
  const app = await createHttpApp(module, { title, servers });
  await listen(app, {
    port,
    host,
    local: socket === undefined ? undefined : { servers, socket: { path: socket, group: socketGroup } },
  });
  return app;
}

/**
 * Runs one service as a process of its own, in one role: the body of every `main.ts` and `worker.ts`. A worker answers
 * health and metrics only.
 */
export async function runService(name: ServiceName, service: ServiceModule, role: Role): Promise<never> {
  try {
    const config = loadConfig();
    keepPrivate(config);
    await dataReserve(config).relieve();
    const app = await serve(config, rootModule(config, { [name]: service }, [role]), `Airdock ${name}-svc`);
    process.stdout.write(`${name}-svc ${role} listens on http://${config.http.host}:${config.http.port}\n`);
    await stopSignal();
    await app.close();
    process.exit(0);
  } catch (error) {
    return exitWithProblem(error);
  }
}
