import { join } from 'node:path';
import { type Config, loadConfig } from '@airdock/platform/config';
import { exitWithProblem, keepPrivate, rootModule, serve, stopSignal } from '@airdock/platform/service';
import { RegistryService, registryEngine } from '@airdock/registry-svc/registry/registry.service';
import { Command, InvalidArgumentError } from '@commander-js/extra-typings';
import { lockDataDir } from './data-dir-lock.js';
import { EmbeddedRedis } from './embedded-redis.js';
import { services } from './services.js';

const port = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > 65535) throw new InvalidArgumentError('not a port');
  return value;
};

/** All five services, API and workers, in this process behind one port. Prints its URL when it is ready; SIGTERM ends it, the registry stays. */
async function up({ http, ...given }: Config, stopsRegistry: boolean): Promise<void> {
  const config: Config = { ...given, http: { ...http, socket: http.socket ?? join(given.dataDir, 'api.sock') } };
  keepPrivate(config);
  const unlock = lockDataDir(config.dataDir);
  const redis = config.redisUrl ? undefined : new EmbeddedRedis(config.dataDir);
  try {
    await redis?.start();
    const module = rootModule({ ...config, redisUrl: config.redisUrl ?? redis?.socket }, services, ['api', 'worker']);
    const stopped = stopSignal();
    const app = await serve(config, module, 'Airdock');
    // Ready means that the registry is in the wanted state. If it cannot be, the API tells why and the supervisor goes on trying.
    await app
      .get(RegistryService, { strict: false })
      .reconcile()
      .catch((error: Error) => process.stderr.write(`airdock: ${error.message}\n`));
    process.stdout.write(`Airdock is ready on http://${config.http.host}:${config.http.port}\nsocket: ${config.http.socket}\ntoken: ${config.tokenFile}\n`);
    await stopped;
    await app.close();
    if (stopsRegistry) await registryEngine(config).stop();
  } finally {
    await redis?.stop();
    unlock();
  }
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
    up(loadConfig({ file, overrides: { dataDir, 'http.port': httpPort } }), stopRegistry === true),
  );
common(program.command('down').description('stop the registry that `up` left running')).action(({ dataDir, config: file }) =>
  down(loadConfig({ file, overrides: { dataDir } })),
);

try {
  await program.parseAsync();
  process.exit(0);
} catch (error) {
  exitWithProblem(error);
}
