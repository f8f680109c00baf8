/** A DU whose parts are killed at a chosen point of a job, in both of its deployments. */
import { type Dirent, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from '@airdock/clients/service-clients';
import { probeRegistry, registrySockets } from '@airdock/registry/engine/process-engine';
import { waitFor } from '@airdock/testing/servers';
import { Du, type DuOptions } from './du.js';
import { childOf, registryPid } from './processes.js';
import { type ServiceName, Services } from './services.js';

export type Victim = 'worker' | 'Redis' | 'read-write registry' | 'read-only registry';

export interface FaultSite extends AsyncDisposable {
  /** Everything of it is below. */
  folder: string;
  dataDir: string;
  bundleDir: string;
  registryPort: number;
  client(service: ServiceName): Client;
  /** The process that runs the jobs of a service. */
  workerPid(service: ServiceName): number;
  /** SIGKILL, also to what is stopped. The worker is that of the service. */
  kill(victim: Victim, service: ServiceName): Promise<void>;
  /** Starts what does not come back by itself, and waits until all of it answers. */
  revive(victim: Victim, service: ServiceName): Promise<void>;
  /** The last words of its processes. */
  output(): string;
}

/** One process, which is killed as a whole where a worker is. Its registry takes blobs in its folder. */
export async function startEmbeddedSite(folder: string, options: Partial<DuOptions> = {}): Promise<FaultSite> {
  const du = await Du.start({ folder, ...options });
  const client = await du.client();
  return {
    folder,
    dataDir: du.dataDir,
    bundleDir: du.bundleDir,
    registryPort: du.registryPort,
    client: () => client,
    workerPid: () => du.pid ?? 0,
    kill: async (victim) => {
      if (victim === 'worker') await du.end('SIGKILL');
      else
        process.kill(
          victim === 'Redis' ? await childOf(du.pid, 'redis-server') : await registryPid(du, instanceOf(victim)),
          'SIGKILL',
        );
    },
    revive: async (victim) => {
      if (victim === 'worker') await du.startProcess();
      await untilServing(du);
    },
    output: () => du.output,
    [Symbol.asyncDispose]: () => du.stop(),
  };
}

/**
 * Ten processes over PostgreSQL and a Redis that somebody has to start again. Its registry gets and gives blobs over
 * HTTP, which takes longer.
 */
export async function startSiteApart(
  folder: string,
  bundleDir: string,
  airdock: Record<string, unknown> = {},
): Promise<FaultSite & { services: Services }> {
  const services = await Services.start(folder, bundleDir, { registry: { directPlacement: false }, ...airdock });
  return {
    folder,
    services,
    dataDir: services.dataDir,
    bundleDir: services.bundleDir,
    registryPort: services.registryPort,
    client: (service) => services.client(service),
    workerPid: (service) => services.process(service, 'worker').pid,
    kill: async (victim, service) => {
      if (victim === 'worker') await services.process(service, 'worker').end('SIGKILL');
      else if (victim === 'Redis') await services.redis.kill();
      else process.kill(await registryPid(services, instanceOf(victim)), 'SIGKILL');
    },
    revive: async (victim, service) => {
      if (victim === 'worker') await services.process(service, 'worker').start();
      else if (victim === 'Redis') await services.redis.restart();
      await untilServing(services);
    },
    output: () => services.output,
    [Symbol.asyncDispose]: () => services.stop(),
  };
}

const instanceOf = (victim: Victim): 'read-write' | 'read-only' =>
  victim === 'read-write registry' ? 'read-write' : 'read-only';

/** Hosts pull from the read-only registry, whatever happens to the other one. */
async function untilServing({ dataDir, registryPort }: { dataDir: string; registryPort: number }): Promise<void> {
  const { readOnly, readWrite } = registrySockets(join(dataDir, 'run/registry'));
  for (const address of [readOnly, readWrite, `http://127.0.0.1:${registryPort}`])
    await waitFor(async () => (await probeRegistry(address)).ok, {
      what: `the registry at ${address} to answer`,
      timeoutMs: 30_000,
      intervalMs: 50,
    });
}

/**
 * Lets a process run in slices of about a millisecond, and looks between them, while it is stopped: so it stands still
 * at the point that is looked for, however short that lasts. True: it is stopped there. False: `isOver` said so first,
 * and it runs.
 */
export async function stepUntil(pid: number, isThere: () => boolean, isOver: () => Promise<boolean>): Promise<boolean> {
  const deadline = performance.now() + 60_000;
  let askAt = performance.now() + 500;
  try {
    for (;;) {
      process.kill(pid, 'SIGSTOP');
      for (let looks = 0; looks < 1_000 && !isStopped(pid); looks++);
      if (isThere()) return true;
      process.kill(pid, 'SIGCONT');
      if (performance.now() > askAt) {
        if (await isOver()) return false;
        askAt = performance.now() + 500;
      }
      if (performance.now() > deadline) throw new Error('the point was not reached, and the job has not ended');
      await delay(1);
    }
  } catch (error) {
    process.kill(pid, 'SIGCONT');
    throw error;
  }
}

function isStopped(pid: number): boolean {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return stat[stat.lastIndexOf(')') + 2] === 'T';
}

/** The names in a folder, at once: for looks at a process that is stopped. None when there is no such folder. */
export const namesIn = (...path: string[]): string[] => entriesIn(join(...path)).map(({ name }) => name);

/** The paths of all files below a folder. */
export function filesBelow(...path: string[]): string[] {
  const folder = join(...path);
  return entriesIn(folder).flatMap((entry) =>
    entry.isDirectory() ? filesBelow(folder, entry.name) : [join(folder, entry.name)],
  );
}

/** Others work there meanwhile. */
function entriesIn(folder: string): Dirent[] {
  try {
    return readdirSync(folder, { withFileTypes: true });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
