/**
 * Clusters that Airdock makes with kubeadm, on real hosts whose network is cut, with stand-ins of kubeadm, kubelet and
 * kubectl: see docs/nodes.md.
 */
import { join } from 'node:path';
import {
  createCluster,
  createClusterUpgrade,
  createImageSet,
  getCluster,
  getClusterUpgrade,
  getJob,
  listJobs,
  retryJob,
} from '@airdock/clients/generated/sdk.gen';
import type { Cluster, Job, Upgrade } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { fromProblem } from '@airdock/core/errors';
import type { LabHost } from '@airdock/testing/lab/host';
import { kubernetesImages, makeKubernetesPackages } from '@airdock/testing/lab/kubeadm';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { addAptMetadata } from '@airdock/testing/lab/package-folders';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { cutOff, triedElsewhere } from '../support/host-firewall.js';
import { type HostGate, installGate } from '../support/host-gate.js';
import { configureHost, dockerNames, out, registerHost } from '../support/hosts.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { endWithLab } from '../support/lab-ends.js';
import { registryPids } from '../support/processes.js';

const names = ['master', 'first', 'second'];
const versions = ['1.20.11', '1.21.14', '1.22.17'] as const;
type Version = (typeof versions)[number];
const [made, next, last] = versions;
const started = await startLab();
if (!started.lab) process.stderr.write(`kubeadm clusters: skipped: ${started.reason}\n`);

