import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import { type Qbert, type QbertOptions, startQbert } from '@airdock/testing/qbert';
import { tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PmkProvisioner } from './pmk.provisioner.js';
import type { Target } from './provisioner.schema.js';

const registry = 'localhost:5100';
const local = {
  dockerPrivateRegistry: registry,
  quayPrivateRegistry: registry,
  gcrPrivateRegistry: registry,
  k8sPrivateRegistry: registry,
};
const none = { dockerPrivateRegistry: '', quayPrivateRegistry: '', gcrPrivateRegistry: '', k8sPrivateRegistry: '' };
const [old, made, next] = ['1.19.16-pmk.1', '1.20.11-pmk.2038', '1.21.3-pmk.72'] as const;
const agents = ['a', 'b', 'c'].map((name, index) => ({ uuid: `node-${name}`, name, primaryIp: `10.1.0.${index + 1}` }));

describe('PmkProvisioner', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let qbert: Qbert;
  let provisioner: PmkProvisioner;
  let noted: string[];
  const context = (signal = AbortSignal.timeout(60_000)): JobContext => ({
    jobId: 'job',
    resourceId: 'cluster',
    attempt: 1,
    signal,
    progress: () => undefined,
    saved: async () => undefined,
  });
  const note = async (id: string) => void noted.push(id);
  const target = (change: Partial<Target> = {}): Target => ({
    ...{ id: 'cluster', name: 'c', provisionerId: null, kubernetesVersion: made, fields: local, pauseImage: undefined },
    network: { containersCidr: '10.20.0.0/16', servicesCidr: '10.21.0.0/16', mtuSize: 1440, networkPlugin: 'calico' },
    options: { containerRuntime: 'docker', allowWorkloadsOnMaster: false, privileged: true },
    packages: { dockerCentosPackageRepoUrl: '', dockerUbuntuPackageRepoUrl: 'http://127.0.0.1:5102/docker' },
    nodes: agents.map(({ name, primaryIp }, index) => ({
      ...{ hostId: `host-${name}`, role: index === 0 ? 'controlPlane' : 'worker', kubernetesVersion: null },
      host: { id: `host-${name}`, name, address: primaryIp } as Target['nodes'][number]['host'],
    })),
    ...change,
  });
  const created = () =>
    qbert.calls.filter(({ method, path }) => method === 'POST' && path.endsWith('/clusters')).map(({ body }) => body);
  const start = async (options: Partial<QbertOptions> = {}) => {
    qbert = await startQbert({ nodes: agents, versions: [old, made, next], ...options });
    const passwordFile = join(folder.path, 'password');
    await writeFile(passwordFile, `${qbert.password}\n`, { mode: 0o600 });
    provisioner = new PmkProvisioner({
      pmk: { url: qbert.url, project: qbert.project, user: qbert.user, domain: 'default', passwordFile },
    } as never);
  };

  beforeEach(async () => {
    folder = await tempDir('pmk');
    noted = [];
  });
  afterEach(async () => {
    await qbert?.stop();
    await folder?.remove();
  });

  it('creates a cluster with the registry and the packages, and waits until its nodes are healthy', async () => {
    await start();
    await provisioner.check({ name: 'c', kubernetesVersion: made, existing: false });
    await provisioner.create(target(), context(), note);
    expect(created()).toMatchObject([
      {
        name: 'c',
        kubeRoleVersion: made,
        ...local,
        dockerUbuntuPackageRepoUrl: 'http://127.0.0.1:5102/docker',
        privileged: 1,
      },
    ]);
    expect(await provisioner.find(target({ provisionerId: noted[0] ?? '' }), AbortSignal.timeout(10_000))).toEqual({
      ...{ provisionerId: noted[0], kubernetesVersion: made, fields: local },
    });
  });

  it('goes on with the cluster that a run before it has made, also when the answer to its creation was lost', async () => {
    await start();
    qbert.failCalls('/clusters', { status: 502, withEffect: true });
    await expect(provisioner.create(target(), context(), note)).rejects.toMatchObject({ code: 'pmk_unavailable' });
    await provisioner.create(target(), context(), note);
    await provisioner.create(target({ provisionerId: noted[0] ?? null }), context(), note);
    expect(created()).toHaveLength(1);
  });

  it('names hosts that PMK has no agent on, before it creates anything', async () => {
    await start({ nodes: agents.slice(0, 2) });
    await expect(provisioner.create(target(), context(), note)).rejects.toMatchObject({
      code: 'provisioner_unavailable',
      message: expect.stringContaining('of c:'),
    });
    expect(created()).toEqual([]);
  });

  it('refuses a version that PMK does not offer, and an upgrade that it does not', async () => {
    await start();
    await expect(
      provisioner.check({ name: 'd', kubernetesVersion: '1.22.0-pmk.1', existing: false }),
    ).rejects.toMatchObject({
      code: 'provisioner_unavailable',
    });
    await provisioner.create(target(), context(), note);
    const cluster = { name: 'c', provisionerId: noted[0] ?? null };
    await expect(provisioner.checkUpgrade(cluster, '1.21.4-pmk.1')).rejects.toMatchObject({
      code: 'upgrade_refused',
      message: expect.stringContaining(next),
    });
    await provisioner.checkUpgrade(cluster, next);
    await expect(provisioner.checkUpgrade({ name: 'unknown', provisionerId: null }, next)).rejects.toMatchObject({
      code: 'cluster_diverged',
    });
  });

  it('upgrades once, tells which nodes are done, and goes on with an upgrade that runs', async () => {
    await start({ looksPerStep: 2 });
    await provisioner.create(target(), context(), note);
    const upgraded = target({ provisionerId: noted[0] ?? null, kubernetesVersion: next });
    const done: string[][] = [];
    const stop = new AbortController();
    const first = provisioner.upgradeCluster(
      upgraded,
      { nodes: 1, percent: undefined },
      context(stop.signal),
      async (ids) => {
        done.push(ids);
        stop.abort(new Error('the worker ends'));
      },
    );
    await expect(first).rejects.toThrow('the worker ends');
    await provisioner.upgradeCluster(
      upgraded,
      { nodes: 1, percent: undefined },
      context(),
      async (ids) => void done.push(ids),
    );
    expect(done.at(-1)).toEqual(['host-a', 'host-b', 'host-c']);
    expect(done.some((ids) => ids.length > 0 && ids.length < 3)).toBe(true);
    expect(qbert.calls.filter(({ path }) => path.includes('/upgrade?type=minor'))).toHaveLength(1);
  });

  it('tells in the words of PMK why a cluster could not be made', async () => {
    await start();
    qbert.failTask('etcd did not come up');
    await expect(provisioner.create(target(), context(), note)).rejects.toMatchObject({
      code: 'node_unhealthy',
      message: expect.stringContaining('etcd did not come up'),
    });
  });

  it.each([
    ['tells that a cluster of before has joined the registry', { assumeUpgradeTakesOver: local }, local],
    ['tells that it has not, when PMK kept what it was created with', {}, none],
  ])('%s', async (_what, options, fields) => {
    await start(options);
    await provisioner.create(target({ kubernetesVersion: old, fields: none }), context(), note);
    const upgraded = target({ provisionerId: noted[0] ?? null });
    await provisioner.upgradeCluster(upgraded, { nodes: 1, percent: 50 }, context(), async () => undefined);
    expect(await provisioner.find(upgraded, AbortSignal.timeout(10_000))).toMatchObject({
      kubernetesVersion: made,
      fields,
    });
  });
});
