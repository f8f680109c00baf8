import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { hasHostWork, waitForHostWork } from '@airdock/host-svc/host-work';
import { HostWorker, type HostWorkerOptions } from '@airdock/host-svc/host-worker/host-worker';
import { TunnelService } from '@airdock/host-svc/tunnel/tunnel.service';
import { type Config, type ConfigSources, loadConfig } from '@airdock/platform/config';
import type { ServiceDatabase } from '@airdock/platform/database';
import { ownedByOthers } from '@airdock/platform/jobs/job-claims';
import { JOB_SERVICES } from '@airdock/platform/jobs/jobs.controller';
import type { JobsService } from '@airdock/platform/jobs/jobs.service';
import { exitWithProblem, freeStartupMemory, stopSignal } from '@airdock/platform/process';
import { databaseToken, dataReserve, keepPrivate, rootModule, serve } from '@airdock/platform/service';
import { RegistryEngineService, registryEngine } from '@airdock/registry-svc/registry-engine/registry-engine.service';
import { Command, InvalidArgumentError } from '@commander-js/extra-typings';
import { type INestApplicationContext, Logger } from '@nestjs/common';
import { lockDataDir } from './data-dir-lock.js';
import { EmbeddedRedis } from './embedded-redis.js';
import { services } from './services.js';

const workerStartMs = 15_000;
/** Of the ten seconds that closing may take, when the registry is to be ended after it. */
const closeMs = 4_000;

const port = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > 65535) throw new InvalidArgumentError('not a port');
  return value;
};

/**
 * All five services, API and workers, in this process behind one port and one Unix socket; but for the workers of
 * host-svc, which are a process of their own. Prints where it answers when it is ready; SIGTERM ends it, the registry
 * stays.
 */
async function up(sources: ConfigSources, stopsRegistry: boolean): Promise<void> {
  const given = loadConfig(sources);
  const socket = given.http.socket ?? join(given.dataDir, 'api.sock');
  const config: Config = { ...given, http: { ...given.http, socket } };
  keepPrivate(config);
  await dataReserve(config).relieve();
  const unlock = lockDataDir(config.dataDir);
  const redis = config.redisUrl ? undefined : new EmbeddedRedis(config.dataDir);
  const redisUrl = config.redisUrl ?? redis?.socket;
  const hostWorker = hostWorkerOf(config, {
    file: config.file,
    overrides: { ...sources.overrides, redisUrl, 'http.socket': socket },
    answersHealth: false,
  });
  const ending = new AbortController();
  try {
    await redis?.start();
    const host = { register: () => services.host.register(['api']) };
    const stopped = stopSignal();
    const app = await serve(
      config,
      rootModule({ ...config, redisUrl }, { ...services, host }, ['api', 'worker']),
      'Airdock',
    );
    const registry = app.get(RegistryEngineService, { strict: false });
    if (!config.databaseUrl) await releaseDead(app);
    const hostDatabase: ServiceDatabase = app.get(databaseToken('host'), { strict: false });
    void waitForHostWork(hostDatabase, config, ending.signal).then(
      () => hostWorker.start(),
      () => undefined,
    );
    // Ready means that the registry is in the wanted state. If it cannot be, the API tells why and the supervisor goes
    // on trying.
    await registry.reconcile().catch((error: Error) => process.stderr.write(`airdock: ${error.message}\n`));
    // A host that freezes it at once must not keep the API from being ready.
    if (await hasHostWork(hostDatabase, config))
      await Promise.race([hostWorker.ready, delay(workerStartMs, undefined, { ref: false })]);
    process.stdout.write(
      `Airdock is ready on http://${config.http.host}:${config.http.port}\nsocket: ${socket}\ntoken: ${config.tokenFile}\n`,
    );
    freeStartupMemory();
    await stopped;
    ending.abort();
    const closing = hostWorker.stop().then(() => app.close());
    if (stopsRegistry) {
      // Whoever waits for a Redis that has got the same signal, or fails without it, must not keep the registry from
      // being ended.
      await Promise.race([closing.catch(() => undefined), delay(closeMs, undefined, { ref: false })]);
      await registry.endForGood();
    }
    await closing;
  } finally {
    await hostWorker.stop();
    await redis?.stop();
    unlock();
  }
}

/**
 * Whoever has locked the data folder is alone in it: what a DU that was killed had begun goes on now, not when its
 * leases have ended.
 */
async function releaseDead(app: INestApplicationContext): Promise<void> {
  const owners = ownedByOthers(`${hostname()}/${process.pid}/`);
  for (const jobs of app.get<JobsService[]>(JOB_SERVICES))
    await jobs.claims.releaseDead(owners, { isExplained: false });
  await app.get(TunnelService, { strict: false }).releaseDead(owners);
}

function hostWorkerOf(config: Config, start: HostWorkerOptions['start']): HostWorker {
  const logger = new Logger(HostWorker.name);
  const log: HostWorkerOptions['log'] = (about, message) => logger.error(about, message);
  return new HostWorker({
    dataDir: config.dataDir,
    start,
    maxMemoryBytes: config.hosts.workerMemoryMiB * 1024 ** 2,
    log,
  });
}

/** Stops the registry that a DU with this configuration has left running. */
async function down(config: Config): Promise<void> {
  await registryEngine(config).stop();
  process.stdout.write('the registry is stopped\n');
}

const program = new Command('airdock').description('The local image registry of an air-gapped Kubernetes site');
const common = (command: Command) =>
  command
    .option('--data-dir <dir>', 'where everything is kept (default: /var/lib/airdock)')
    .option('--config <file>', 'instead of airctl-config.yaml in its usual places');

common(program.command('up').description('start the embedded DU in the foreground'))
  .option('--port <n>', 'of the API on loopback (default: 5180)', port)
  .option('--stop-registry', 'at the end stop the registry too, for trials and tests')
  .action(({ dataDir, config: file, port: httpPort, stopRegistry }) =>
    up({ file, overrides: { dataDir, 'http.port': httpPort } }, stopRegistry === true),
  );
common(program.command('down').description('stop the registry that `up` left running')).action(
  ({ dataDir, config: file }) => down(loadConfig({ file, overrides: { dataDir } })),
);

try {
  await program.parseAsync();
  process.exit(0);
} catch (error) {
  exitWithProblem(error);
}
