/**
 * Pushes bundles into one registry, with Airdock, skopeo and Docker in turn, beside the floor: `cp` of the same bytes and one sha256 of them.
 * `node test/dist/bench/push.js [--rounds N] [--only NAME]`; writes docs/benchmarks.md when nothing was left out and medians are of five or more.
 */
import { execFile } from 'node:child_process';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createBundle, createPush } from '@airdock/adapters/api-clients/generated/sdk.gen';
import type { Client } from '@airdock/adapters/api-clients/service-clients';
import { labCacheDir } from '@airdock/testing/lab/engine';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { tempDir } from '@airdock/testing/servers';
import { Du, repository } from '../support/du.js';
import { resourceId, success } from '../support/jobs.js';
import { type BenchBundle, dockerArchive, ociLayout, tinyImages } from './bundles.js';

const run = promisify(execFile);
const option = (name: string): string | undefined => (process.argv.includes(name) ? process.argv[process.argv.indexOf(name) + 1] : undefined);
const rounds = Number(option('--rounds') ?? 5);
const only = option('--only');

type Contender = 'Airdock' | 'Airdock over HTTP' | 'skopeo' | 'docker' | 'floor';

interface Row {
  name: string;
  bundle: BenchBundle;
  /** Pushed before each measurement, with the contender's own tool; without it the registry is empty. */
  before?: BenchBundle;
  contenders: Contender[];
}

interface Site {
  du: Du;
  client: Client;
  lab: Lab | undefined;
  folder: string;
}

const sizeOf = async (path: string): Promise<number> => Number.parseInt((await run('du', ['-sk', path])).stdout, 10) * 1024;

/** Milliseconds of the pushed job alone: from the request to the job's end. */
async function pushWithAirdock({ client }: Site, bundle: BenchBundle): Promise<number> {
  const bundleId = resourceId(await success(client, createBundle({ client, body: { path: bundle.path }, throwOnError: true })));
  const started = performance.now();
  await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
  return performance.now() - started;
}

async function pushWithSkopeo({ du }: Site, { images, source }: BenchBundle): Promise<number> {
  const started = performance.now();
  for (const name of images) {
    const target = `docker://localhost:${du.registryPort}/${name.slice(name.indexOf('/') + 1)}`;
    await run('skopeo', ['--insecure-policy', 'copy', '--quiet', '--dest-tls-verify=false', source(name), target], { maxBuffer: 1 << 24 });
  }
  return performance.now() - started;
}

async function pushWithDocker({ du, lab }: Site, { path, images }: BenchBundle): Promise<number> {
  const docker = async (...args: string[]) => run('docker', ['-H', `unix://${lab?.engine.socketPath}`, ...args], { maxBuffer: 1 << 24 });
  const local = images.map((name) => `localhost:${du.registryPort}/${name.slice(name.indexOf('/') + 1)}`);
  const started = performance.now();
  await docker('load', '--quiet', '--input', path);
  for (const [index, name] of images.entries()) {
    await docker('tag', name.replace('docker.io/', ''), local[index] as string);
    await docker('push', '--quiet', local[index] as string);
  }
  const elapsed = performance.now() - started;
  await docker('image', 'rm', '--force', ...images.map((name) => name.replace('docker.io/', '')), ...local);
  return elapsed;
}

/** The same bytes, once copied and once hashed: less cannot be done. */
async function floor({ folder }: Site, { path }: BenchBundle): Promise<number> {
  const started = performance.now();
  await run('cp', ['-r', path, join(folder, 'copy')]);
  await run('sh', ['-c', 'find "$1" -type f -print0 | xargs -0 sha256sum > /dev/null', 'sh', path]);
  const elapsed = performance.now() - started;
  await rm(join(folder, 'copy'), { recursive: true });
  return elapsed;
}

const contenders: Record<Contender, (site: Site, bundle: BenchBundle) => Promise<number>> = {
  Airdock: pushWithAirdock,
  'Airdock over HTTP': pushWithAirdock,
  skopeo: pushWithSkopeo,
  docker: pushWithDocker,
  floor,
};

/** An empty registry, and nothing remembered of earlier pushes. */
async function reset({ du }: Site): Promise<void> {
  await rm(join(du.dataDir, 'registry/storage/docker'), { recursive: true, force: true });
  await rm(join(du.dataDir, 'image/work'), { recursive: true, force: true });
  await run('sync');
}

const median = (values: number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] as number;