describe.skipIf(!started.lab)('a cluster made with kubeadm', () => {
  const lab = started.lab as Lab;
  let folder: TempDir;
  let du: Du;
  let client: Client;
  let hosts: LabHost[];
  let gates: HostGate[];
  let clusterId: string;

  beforeAll(async () => {
    folder = await tempDir('kubeadm-clusters');
    const apt = join(folder.path, 'apt');
    await makeKubernetesPackages(apt, versions);
    await addAptMetadata(apt);
    const packages = { repositories: [{ name: 'kubernetes', format: 'apt', folder: apt }] };
    [du, ...hosts] = (await Promise.all([
      Du.start({ folder: folder.path, packages }),
      ...names.map((name) => lab.startHost({ name })),
    ])) as [Du, ...LabHost[]];
    client = await du.client();
    gates = await Promise.all(hosts.map((host) => installGate(host, '/usr/sbin/service', 'kubelet\\ restart')));
    await Promise.all(hosts.map((host) => cutOff(host, hosts)));
    for (const version of versions) {
      const images = kubernetesImages(version);
      const bundleId = await carryIn(client, du, { name: version, images });
      await createImageSet({
        client,
        body: { name: `k8s-${version}`, kubernetesVersion: version, images },
        throwOnError: true,
      });
      if (version === made) await push(client, bundleId);
    }
    const hostIds = await Promise.all(hosts.map((host) => registerHost(client, host, { name: host.name })));
    for (const { job } of await Promise.all(hostIds.map((id) => configureHost(client, id))))
      if (job.error) throw fromProblem(job.error);
    const nodes = hostIds.map((hostId, index) => ({
      hostId,
      role: index === 0 ? ('controlPlane' as const) : ('worker' as const),
    }));
    const body = { name: 'k', kubernetesVersion: made, provisioner: 'kubeadm' as const, nodes };
    clusterId = resourceId(await success(client, createCluster({ client, body, throwOnError: true })));
  });
  endWithLab(lab, () => ({ du, folder }));

  const master = () => hosts[0] as LabHost;
  const clusterOf = async (): Promise<Cluster> =>
    (await getCluster({ client, path: { id: clusterId }, throwOnError: true })).data;
  const upgradeOf = async (job: Job): Promise<Upgrade> =>
    (await getClusterUpgrade({ client, path: { clusterId, id: resourceId(job) }, throwOnError: true })).data;
  const upgrade = async (kubernetesVersion: Version): Promise<Job> =>
    (await createClusterUpgrade({ client, path: { clusterId }, body: { kubernetesVersion }, throwOnError: true })).data;
  /** Once all have told their state. */
  const expectNodes = (version: Version) =>
    expect
      .poll(() => out(master(), `kubectl get nodes | grep -c ' Ready .*v${version}'`), { timeout: 120_000 })
      .toBe(String(names.length));
  const local = (version: Version) =>
    kubernetesImages(version).map((name) => name.replace('k8s.gcr.io', `localhost:${du.registryPort}`));
  async function expectOnlyHere(version: Version): Promise<void> {
    for (const host of hosts) expect(await dockerNames(host)).toEqual(expect.arrayContaining(local(version)));
    expect(await Promise.all(hosts.map(triedElsewhere))).toEqual([0, 0, 0]);
  }

  it('stands up with no network but the tunnel', async () => {
    expect(await clusterOf()).toMatchObject({
      state: 'ready',
      registryMode: { effective: 'local' },
      nodes: names.map(() => ({ kubernetesVersion: made })),
    });
    await expectNodes(made);
    await expectOnlyHere(made);
  });

  it('is upgraded although the DU is killed at every step', async () => {
    const job = await upgrade(next);
    const killed: string[] = [];
    const step = async () => {
      const { data } = await getJob({ client, path: { id: job.id }, throwOnError: true });
      const { nodes } = await upgradeOf(job);
      return data.finishedAt ? 'end' : [data.progress.phase, ...nodes.map(({ state }) => state)].join(' ');
    };
    for (let at = await step(); at !== 'end'; at = await step()) {
      if (killed.includes(at)) {
        await new Promise((resolve) => setTimeout(resolve, 50));
        continue;
      }
      killed.push(at);
      await du.end('SIGKILL');
      await du.startProcess();
    }
    await success(client, job);
    // Before the first node, and in the middle and at the end of each.
    for (const state of ['upgrading waiting waiting', 'done upgrading waiting', 'done done upgrading'])
      expect(killed.join('; ')).toContain(state);
    expect(killed.join('; ')).toMatch(/(push|pull) waiting waiting waiting/);
    expect((await upgradeOf(job)).nodes).toMatchObject(names.map((name) => ({ name, state: 'done', error: null })));
    expect(await clusterOf()).toMatchObject({ state: 'ready', kubernetesVersion: next, upgradeId: null });
    await expectNodes(next);
    await expectOnlyHere(next);
    // Each node was one operation, however often the DU was killed.
    const { data: jobs } = await listJobs({
      client,
      query: { type: 'host.operate-node', limit: 100 },
      throwOnError: true,
    });
    expect(jobs.items).toHaveLength(6);
  });

  it('is upgraded although the registry is away for a minute, and stops at a node that dies; it goes on when that is back', async () => {
    const [, dying] = hosts as [LabHost, LabHost];
    const [, gate] = gates as [HostGate, HostGate];
    await gate.shut();
    const job = await upgrade(last);
    await keepRegistryAway(60_000);
    expect((await upgradeOf(job)).nodes.map(({ state }) => state)).toEqual(['waiting', 'waiting', 'waiting']);
    await gate.reached();
    const container = lab.engine.docker.getContainer(dying.id);
    await container.stop({ t: 0 });
    const failed = await endOf(client, job.id);
    expect(failed).toMatchObject({
      state: 'failed',
      error: { code: 'node_unhealthy', detail: expect.stringContaining('first') },
    });
    expect((await upgradeOf(job)).nodes.map(({ state }) => state)).toEqual(['done', 'failed', 'waiting']);
    expect(await clusterOf()).toMatchObject({ state: 'upgradeStopped', kubernetesVersion: next });

    await container.start();
    await dying.ready();
    await retryJob({ client, path: { id: job.id }, throwOnError: true });
    await success(client, job);
    expect(await clusterOf()).toMatchObject({ state: 'ready', kubernetesVersion: last });
    await expectNodes(last);
  });

  /** The registry gives no answer for so long, whatever its supervisor does. */
  async function keepRegistryAway(ms: number): Promise<void> {
    const signal = async (name: NodeJS.Signals) => {
      for (const pid of await registryPids(du).catch(() => [])) {
        try {
          process.kill(pid, name);
        } catch (error) {
          // The supervisor has ended it meanwhile, and starts another one.
          if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
        }
      }
    };
    const until = Date.now() + ms;
    while (Date.now() < until) {
      await signal('SIGSTOP');
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    await signal('SIGCONT');
  }
});
