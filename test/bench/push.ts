/**
 * Pushes bundles into one registry, with Airdock, skopeo and Docker in turn, beside the floor: `cp` of the same bytes
 * and one sha256 of them. Then (or with `--only load`) pushes 20 GB, and measures what that costs others: memory of the
 * process, and time of `GET /v1/jobs/{id}`. `node test/dist/bench/push.js [--rounds N] [--only NAME]`; each row goes
 * into docs/benchmarks.md as it is finished, when it is of five rounds or more.
 */
import { execFile } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createBundle, createPush, getJob } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { localPushPasswordFile } from '@airdock/registry/engine/local-push';
import { labCacheDir } from '@airdock/testing/lab/engine';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { tempDir } from '@airdock/testing/servers';
import { Du } from '../support/du.js';
import { resourceId, success } from '../support/jobs.js';
import { Services } from '../support/services.js';
import { type BenchBundle, dockerArchive, ociLayout, tinyImages } from './bundles.js';
import { forgetPeak, median, memoryOf, option, publish, rounds } from './report.js';

const run = promisify(execFile);
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
  /** What lets Docker and skopeo push to localhost: the folder of a `config.json` of Docker's. */
  logins: string;
}

/** Milliseconds of the pushed job alone: from the request to the job's end. */
async function pushWithAirdock({ client }: Site, bundle: BenchBundle): Promise<number> {
  const bundleId = resourceId(
    await success(client, createBundle({ client, body: { path: bundle.path }, throwOnError: true })),
  );
  const started = performance.now();
  await success(client, createPush({ client, body: { bundleId }, throwOnError: true }));
  return performance.now() - started;
}

async function pushWithSkopeo({ du, logins }: Site, { images, source }: BenchBundle): Promise<number> {
  const started = performance.now();
  for (const name of images) {
    const target = `docker://localhost:${du.registryPort}/${name.slice(name.indexOf('/') + 1)}`;
    const options = [
      '--insecure-policy',
      '--quiet',
      '--dest-tls-verify=false',
      '--dest-authfile',
      join(logins, 'config.json'),
    ];
    await run('skopeo', ['copy', ...options, source(name), target], { maxBuffer: 1 << 24 });
  }
  return performance.now() - started;
}