async function measure(sites: Record<'direct' | 'http', Site>, row: Row): Promise<Map<Contender, number>> {
  const times = new Map<Contender, number[]>(row.contenders.map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const name of row.contenders) {
      const site = name === 'Airdock over HTTP' ? sites.http : sites.direct;
      await reset(site);
      if (row.before && name !== 'floor') await contenders[name](site, row.before);
      const elapsed = await contenders[name](site, row.bundle);
      times.get(name)?.push(elapsed);
      process.stderr.write(`${row.name}, round ${round + 1}: ${name} ${(elapsed / 1000).toFixed(2)} s\n`);
    }
  }
  return new Map([...times].map(([name, values]) => [name, median(values)]));
}

async function main(): Promise<void> {
  const bundles = join(labCacheDir(), '../bench-bundles');
  await mkdir(bundles, { recursive: true });
  const saved = await dockerArchive(bundles);
  const layout = await ociLayout(bundles);
  const tiny = await tinyImages(bundles);
  const all: Contender[] = ['floor', 'Airdock', 'Airdock over HTTP', 'skopeo'];
  const rows: Row[] = [
    { name: 'docker-archive, 6 images on a 580 MB layer', bundle: saved, contenders: [...all, 'docker'] },
    { name: 'OCI layout, 40 images, 3 GB', bundle: layout, contenders: all },
    { name: '1,000 tiny images', bundle: tiny, contenders: all },
    { name: 'docker-archive again, nothing changed', bundle: saved, before: saved, contenders: ['Airdock', 'Airdock over HTTP', 'skopeo'] },
    { name: 'OCI layout again, nothing changed', bundle: layout, before: layout, contenders: ['Airdock', 'Airdock over HTTP', 'skopeo'] },
    { name: '1,000 tiny images again, nothing changed', bundle: tiny, before: tiny, contenders: ['Airdock', 'Airdock over HTTP', 'skopeo'] },
    {
      name: 'OCI layout again, one layer changed',
      bundle: await ociLayout(bundles, { change: '-b' }),
      before: layout,
      contenders: ['Airdock', 'Airdock over HTTP', 'skopeo'],
    },
  ].filter(({ name }) => !only || name.includes(only)) as Row[];

  await using folder = await tempDir('bench');
  const { lab } = await startLab();
  await using _lab = lab;
  const start = async (name: string, directPlacement: boolean): Promise<Site> => {
    const du = await Du.start({ folder: join(folder.path, name), bundleDir: bundles, stopsRegistry: true, registry: { directPlacement } });
    return { du, client: await du.client(), lab, folder: folder.path };
  };
  const sites = { direct: await start('direct', true), http: await start('http', false) };
  await using _direct = sites.direct.du;
  await using _http = sites.http.du;
  const lines: string[] = [];
  for (const row of rows) {
    const medians = await measure(sites, row);
    const ours = medians.get('Airdock') as number;
    const cell = (name: Contender) => {
      const value = medians.get(name);
      return value === undefined
        ? ''
        : name === 'Airdock'
          ? `${(value / 1000).toFixed(2)} s`
          : `${(value / 1000).toFixed(2)} s (${(value / ours).toFixed(value / ours < 10 ? 1 : 0)}×)`;
    };
    lines.push(`| ${[row.name, ...(['Airdock', 'Airdock over HTTP', 'skopeo', 'docker', 'floor'] as const).map(cell)].join(' | ')} |`);
  }
  const sizes = await Promise.all([saved, layout, tiny].map(async ({ path }) => `${((await sizeOf(path)) / 1e6).toFixed(0)} MB`));
  const text = `# Benchmarks

Made by \`test/bench/push.ts\`: each tool pushes the same bundle into the same kind of registry (distribution, on this machine), in turn, from an empty registry and with
nothing remembered; medians of ${rounds}, on ${cpus().length} × ${cpus()[0]?.model.trim()}. In brackets: how many times Airdock's own time. Airdock gives every image two or three
names, the others one. The floor is \`cp\` of the bundle and one sha256 of it. Bundles: ${sizes.join(', ')}. Machines differ: compare ratios.

| bundle | Airdock | Airdock over HTTP | skopeo copy | docker load + push | floor |
| --- | --- | --- | --- | --- | --- |
${lines.join('\n')}
`;
  process.stdout.write(text);
  if (!only && rounds >= 5) await writeFile(join(repository, 'docs/benchmarks.md'), text);
}

await main();
process.exit(0);
