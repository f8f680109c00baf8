/**
 * Would a cluster of 50 hosts with 200 images stand up: asked from what is known, with a sample pulled by every host,
 * and with all images pulled by every host. The hosts are simulated, so that what remains is Airdock's own work. `node
 * test/dist/bench/readiness.js [--rounds N]`; five rounds or more go into docs/benchmarks.md.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  createCluster,
  createHostConfiguration,
  createImageSet,
  createPush,
  createReadinessCheck,
  getClusterReadiness,
  getReadinessCheck,
  listImages,
} from '@airdock/clients/generated/sdk.gen';
import { labCacheDir } from '@airdock/testing/lab/engine';
import { tempDir } from '@airdock/testing/servers';
import { register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { resourceId, success } from '../support/jobs.js';
import { registerSimulatedHosts, startSimulatedHosts } from '../support/simulated-hosts.js';
import { ociLayout } from './bundles.js';
import { median, publish, rounds } from './report.js';

const hostCount = 50;
const imageCount = 200;
const kubernetesVersion = '1.20.11';
const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;

const bundles = join(labCacheDir(), '../bench-bundles');
await mkdir(bundles, { recursive: true });
await using folder = await tempDir('bench-readiness');
await using du = await Du.start({ folder: folder.path, bundleDir: bundles, stopsRegistry: true });
const client = await du.client();

const bundle = await ociLayout(bundles, { images: imageCount, sharedBytes: [20_000], ownBytes: 1_000 });
await success(
  client,
  createPush({ client, body: { bundleId: await register(client, bundle.path) }, throwOnError: true }),
);
await createImageSet({ client, body: { name: 'bench', kubernetesVersion, images: bundle.images }, throwOnError: true });
const { data: catalogue } = await listImages({ client, query: { limit: 500 }, throwOnError: true });
const digests = new Map(
  catalogue.items.flatMap(({ digest, localReferences }) => localReferences.map((reference) => [reference, digest])),
);

// Docker's answer to a pull: the digest under the name that was asked for.
await using server = await startSimulatedHosts((command) => {
  if (!command.includes('docker pull')) return undefined;
  const asked = /'?(localhost:\d+\/[^'\s]+)'?\s*$/.exec(command)?.[1] ?? '';
  const digest = asked.split('@')[1] ?? digests.get(asked);
  const name = asked.replace(/@.*$/, '').replace(/:[^:/]*$/, '');
  return `["${name}@${digest}"]\n`;
});
const hostIds = await registerSimulatedHosts(client, server, hostCount);
await success(
  client,
  createHostConfiguration({
    client,
    body: { hostIds, skipDockerInstall: true, rollout: { atOnce: 16, canary: 0, maxFailureShare: 0 } },
    throwOnError: true,
  }),
);
const nodes = hostIds.map((hostId, index) => ({
  hostId,
  role: index === 0 ? ('controlPlane' as const) : ('worker' as const),
}));
const created = await success(
  client,
  createCluster({ client, body: { name: 'bench', kubernetesVersion, nodes }, throwOnError: true }),
);
const clusterId = resourceId(created);

async function known(): Promise<number> {
  const started = performance.now();
  const { data } = await getClusterReadiness({ client, path: { id: clusterId }, throwOnError: true });
  if (!data.ready) throw new Error(JSON.stringify(data.problems).slice(0, 1_000));
  return performance.now() - started;
}

const checked = (pull: 'sample' | 'all') => async () => {
  const started = performance.now();
  const job = await success(client, createReadinessCheck({ client, body: { clusterId, pull }, throwOnError: true }));
  const elapsed = performance.now() - started;
  const { data } = await getReadinessCheck({ client, path: { id: resourceId(job) }, throwOnError: true });
  if (!data.result?.ready) throw new Error(JSON.stringify(data.result?.problems).slice(0, 1_000));
  return elapsed;
};

const ways: [string, () => Promise<number>][] = [
  ['from what is known', known],
  ['every host pulls the smallest image', checked('sample')],
  ['every host pulls every image', checked('all')],
];
for (const [name, way] of ways) {
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    times.push(await way());
    process.stderr.write(`readiness, ${name}, round ${round + 1}: ${seconds(times.at(-1) ?? 0)}\n`);
  }
  await publish([`${imageCount} images, ${hostCount} hosts: ${name}`, seconds(median(times))]);
}
process.exit(0);