async function pushWithDocker({ du, lab, logins }: Site, { path, images }: BenchBundle): Promise<number> {
  const docker = async (...args: string[]) =>
    run('docker', ['--config', logins, '-H', `unix://${lab?.engine.socketPath}`, ...args], { maxBuffer: 1 << 24 });
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

async function measure(sites: Record<'direct' | 'http', Site>, row: Row): Promise<Map<Contender, number>> {
  const times = new Map<Contender, number[]>(row.contenders.map((name) => [name, []]));
  const siteOf = (name: Contender) => (name === 'Airdock over HTTP' ? sites.http : sites.direct);
  if (row.before === row.bundle) {
    await Promise.all([reset(sites.direct), reset(sites.http)]);
    for (const name of row.contenders) await contenders[name](siteOf(name), row.bundle);
  }
  for (let round = 0; round < rounds; round++) {
    for (const name of row.contenders) {
      const site = siteOf(name);
      // What changes nothing needs to be prepared once.
      if (row.before !== row.bundle) {
        await reset(site);
        if (row.before) await contenders[name](site, row.before);
      }
      const elapsed = await contenders[name](site, row.bundle);
      times.get(name)?.push(elapsed);
      process.stderr.write(`${row.name}, round ${round + 1}: ${name} ${(elapsed / 1000).toFixed(2)} s\n`);
    }
  }
  return new Map([...times].map(([name, values]) => [name, median(values)]));
}

const megabytes = (value: number): string => `${Math.round(value)} MB`;

/**
 * One push of a large bundle, which is asked for fifty times a second meanwhile; the memory is that of the process
 * `pid`. Returns the cells of its row.
 */
async function measureLoad(
  name: string,
  { client, pid }: { client: Client; pid: number | undefined },
  bundle: BenchBundle,
): Promise<string[]> {
  const bundleId = resourceId(
    await success(client, createBundle({ client, body: { path: bundle.path }, throwOnError: true })),
  );
  await forgetPeak(pid);
  const idle = await memoryOf(pid, 'VmRSS');
  const started = performance.now();
  const { id } = (await createPush({ client, body: { bundleId }, throwOnError: true })).data;
  const answers: number[] = [];
  for (let finished = false; !finished; await new Promise((resolve) => setTimeout(resolve, 20))) {
    const asked = performance.now();
    const { data: job } = await getJob({ client, path: { id }, throwOnError: true });
    answers.push(performance.now() - asked);
    if (job.error) throw new Error(`the push failed: ${job.error.detail}`);
    finished = job.finishedAt !== null;
  }
  const seconds = (performance.now() - started) / 1000;
  const sorted = answers.toSorted((a, b) => a - b);
  const percentile = (share: number) => `${sorted[Math.floor(share * (sorted.length - 1))]?.toFixed(1)} ms`;
  return [
    name,
    `${seconds.toFixed(1)} s`,
    megabytes(idle),
    megabytes(await memoryOf(pid, 'VmHWM')),
    `${answers.length}`,
    ...[0.5, 0.99, 1].map(percentile),
  ];
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
    {
      name: 'docker-archive again, nothing changed',
      bundle: saved,
      before: saved,
      contenders: ['Airdock', 'Airdock over HTTP', 'skopeo'],
    },
    {
      name: 'OCI layout again, nothing changed',
      bundle: layout,
      before: layout,
      contenders: ['Airdock', 'Airdock over HTTP', 'skopeo'],
    },
    {
      name: '1,000 tiny images again, nothing changed',
      bundle: tiny,
      before: tiny,
      contenders: ['Airdock', 'Airdock over HTTP', 'skopeo'],
    },
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
    const registry = { directPlacement, localPush: true };
    const du = await Du.start({ folder: join(folder.path, name), bundleDir: bundles, stopsRegistry: true, registry });
    const logins = join(folder.path, name, 'logins');
    await mkdir(logins, { mode: 0o700 });
    const password = (await readFile(localPushPasswordFile(du.dataDir), 'utf8')).trim();
    const auths = { [`localhost:${du.registryPort}`]: { auth: Buffer.from(`airdock:${password}`).toString('base64') } };
    await writeFile(join(logins, 'config.json'), JSON.stringify({ auths }), { mode: 0o600 });
    return { du, client: await du.client(), lab, folder: folder.path, logins };
  };
  const sites = { direct: await start('direct', true), http: await start('http', false) };
  await using _direct = sites.direct.du;
  await using _http = sites.http.du;
  for (const row of rows) {
    const medians = await measure(sites, row);
    const ours = medians.get('Airdock') as number;
    const cell = (name: Contender) => {
      const value = medians.get(name);
      if (value === undefined) return '';
      const ratio = value / ours;
      return name === 'Airdock'
        ? `${(value / 1000).toFixed(2)} s`
        : `${(value / 1000).toFixed(2)} s (${ratio.toFixed(ratio < 10 ? 1 : 0)}×)`;
    };
    await publish([row.name, ...(['Airdock', 'Airdock over HTTP', 'skopeo', 'docker', 'floor'] as const).map(cell)]);
  }
  if (!only || only === 'load') {
    const large = await ociLayout(bundles, { images: 20, sharedBytes: [20_000], ownBytes: 1_000_000_000 });
    for (const [name, site] of [
      ['20 GB', sites.direct],
      ['20 GB over HTTP', sites.http],
    ] as const) {
      await reset(site);
      await publish(await measureLoad(name, { client: site.client, pid: site.du.pid as number }, large));
      await reset(site);
    }
    await using services = await Services.start(join(folder.path, 'services'), bundles);
    const worker = services.process('image', 'worker').pid;
    await publish(await measureLoad('20 GB, services apart', { client: services.client('image'), pid: worker }, large));
    await rm(large.path, { recursive: true });
  }
}

await main();
process.exit(0);
