/**
 * Backs a registry of 40 images and 3 GB up and restores it, with Airdock and restic in turn, beside the floor: `cp -r`
 * of the registry's storage and one sha256 of all of it. Then measures the memory of the worker that does it, and how
 * fast a host pulls meanwhile. `node test/dist/bench/backup.js [--rounds N] [--only NAME]`; each row goes into
 * docs/benchmarks.md as it is finished, when it is of five rounds or more.
 */
import { execFile } from 'node:child_process';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createBackup, createRestore } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { labCacheDir } from '@airdock/testing/lab/engine';
import { tempDir } from '@airdock/testing/servers';
import { push, register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { resourceId, success } from '../support/jobs.js';
import { Services } from '../support/services.js';
import { ociLayout } from './bundles.js';
import { forgetPeak, median, memoryOf, option, publish, rounds } from './report.js';

const run = promisify(execFile);
const only = option('--only');
const restic = (repo: string, ...args: string[]) =>
  run('restic', ['--repo', repo, '--quiet', ...args], {
    env: { ...process.env, RESTIC_PASSWORD: 'bench' },
    maxBuffer: 1 << 24,
  });

async function time(work: () => Promise<unknown>): Promise<number> {
  await run('sync');
  const started = performance.now();
  await work();
  return performance.now() - started;
}

interface Place {
  client: Client;
  /** The registry's. */
  storage: string;
  /** Airdock's backups. */
  store: string;
  folder: string;
}

/** What each contender does in a round; what comes before is not measured. */
type Contender = { name: string; before(place: Place): Promise<unknown>; work(place: Place): Promise<unknown> };

const clear = (folder: string) => rm(folder, { recursive: true, force: true });
const backUp = ({ client }: Place) => success(client, createBackup({ client, body: {}, throwOnError: true }));
let backupId = '';
const wipeRegistry = ({ storage }: Place) => clear(join(storage, 'docker'));
const sum = (folder: string) =>
  run('sh', ['-c', 'find "$1" -type f -print0 | xargs -0 sha256sum > /dev/null', 'sh', folder]);
const clearStore = async ({ store }: Place) => {
  for (const name of ['blobs', 'backups']) await clear(join(store, name));
};

const rows: Record<string, Contender[]> = {
  'Full backup, 40 images, 3 GB': [
    { name: 'Airdock', before: clearStore, work: backUp },
    {
      name: 'restic',
      before: async ({ folder }) => (await clear(join(folder, 'restic')), restic(join(folder, 'restic'), 'init')),
      work: ({ folder, storage }) => restic(join(folder, 'restic'), 'backup', storage),
    },
    {
      name: 'floor',
      before: ({ folder }) => clear(join(folder, 'copy')),
      work: async ({ folder, storage }) => {
        await run('cp', ['-r', storage, join(folder, 'copy')]);
        await sum(storage);
      },
    },
  ],
  'Backup again, nothing changed': [
    { name: 'Airdock', before: async () => undefined, work: backUp },
    {
      name: 'restic',
      before: async () => undefined,
      work: ({ folder, storage }) => restic(join(folder, 'restic'), 'backup', storage),
    },
  ],
  'Restore into an empty registry': [
    {
      name: 'Airdock',
      before: wipeRegistry,
      work: ({ client }) => success(client, createRestore({ client, body: { backupId }, throwOnError: true })),
    },
    {
      name: 'restic',
      before: ({ folder }) => clear(join(folder, 'restored')),
      work: ({ folder }) => restic(join(folder, 'restic'), 'restore', 'latest', '--target', join(folder, 'restored')),
    },
    {
      name: 'floor',
      before: ({ folder }) => clear(join(folder, 'restored')),
      work: async ({ folder, store }) => {
        await run('cp', ['-r', store, join(folder, 'restored')]);
        await sum(store);
      },
    },
  ],
};

async function measure(place: Place, name: string, contenders: Contender[]): Promise<void> {
  const times = new Map<string, number[]>(contenders.map((contender) => [contender.name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const contender of contenders) {
      await contender.before(place);
      const elapsed = await time(() => contender.work(place));
      times.get(contender.name)?.push(elapsed);
      process.stderr.write(`${name}, round ${round + 1}: ${contender.name} ${(elapsed / 1000).toFixed(2)} s\n`);
    }
  }
  const medians = new Map([...times].map(([contender, values]) => [contender, median(values)]));
  const ours = medians.get('Airdock') as number;
  const cell = (contender: string) => {
    const value = medians.get(contender);
    return value === undefined
      ? ''
      : contender === 'Airdock'
        ? `${(value / 1000).toFixed(2)} s`
        : `${(value / 1000).toFixed(2)} s (${(value / ours).toFixed(2)}×)`;
  };
  await publish([name, cell('Airdock'), cell('restic'), cell('floor')]);
}

/** Bytes per second of a host that pulls one blob after the other, until `stop` aborts. */
async function pullRate(port: number, stop: AbortSignal): Promise<number> {
  const accept = 'application/vnd.oci.image.manifest.v1+json';
  const { repositories } = (await (await fetch(`http://localhost:${port}/v2/_catalog?n=1000`)).json()) as {
    repositories: string[];
  };
  const started = performance.now();
  let bytes = 0;
  for (let index = 0; !stop.aborted; index++) {
    const repository = repositories[index % repositories.length] ?? '';
    const { tags } = (await (await fetch(`http://localhost:${port}/v2/${repository}/tags/list`)).json()) as {
      tags: string[];
    };
    const manifest = (await (
      await fetch(`http://localhost:${port}/v2/${repository}/manifests/${tags[0]}`, { headers: { accept } })
    ).json()) as {
      layers: { digest: string }[];
    };
    for (const { digest } of manifest.layers) {
      const response = await fetch(`http://localhost:${port}/v2/${repository}/blobs/${digest}`);
      for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
        bytes += chunk.byteLength;
        if (stop.aborted) return (bytes * 1000) / (performance.now() - started);
      }
    }
  }
  return (bytes * 1000) / (performance.now() - started);
}

async function measureLoad(folder: string, bundles: string, layout: string): Promise<void> {
  await using services = await Services.start(join(folder, 'services'), bundles);
  const client = services.client('backup');
  await push(services.client('image'), await register(services.client('image'), layout));
  const { pid } = services.process('backup', 'worker');
  const { AIRDOCK_DATA_DIR: dataDir = '', AIRDOCK_REGISTRY_READONLY_PORT: port } = services.environment;
  const [store, registryPort] = [join(dataDir, 'backups'), Number(port)];
  const alone: number[] = [];
  const beside: number[] = [];
  await forgetPeak(pid);
  for (let round = 0; round < rounds; round++) {
    await clearStore({ store } as Place);
    alone.push(await pullRate(registryPort, AbortSignal.timeout(3_000)));
    const stop = new AbortController();
    const rate = pullRate(registryPort, stop.signal);
    await success(client, createBackup({ client, body: {}, throwOnError: true }));
    stop.abort();
    beside.push(await rate);
  }
  const megabytes = (value: number) => `${Math.round(value / 1e6)} MB/s`;
  const share = median(beside) / median(alone);
  await publish([
    'A host pulls while a backup runs',
    `${megabytes(median(beside))} (${Math.round(share * 100)} %)`,
    `${megabytes(median(alone))} alone`,
    `${Math.round(await memoryOf(pid, 'VmHWM'))} MB`,
  ]);
}

async function main(): Promise<void> {
  const bundles = join(labCacheDir(), '../bench-bundles');
  await mkdir(bundles, { recursive: true });
  const layout = await ociLayout(bundles);
  await using folder = await tempDir('bench-backup');
  if (!only || only !== 'load') {
    await using du = await Du.start({ folder: join(folder.path, 'du'), bundleDir: bundles, stopsRegistry: true });
    const client = await du.client();
    await push(client, await register(client, layout.path));
    const place = {
      client,
      storage: join(du.dataDir, 'registry/storage'),
      store: join(du.dataDir, 'backups'),
      folder: folder.path,
    };
    for (const [name, contenders] of Object.entries(rows)) {
      if (only && !name.includes(only)) continue;
      if (name.startsWith('Restore')) backupId = resourceId(await backUp(place));
      await measure(place, name, contenders);
    }
  }
  if (!only || only === 'load') await measureLoad(folder.path, bundles, layout.path);
}

await main();
process.exit(0);
