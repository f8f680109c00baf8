import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { pmkCreateBody } from '@airdock/core/pmk/create-body';
import { idOf } from '@airdock/platform/ids';
import { JobRetention } from '@airdock/platform/jobs/job-retention';
import { startComponent } from '@airdock/platform/testing/component';
import { PmkClient } from '@airdock/pmk/pmk-client';
import { startQbert } from '@airdock/testing/qbert';
import { type JsonRequest, startJsonServer, startRedis, tempDir } from '@airdock/testing/servers';
import request from 'supertest';
import type { DataSource } from 'typeorm';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ClusterService } from './cluster/cluster.service.js';
import { ClusterModule } from './cluster.module.js';
import { UpgradeCluster } from './upgrade/upgrade-cluster.service.js';

const uuid = (number: number): string => `01900000-0000-7000-8000-${String(number).padStart(12, '0')}`;
const [one, two, three, four, bare] = [1, 2, 3, 4, 5].map(uuid) as [string, string, string, string, string];
const [set120, set121, bundle] = [100, 101, 200].map(uuid) as [string, string, string];
const registry = 'localhost:5100';
const registryFields = {
  dockerPrivateRegistry: registry,
  quayPrivateRegistry: registry,
  gcrPrivateRegistry: registry,
  k8sPrivateRegistry: registry,
};
const problem = (code: string, status: number, detail = '') => ({
  code,
  status,
  detail,
  title: code,
  type: code,
  nextStep: 'stub',
});

/** The other services as this one sees them. Jobs that are begun end at once, unless they are held, or take long. */
class OtherServices {
  registry: object = {
    mode: 'local',
    host: registry,
    url: `http://${registry}`,
    sockets: { readWrite: 'unix:/rw.sock', readOnly: 'unix:/ro.sock' },
  };
  hosts = new Map([one, two, three, four, bare].map((id, index) => [id, hostOf(id, index)]));
  tunnels = new Map<string, string>([one, two, three, four].map((id) => [id, 'up']));
  images = new Map([
    [set120, [imageOf('k8s.gcr.io/pause:3.2'), imageOf('k8s.gcr.io/kube-apiserver:v1.20.11', 40_000_000)]],
    [set121, [imageOf('k8s.gcr.io/pause:3.4.1'), imageOf('k8s.gcr.io/kube-apiserver:v1.21.14', 40_000_000)]],
  ]);
  /** What was begun, by the path. */
  asked: { path: string; body: Record<string, unknown> }[] = [];
  /** Pulls of a host fail with this. */
  brokenHosts = new Map<string, ReturnType<typeof problem>>();
  /** Jobs that are begun by this path fail with this. */
  brokenJobs = new Map<string, ReturnType<typeof problem>>();
  /** Operations on a host fail with this. */
  brokenNodes = new Map<string, ReturnType<typeof problem>>();
  private readonly jobs = new Map<string, Record<string, unknown>>();
  private readonly byKey = new Map<string, string>();
  private held = false;
  /** So often operations on a node are looked at, for 50 ms each, before they end. */
  looksAtNodes = 0;

  readonly answers: Record<string, unknown> = {
    '/v1/registry': () => this.registry,
    '/v1/package-repositories': {
      items: [
        { name: 'pf9', format: 'apt', url: 'http://127.0.0.1:5102/pf9' },
        { name: 'docker-apt', format: 'apt', url: 'http://127.0.0.1:5102/docker-apt' },
        { name: 'docker-yum', format: 'yum', url: 'http://127.0.0.1:5102/docker-yum' },
      ],
    },
    ...Object.fromEntries([one, two, three, four, bare].map((id) => [`/v1/hosts/${id}`, () => this.hosts.get(id)])),
    '/v1/tunnels': () => ({ items: [...this.tunnels].map(([hostId, state]) => ({ hostId, state })) }),
    '/v1/image-sets': ({ query }: JsonRequest) => ({
      items: [
        { id: set120, name: 'k8s-1.20', kubernetesVersion: '1.20.11' },
        { id: set121, name: 'k8s-1.21', kubernetesVersion: '1.21.14' },
        { id: set120, name: 'k8s-1.20', kubernetesVersion: '1.20.11-pmk.2038' },
      ].filter(
        ({ id, kubernetesVersion }) => this.images.has(id) && query.get('kubernetesVersion') === kubernetesVersion,
      ),
    }),
    ...Object.fromEntries(
      [set120, set121].flatMap((id) => [
        [
          `/v1/image-sets/${id}`,
          id === set120
            ? { id, name: 'k8s-1.20', kubernetesVersion: '1.20.11' }
            : { id, name: 'k8s-1.21', kubernetesVersion: '1.21.14' },
        ],
        [`/v1/image-sets/${id}/missing`, () => ({ missing: [], images: this.images.get(id) })],
      ]),
    ),
    '/v1/host-checks': (asked: JsonRequest) => this.begin(asked),
    '/v1/node-operations': (asked: JsonRequest) => this.begin(asked),
    '/v1/pushes': (asked: JsonRequest) => {
      const { images } = asked.body as { images: string[] };
      for (const list of this.images.values())
        for (const image of list) if (images.includes(image.upstream)) Object.assign(image, imageOf(image.upstream));
      return this.begin(asked);
    },
  };

  /** Jobs that are begun from now on do not end before the returned function is called. */
  hold(): () => void {
    this.held = true;
    return () => {
      this.held = false;
      for (const job of this.jobs.values()) job.finishedAt = '2026-01-01T00:00:00.000Z';
    };
  }

  of(path: string): Record<string, unknown>[] {
    return this.asked.filter((one) => one.path === path).map(({ body }) => body);
  }

  private begin({ path, body, headers }: JsonRequest) {
    const key = headers['idempotency-key'] as string;
    const known = this.byKey.get(key);
    if (known) return this.jobs.get(known);
    const asked = body as Record<string, unknown>;
    this.asked.push({ path, body: asked });
    const id = uuid(1000 + this.jobs.size);
    this.byKey.set(key, id);
    const error =
      path === '/v1/node-operations'
        ? (this.brokenNodes.get(asked.hostId as string) ?? null)
        : (this.brokenJobs.get(path) ?? null);
    let looks = path === '/v1/node-operations' ? this.looksAtNodes : 0;
    const end = '2026-01-01T00:00:00.000Z';
    const job = {
      id,
      type: path,
      resource: `${path}/${id}`,
      progress: { itemsDone: 1 },
      error,
      finishedAt: this.held || looks > 0 ? null : end,
    };
    this.jobs.set(id, job);
    this.answers[`/v1/jobs/${id}`] = async () => {
      // A long-poll, though a short one.
      if (!job.finishedAt) await new Promise((resolve) => setTimeout(resolve, 50));
      if (looks > 0 && --looks === 0) job.finishedAt = end;
      return job;
    };
    this.answers[`${path}/${id}`] = {
      id,
      results: path === '/v1/host-checks' ? this.check(asked as never) : undefined,
    };
    return job;
  }

  private check({ hostIds, pull }: { hostIds: string[]; pull: string[] }) {
    return hostIds.map((hostId) => {
      const error = this.brokenHosts.get(hostId) ?? null;
      return {
        hostId,
        hostName: this.hosts.get(hostId)?.name,
        ok: !error,
        checks: [],
        pulls: pull.map((reference) => ({ reference, digest: null, error })),
        error: null,
      };
    });
  }
}

function hostOf(id: string, index: number) {
  const name = ['one', 'two', 'three', 'four', 'bare'][index];
  const facts = { architecture: 'amd64' };
  return {
    id,
    name,
    address: `10.1.0.${index + 1}`,
    facts,
    configuration: name === 'bare' ? null : { containerRuntime: 'docker' },
    drift: null as { changes: object[] } | null,
  };
}

function imageOf(upstream: string, sizeBytes = 300_000) {
  const localReference = upstream.replace(/^[^/]+/, registry) as string | null;
  return {
    upstream,
    state: 'present',
    localReference,
    digest: `sha256:${idOf(upstream)}`,
    platforms: ['linux/amd64'],
    sizeBytes,
    bundles: [] as object[],
  };
}

describe('cluster-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let others: OtherServices;
  let server: Awaited<ReturnType<typeof startJsonServer>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  const api = (method: 'get' | 'post' | 'delete', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const node = (hostId: string, role = 'worker') => ({ hostId, role });
  const create = (body: object = {}) =>
    api('post', '/v1/clusters').send({
      name: 'c',
      kubernetesVersion: '1.20.11',
      nodes: [node(one, 'controlPlane'), node(two), node(three)],
      ...body,
    });
  const endOf = async (id: string) => (await api('get', `/v1/jobs/${id}?waitSeconds=20`)).body;
  const idOfResource = (job: { resource: string }) => job.resource.split('/').at(-1) as string;
  const created = async (body: object = {}) => {
    const { body: job } = await create(body).expect(202);
    expect(await endOf(job.id)).toMatchObject({ state: 'succeeded' });
    return `/v1/clusters/${idOfResource(job)}`;
  };
  const startService = async (
    overrides: Record<string, unknown> = {},
    roles: ('api' | 'worker')[] = ['api', 'worker'],
  ) => {
    const addresses = Object.fromEntries(['registry', 'image', 'host'].map((name) => [`services.${name}`, server.url]));
    service = await startComponent('cluster', ClusterModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      overrides: { ...addresses, ...overrides },
      roles,
    });
  };
  /** What the next answer to a path waits for. */
  const beforeNext = (path: string, action: () => Promise<unknown>) => {
    const answer = others.answers[path];
    others.answers[path] = async (asked: JsonRequest) => {
      others.answers[path] = answer;
      await action();
      return typeof answer === 'function' ? answer(asked) : answer;
    };
  };
  const contextOf = (job: { id: string; resource: string }, signal = new AbortController().signal) => ({
    ...{ jobId: job.id, resourceId: idOfResource(job), attempt: 1, signal },
    progress: () => undefined,
    saved: async () => undefined,
  });

  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis?.stop());
  beforeEach(async () => {
    folder = await tempDir('cluster-svc');
    others = new OtherServices();
    server = await startJsonServer(others.answers);
    await startService();
  });
  afterEach(async () => {
    await service?.app.close();
    await server?.stop();
    await folder?.remove();
  });

  describe('defaults', () => {
    it('point new clusters at the registry in the words of PMK, and at nothing without one', async () => {
      const packages = {
        dockerCentosPackageRepoUrl: 'http://127.0.0.1:5102/docker-yum',
        dockerUbuntuPackageRepoUrl: 'http://127.0.0.1:5102/docker-apt',
      };
      expect((await api('get', '/v1/cluster-defaults').expect(200)).body).toMatchObject({
        ...{
          registryMode: 'local',
          fields: registryFields,
          packages,
          mirrors: ['http://localhost:5100'],
          movesExistingClusters: true,
        },
        pmk: { ...registryFields, ...packages },
      });
      others.registry = { mode: 'none', host: null, url: null, sockets: null };
      expect((await api('get', '/v1/cluster-defaults')).body).toMatchObject({
        registryMode: 'none',
        fields: { k8sPrivateRegistry: '' },
        mirrors: [],
        pmk: {},
      });
    });

    it('follow a registry of others to its own address', async () => {
      others.registry = { mode: 'external', host: registry, url: 'https://harbor.site:8443', sockets: null };
      const { body } = await api('get', '/v1/cluster-defaults');
      expect(body).toMatchObject({
        ...{ fields: { k8sPrivateRegistry: 'harbor.site:8443' }, packages: { dockerUbuntuPackageRepoUrl: '' } },
        mirrors: ['https://harbor.site:8443'],
      });
    });

    it('answer unavailable when a service that is needed is away', async () => {
      await service.app.close();
      await startService({ 'services.registry': 'http://127.0.0.1:9' });
      const answer = await api('get', '/v1/cluster-defaults');
      expect(answer.body).toMatchObject({ status: 503, code: 'dependency_unavailable' });
      expect(answer.headers['retry-after']).toBeDefined();
    });
  });

  describe('a new cluster', () => {
    it.each([
      ['a version below 1.20', { kubernetesVersion: '1.19.16' }, 422, 'kubernetes_version_unsupported'],
      ['a version that is none', { kubernetesVersion: 'latest' }, 422, 'kubernetes_version_unsupported'],
      ['a host twice', { nodes: [node(one, 'controlPlane'), node(one)] }, 422, 'request_invalid'],
      [
        'an even number of control planes',
        { nodes: [node(one, 'controlPlane'), node(two, 'controlPlane')] },
        422,
        'request_invalid',
      ],
      ['a host that is not configured', { nodes: [node(bare, 'controlPlane')] }, 409, 'host_not_configured'],
      ['a host that does not exist', { nodes: [node(uuid(99), 'controlPlane')] }, 404, 'resource_not_found'],
      ['networks that overlap', { network: { servicesCidr: '10.20.128.0/20' } }, 422, 'cluster_network_invalid'],
      ['a network that holds a host', { network: { containersCidr: '10.1.0.0/16' } }, 422, 'cluster_network_invalid'],
      [
        'a network that holds the address of all control planes',
        { options: { masterVipIpv4: '10.20.0.9', masterVipIface: 'eth0' } },
        422,
        'cluster_network_invalid',
      ],
      [
        'an address of all control planes and no interface for it',
        { options: { masterVipIpv4: '10.9.0.9' } },
        422,
        'request_invalid',
      ],
      [
        'a runtime that its hosts do not have',
        { options: { containerRuntime: 'containerd' } },
        422,
        'runtime_mismatch',
      ],
      ['the images of another version', { imageSetId: set121 }, 409, 'image_set_missing'],
      ['a registry mode that the DU does not have', { registryMode: 'external' }, 409, 'registry_off'],
      [
        'Docker where kubeadm has no use for it',
        { kubernetesVersion: '1.24.0', provisioner: 'kubeadm' },
        422,
        'runtime_unsupported',
      ],
      ['PMK without its address', { provisioner: 'pmk' }, 422, 'provisioner_unavailable'],
    ])('is refused with %s', async (_what, body, status, code) => {
      expect((await create(body).expect(status)).body).toMatchObject({ code, nextStep: expect.any(String) });
      expect((await api('get', '/v1/clusters')).body.items).toEqual([]);
    });

    it('is refused by a DU that has no registry yet', async () => {
      await service.app.close();
      await startService({ duVersion: 'v-5.1.0-1400000' });
      expect((await create().expect(409)).body).toMatchObject({ code: 'du_version_unsupported' });
    });

    it('is refused while something is in the way: by its own name, or all of it at once', async () => {
      const [pause] = others.images.get(set120) ?? [];
      Object.assign(pause ?? {}, { state: 'missing' });
      expect((await create().expect(409)).body).toMatchObject({
        code: 'images_missing',
        missing: ['k8s.gcr.io/pause:3.2'],
      });
      others.tunnels.set(two, 'down');
      const { body } = await create().expect(409);
      expect(body).toMatchObject({
        code: 'cluster_not_ready',
        problems: [{ code: 'images_missing' }, { code: 'tunnel_failed', hostId: two }],
      });
      others.images.delete(set120);
      others.tunnels.set(two, 'up');
      expect((await create().expect(409)).body).toMatchObject({ code: 'image_set_missing' });
    });

    it('is ready once its hosts have every image, keeps them from other clusters, and is forgotten on request', async () => {
      const { body: job } = await create().expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded', result: { imagesPerHost: 2, hosts: 3 } });
      expect(others.of('/v1/host-checks')).toEqual([
        { hostIds: [one, two, three], pull: [`${registry}/pause:3.2`, `${registry}/kube-apiserver:v1.20.11`] },
      ]);
      const path = `/v1/clusters/${idOfResource(job)}`;
      expect((await api('get', path)).body).toMatchObject({
        ...{
          name: 'c',
          state: 'ready',
          registryMode: { requested: 'local', effective: 'local' },
          fields: registryFields,
          followsDefaults: true,
        },
        network: {
          containersCidr: '10.20.0.0/16',
          servicesCidr: '10.21.0.0/16',
          mtuSize: 1440,
          networkPlugin: 'calico',
        },
        nodes: [
          { hostId: one, role: 'controlPlane', kubernetesVersion: '1.20.11' },
          { hostId: two },
          { hostId: three },
        ],
      });
      expect((await create({ name: 'd' }).expect(409)).body).toMatchObject({
        code: 'host_in_cluster',
        hostIds: [one, two, three],
      });
      expect((await create({ nodes: [node(four, 'controlPlane')] }).expect(409)).body).toMatchObject({
        code: 'resource_exists',
      });
      expect((await api('get', `/v1/clusters?imageSetId=${set120}`)).body.items).toHaveLength(1);
      expect((await api('get', `/v1/clusters?imageSetId=${set121}`)).body.items).toHaveLength(0);
      await api('delete', path).expect(204);
      await create({ name: 'd' }).expect(202);
    });

    it('can be made with the images of its version, whatever the build of PMK', async () => {
      await created({ kubernetesVersion: '1.20.11-pmk.2000', imageSetId: set120 });
    });

    it('is not forgotten while its creation is begun again', async () => {
      others.brokenHosts.set(two, problem('host_pull_failed', 409, 'no route'));
      const { body: job } = await create().expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'failed' });
      others.brokenHosts.clear();
      const path = `/v1/clusters/${idOfResource(job)}`;
      const release = others.hold();
      const clusters = service.app.get(ClusterService, { strict: false });
      const assertIdle = clusters.assertIdle.bind(clusters);
      clusters.assertIdle = async (ids) => {
        await assertIdle(ids);
        await api('post', `/v1/jobs/${job.id}/retry`).expect(202);
      };
      expect((await api('delete', path).expect(409)).body).toMatchObject({ code: 'cluster_busy' });
      release();
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded' });
      expect((await api('get', path)).body).toMatchObject({
        state: 'ready',
        nodes: [{ hostId: one }, { hostId: two }, { hostId: three }],
      });
    });

    it('has failed, and was not cancelled, when someone cancels what it waits for', async () => {
      others.brokenJobs.set('/v1/host-checks', problem('job_cancelled', 409));
      const { body: job } = await create().expect(202);
      expect(await endOf(job.id)).toMatchObject({
        state: 'failed',
        error: { code: 'job_cancelled', detail: expect.stringContaining('/v1/host-checks') },
      });
    });

    it('is no cluster of PMK that someone else has made under its name, and is upgraded there in batches', async () => {
      const version = '1.20.11-pmk.2038';
      const nodes = [one, two, three].map((id, index) => ({
        uuid: `node-${index}`,
        name: 'agent',
        primaryIp: hostOf(id, index).address,
      }));
      await using qbert = await startQbert({ nodes, versions: [version, '1.21.14-pmk.72'] });
      const { url, project, user, password } = qbert;
      const passwordFile = join(folder.path, 'pmk.password');
      await writeFile(passwordFile, password, { mode: 0o600 });
      await service.app.close();
      await startService({ pmk: { url, project, user, passwordFile } });
      const pmk = new PmkClient({ url, project, user }, password);
      await pmk.createCluster(
        pmkCreateBody({
          name: 'c',
          kubeRoleVersion: version,
          nodePoolUuid: await pmk.defaultNodePool(),
          containerRuntime: 'docker',
          privileged: true,
          allowWorkloadsOnMaster: false,
        }),
      );
      const body = { kubernetesVersion: version, provisioner: 'pmk' };
      expect((await create(body).expect(409)).body).toMatchObject({
        code: 'resource_exists',
        detail: expect.stringContaining('in PMK'),
      });
      const path = await created({ ...body, name: 'd' });
      expect((await pmk.listNodes()).map(({ clusterUuid }) => clusterUuid)).toEqual(
        Array(3).fill((await pmk.findCluster('d'))?.uuid),
      );

      const upgrade = { kubernetesVersion: '1.21.14-pmk.72', imageSetId: set121, batch: { nodes: 2 } };
      const { body: job } = await api('post', `${path}/upgrades`).send(upgrade).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded' });
      expect(qbert.calls.find((call) => call.path.includes('/upgrade?'))?.body).toMatchObject({
        batchUpgradePercent: 100,
      });
    });

    it('fails, naming the host and the image, when a host cannot pull', async () => {
      others.brokenHosts.set(two, problem('host_pull_failed', 409, 'no route'));
      const { body: job } = await create().expect(202);
      expect(await endOf(job.id)).toMatchObject({
        state: 'failed',
        error: { code: 'host_pull_failed', detail: expect.stringContaining(`two: ${registry}/pause:3.2: no route`) },
      });
      expect((await api('get', `/v1/clusters/${idOfResource(job)}`)).body).toMatchObject({ state: 'failed' });
    });

    it('keeps what it has when the registry is switched off, and says so', async () => {
      const path = await created();
      others.registry = { mode: 'none', host: null, url: null, sockets: null };
      expect((await api('get', path)).body).toMatchObject({
        registryMode: { requested: 'none', effective: 'local' },
        fields: registryFields,
        followsDefaults: false,
      });
    });

    it('hands out what an installer needs', async () => {
      const path = await created();
      const { body } = await api('get', `${path}/configuration`).expect(200);
      expect(body.pmk).toMatchObject({
        name: 'c',
        kubeRoleVersion: '1.20.11',
        privileged: 1,
        allowWorkloadsOnMaster: 0,
        ...registryFields,
      });
      expect(body.images).toContainEqual({ upstream: 'k8s.gcr.io/pause:3.2', reference: `${registry}/pause:3.2` });
      expect(body.files.map((file: { path: string }) => file.path)).toEqual(
        expect.arrayContaining([
          '/etc/docker/daemon.json',
          '/etc/containerd/certs.d/k8s.gcr.io/hosts.toml',
          '/etc/rancher/k3s/registries.yaml',
          '/etc/containers/registries.conf.d/airdock.conf',
        ]),
      );
    });

    it('hands out every image of the set, pushed or not, and no files for a registry of others', async () => {
      others.registry = { mode: 'external', host: registry, url: 'https://harbor.site:8443', sockets: null };
      const path = await created();
      Object.assign(others.images.get(set120)?.[0] ?? {}, { state: 'missing', localReference: null });
      const { body } = await api('get', `${path}/configuration`).expect(200);
      expect(body.images).toContainEqual({ upstream: 'k8s.gcr.io/pause:3.2', reference: 'harbor.site:8443/pause:3.2' });
      expect(body.files).toEqual([]);
    });

    it('is made with kubeadm: the first control plane, then the others, then the workers, with the names of the registry', async () => {
      await created({ provisioner: 'kubeadm' });
      const operations = others.of('/v1/node-operations') as {
        hostId: string;
        operation: { action: string; cluster: object };
      }[];
      expect(operations.map(({ hostId, operation }) => [hostId, operation.action])).toEqual([
        [one, 'init'],
        [two, 'join'],
        [three, 'join'],
      ]);
      expect(operations[0]?.operation.cluster).toEqual({
        ...{
          kubernetesVersion: '1.20.11',
          imageRepository: registry,
          podSubnet: '10.20.0.0/16',
          serviceSubnet: '10.21.0.0/16',
        },
        pauseImage: `${registry}/pause:3.2`,
      });
    });
  });

  describe('readiness', () => {
    it('tells what is missing and which bundle has it, what is for another platform, and which hosts are not ready', async () => {
      const path = await created();
      expect((await api('get', `${path}/readiness`)).body).toMatchObject({
        ready: true,
        problems: [],
        missingImages: [],
        imageSet: { images: 2 },
      });
      const [pause, server120] = others.images.get(set120) ?? [];
      Object.assign(pause ?? {}, {
        state: 'missing',
        bundles: [{ id: bundle, name: 'carried.tar', platforms: ['linux/amd64'] }],
      });
      Object.assign(server120 ?? {}, {
        platforms: ['linux/arm64'],
        bundles: [{ id: bundle, name: 'carried.tar', platforms: ['linux/arm64'] }],
      });
      others.tunnels.delete(two);
      Object.assign(others.hosts.get(three) ?? {}, { drift: { changes: [{}] } });
      const { body } = await api('get', `${path}/readiness`);
      expect(body).toMatchObject({
        ready: false,
        missingImages: [
          { upstream: 'k8s.gcr.io/pause:3.2', state: 'missing', bundles: [{ id: bundle, name: 'carried.tar' }] },
          {
            upstream: 'k8s.gcr.io/kube-apiserver:v1.20.11',
            state: 'wrongPlatform',
            platforms: ['linux/amd64'],
            bundles: [],
          },
        ],
        hosts: [
          { name: 'one', tunnel: 'up' },
          { name: 'two', tunnel: 'none' },
          { name: 'three', drifted: true },
        ],
      });
      expect(body.problems.map(({ code }: { code: string }) => code)).toEqual([
        'images_missing',
        'tunnel_failed',
        'host_drifted',
      ]);
    });

    it('takes charts and files for what is needed in the registry only, and knows which Docker reads zstd', async () => {
      const path = await created();
      const images = others.images.get(set120) ?? [];
      const chart = { ...imageOf('ghcr.io/charts/app:1', 10), platforms: [] };
      const file = {
        ...imageOf('ghcr.io/files/a:1', 10),
        platforms: [],
        state: 'missing',
        bundles: [{ id: bundle, name: 'carried.tar', platforms: [], zstdPlatforms: [] }],
      };
      const zstd = { ...imageOf('k8s.gcr.io/zstd:1'), zstdPlatforms: ['linux/amd64'] };
      others.images.set(set120, [...images, chart]);
      expect((await api('get', `${path}/readiness`)).body).toMatchObject({
        ready: true,
        missingImages: [],
        imageSet: { images: 3 },
      });
      const { body: job } = await api('post', '/v1/readiness-checks')
        .send({ kubernetesVersion: '1.20.11', hostIds: [one], pull: 'all' })
        .expect(202);
      await endOf(job.id);
      expect(others.of('/v1/host-checks').at(-1)).toMatchObject({
        pull: images.map(({ localReference }) => localReference),
      });
      others.images.set(set120, [...images, file, zstd]);
      Object.assign(others.hosts.get(one)?.facts ?? {}, { dockerVersion: '20.10.24' });
      for (const id of [two, three]) Object.assign(others.hosts.get(id)?.facts ?? {}, { dockerVersion: '23.0.1' });
      expect((await api('get', `${path}/readiness`)).body.missingImages).toMatchObject([
        { upstream: 'ghcr.io/files/a:1', state: 'missing', bundles: [{ id: bundle }] },
        { upstream: 'k8s.gcr.io/zstd:1', state: 'wrongRuntime', platforms: ['linux/amd64'] },
      ]);
      const upstreams = async () =>
        ((await api('get', `${path}/readiness`)).body.missingImages as { upstream: string }[]).map(({ upstream }) =>
          upstream.split('/').at(-1),
        );
      // Of a host that was looked at before its version was kept nothing is known.
      for (const [containerdVersion, missing] of [
        ['1.4.13', ['a:1', 'zstd:1']],
        ['1.5.0', ['a:1']],
        ['v2.0.5', ['a:1']],
        [null, ['a:1']],
      ] as const) {
        Object.assign(others.hosts.get(one)?.facts ?? {}, { dockerVersion: null, containerdVersion });
        expect(await upstreams()).toEqual(missing);
      }
    });

    it('is asked for hosts that are no cluster, which pull the smallest image, and all of them on request', async () => {
      const ask = (pull?: string) =>
        api('post', '/v1/readiness-checks').send({ kubernetesVersion: '1.20.11', hostIds: [one, two], pull });
      const { body: job } = await ask().expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded', result: { ready: true } });
      expect((await api('get', `/v1/readiness-checks/${idOfResource(job)}`)).body).toMatchObject({
        result: { pull: 'sample', hosts: [{ pulled: 1 }, { pulled: 1 }] },
      });
      others.brokenHosts.set(two, problem('host_pull_failed', 409, 'no route'));
      const { body: second } = await ask('all').expect(202);
      await endOf(second.id);
      const { result } = (await api('get', `/v1/readiness-checks/${idOfResource(second)}`)).body;
      expect(result).toMatchObject({
        ready: false,
        hosts: [
          { pulled: 2, failedPulls: [] },
          { pulled: 0, failedPulls: [{ reference: `${registry}/pause:3.2` }, {}] },
        ],
      });
      expect(result.problems.map(({ code }: { code: string }) => code)).toEqual([
        'host_pull_failed',
        'host_pull_failed',
      ]);
    });

    it('is put right by pushing only what is missing, from as few bundles as possible', async () => {
      const other = uuid(201);
      const [pause, server120] = others.images.get(set120) ?? [];
      const carried = { id: bundle, name: 'carried.tar', platforms: ['linux/amd64'] };
      Object.assign(pause ?? {}, { state: 'missing', bundles: [{ ...carried, id: other }, carried] });
      Object.assign(server120 ?? {}, { state: 'changed', bundles: [carried] });
      const { body: job } = await api('post', '/v1/readiness-checks')
        .send({ kubernetesVersion: '1.20.11', hostIds: [one], fix: true })
        .expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded', result: { ready: true } });
      expect(others.of('/v1/pushes')).toEqual([
        { bundleId: bundle, images: ['k8s.gcr.io/pause:3.2', 'k8s.gcr.io/kube-apiserver:v1.20.11'] },
      ]);
      expect((await api('get', `/v1/readiness-checks/${idOfResource(job)}`)).body.pushed).toHaveLength(2);
    });

    it('says what no bundle has', async () => {
      Object.assign(others.images.get(set120)?.[0] ?? {}, { state: 'missing' });
      const { body: job } = await api('post', '/v1/readiness-checks')
        .send({ kubernetesVersion: '1.20.11', hostIds: [one], fix: true })
        .expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded', result: { ready: false, missingImages: 1 } });
      expect(others.of('/v1/pushes')).toEqual([]);
    });
  });

  describe('an upgrade', () => {
    const upgrade = (path: string, body: object = {}) =>
      api('post', `${path}/upgrades`).send({ kubernetesVersion: '1.21.14', ...body });
    const upgradeOf = async (job: { resource: string }) => (await api('get', job.resource)).body;

    it.each([
      ['a downgrade', '1.19.16', 'upgrade_refused'],
      ['the same version', '1.20.11', 'upgrade_refused'],
      ['a version that skips one', '1.22.0', 'upgrade_refused'],
      ['a version that nothing is known of', '1.20.12', 'image_set_missing'],
    ])('is refused to %s', async (_what, kubernetesVersion, code) => {
      const path = await created();
      expect((await upgrade(path, { kubernetesVersion })).body).toMatchObject({ code });
      expect((await api('get', path)).body).toMatchObject({ state: 'ready', upgradeId: null });
    });

    it('tells its plan, and changes nothing', async () => {
      const path = await created({ nodes: [node(one, 'controlPlane'), node(two), node(three), node(four)] });
      Object.assign(others.images.get(set121)?.[0] ?? {}, {
        state: 'missing',
        localReference: null,
        bundles: [{ id: bundle, name: 'carried.tar', platforms: ['linux/amd64'] }],
      });
      others.tunnels.set(four, 'down');
      const { body: job } = await upgrade(path, { dryRun: true, batch: { percent: 70 } }).expect(202);
      expect((await endOf(job.id)).result.plan).toMatchObject({
        ...{ from: '1.20.11', to: '1.21.14', kind: 'minor', imagesToPush: [{ upstream: 'k8s.gcr.io/pause:3.4.1' }] },
        imagesToPull: [`${registry}/pause:3.4.1`, `${registry}/kube-apiserver:v1.21.14`],
        batches: [[{ name: 'one' }], [{ name: 'two' }, { name: 'three' }], [{ name: 'four' }]],
        problems: [{ code: 'tunnel_failed' }],
      });
      expect(others.of('/v1/pushes')).toEqual([]);
      expect((await api('get', path)).body).toMatchObject({
        state: 'ready',
        kubernetesVersion: '1.20.11',
        upgradeId: null,
      });
    });

    it('brings images to the registry and to every node before it touches the first, control planes first', async () => {
      const path = await created({
        provisioner: 'kubeadm',
        nodes: [node(two), node(one, 'controlPlane'), node(three)],
      });
      Object.assign(others.images.get(set121)?.[0] ?? {}, {
        state: 'missing',
        bundles: [{ id: bundle, name: 'carried.tar', platforms: ['linux/amd64'] }],
      });
      others.asked = [];
      const { body: job } = await upgrade(path).expect(202);
      expect(await endOf(job.id)).toMatchObject({
        state: 'succeeded',
        result: { from: '1.20.11', to: '1.21.14', registryMode: 'local', nodes: 3 },
      });
      expect(others.asked.map(({ path: asked, body }) => [asked, body.hostId])).toEqual([
        ['/v1/pushes', undefined],
        ['/v1/host-checks', undefined],
        ['/v1/node-operations', one],
        ['/v1/node-operations', two],
        ['/v1/node-operations', three],
      ]);
      expect(others.of('/v1/node-operations')[0]).toMatchObject({
        operation: { action: 'upgrade', isFirst: true, kubernetesVersion: '1.21.14', controlPlaneHostId: one },
      });
      expect((await api('get', path)).body).toMatchObject({
        ...{
          state: 'ready',
          kubernetesVersion: '1.21.14',
          imageSetId: set121,
          targetImageSetId: null,
          upgradeId: null,
        },
        nodes: [{ kubernetesVersion: '1.21.14' }, { kubernetesVersion: '1.21.14' }, { kubernetesVersion: '1.21.14' }],
      });
    });

    it('stops on the first node that is not healthy, and goes on with it after a retry', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      others.brokenNodes.set(two, problem('kubeadm_failed', 409, 'no'));
      others.asked = [];
      const { body: job } = await upgrade(path).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'failed', error: { code: 'node_unhealthy', hostId: two } });
      expect((await upgradeOf(job)).nodes).toMatchObject([
        { state: 'done' },
        { state: 'failed', tries: 1, error: { code: 'node_unhealthy' } },
        { state: 'waiting' },
      ]);
      expect((await api('get', path)).body).toMatchObject({
        state: 'upgradeStopped',
        kubernetesVersion: '1.20.11',
        nodes: [{ kubernetesVersion: '1.21.14' }, { kubernetesVersion: '1.20.11' }, { kubernetesVersion: '1.20.11' }],
      });
      expect((await upgrade(path, { kubernetesVersion: '1.20.12' })).body).toMatchObject({
        code: 'upgrade_refused',
        detail: expect.stringContaining('finish the upgrade'),
      });
      others.brokenNodes.clear();
      await api('post', `/v1/jobs/${job.id}/retry`).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded' });
      expect(others.of('/v1/node-operations').map(({ hostId }) => hostId)).toEqual([one, two, two, three]);
    });

    it('goes on where another one to the same version stopped: with the node that is half way', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      others.brokenNodes.set(two, problem('kubeadm_failed', 409, 'no'));
      const { body: first } = await upgrade(path).expect(202);
      expect(await endOf(first.id)).toMatchObject({ state: 'failed' });
      others.brokenNodes.clear();
      others.asked = [];
      const { body: second } = await upgrade(path, { batch: { nodes: 2 } }).expect(202);
      expect(await endOf(second.id)).toMatchObject({ state: 'succeeded' });
      expect(others.of('/v1/node-operations').map(({ hostId }) => hostId)).toEqual([two, three]);
      await api('post', `/v1/jobs/${first.id}/retry`).expect(202);
      expect(await endOf(first.id)).toMatchObject({ state: 'failed', error: { code: 'cluster_busy' } });
    });

    it('is forgotten with its job when that ended long ago, unless its cluster still names it', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      const ended = async (body: object = {}) => {
        const { body: job } = await upgrade(path, body).expect(202);
        await endOf(job.id);
        return job;
      };
      const [planned, young] = [await ended({ dryRun: true }), await ended({ dryRun: true })];
      others.brokenNodes.set(two, problem('kubeadm_failed', 409, 'no'));
      const stopped = await ended();
      const age = (job: { id: string }) =>
        service.app
          .get<DataSource>('clusterDataSource')
          .query(`UPDATE job SET "finishedAt" = '2020-01-01T00:00:00.000Z' WHERE id = ?`, [job.id]);
      const remaining = async () => {
        await service.app.get(JobRetention, { strict: false }).forgetOld();
        const { items } = (await api('get', `${path}/upgrades`).expect(200)).body;
        return items.map(({ id }: { id: string }) => id);
      };
      await Promise.all([planned, stopped].map(age));
      expect(await remaining()).toEqual([stopped, young].map(idOfResource));
      await api('get', `/v1/jobs/${planned.id}`).expect(404);
      others.brokenNodes.clear();
      await api('post', `/v1/jobs/${stopped.id}/retry`).expect(202);
      expect(await endOf(stopped.id)).toMatchObject({ state: 'succeeded' });
      await age(stopped);
      expect(await remaining()).toEqual([idOfResource(young)]);
    });

    it('is not begun while the one before is begun again', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      others.brokenNodes.set(one, problem('kubeadm_failed', 409, 'no'));
      const { body: first } = await upgrade(path).expect(202);
      expect(await endOf(first.id)).toMatchObject({ state: 'failed' });
      const release = others.hold();
      beforeNext(`/v1/image-sets/${set121}/missing`, () => api('post', `/v1/jobs/${first.id}/retry`).expect(202));
      expect((await upgrade(path)).body).toMatchObject({ code: 'cluster_busy' });
      release();
      await endOf(first.id);
    });

    it('touches no further node once another one has the cluster', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      await service.app.close();
      await startService({}, ['api']);
      const { body: job } = await upgrade(path).expect(202);
      others.asked = [];
      beforeNext('/v1/node-operations', () =>
        service.app
          .get<DataSource>('clusterDataSource', { strict: false })
          .query('UPDATE cluster SET "upgradeId" = ?', [uuid(77)]),
      );
      await expect(service.app.get(UpgradeCluster, { strict: false }).run(contextOf(job))).rejects.toMatchObject({
        code: 'cluster_busy',
      });
      expect(others.of('/v1/node-operations').map(({ hostId }) => hostId)).toEqual([one]);
    });

    it('is not over when it is cancelled at its last node, before a retry', async () => {
      const path = await created({ provisioner: 'kubeadm', nodes: [node(one, 'controlPlane')] });
      await service.app.close();
      await startService({}, ['api']);
      const { body: job } = await upgrade(path).expect(202);
      const stop = new AbortController();
      beforeNext('/v1/node-operations', async () => stop.abort(new AppError('job_cancelled')));
      const work = service.app.get(UpgradeCluster, { strict: false });
      await expect(work.run(contextOf(job, stop.signal))).rejects.toMatchObject({ code: 'job_cancelled' });
      expect((await api('get', path)).body).toMatchObject({
        kubernetesVersion: '1.20.11',
        upgradeId: idOfResource(job),
      });
      expect((await upgradeOf(job)).nodes).toMatchObject([{ state: 'done' }]);
      const result = { from: '1.20.11', to: '1.21.14', registryMode: 'local', nodes: 1 };
      expect(await work.run(contextOf(job))).toEqual(result);
      expect((await api('get', path)).body).toMatchObject({ kubernetesVersion: '1.21.14', upgradeId: null });
      // The worker was killed before it could end the job.
      expect(await work.run(contextOf(job))).toEqual(result);
    });

    it('waits for a first request that a killed worker has left behind', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      const answer = others.answers['/v1/node-operations'] as (asked: JsonRequest) => unknown;
      let refusals = 1;
      others.answers['/v1/node-operations'] = (asked: JsonRequest) =>
        refusals-- > 0 ? problem('idempotency_key_running', 409) : answer(asked);
      const { body: job } = await upgrade(path).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded' });
      expect((await upgradeOf(job)).nodes).toMatchObject([{ tries: 0 }, { tries: 0 }, { tries: 0 }]);
    });

    it('is not paused any more once it was cancelled', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      const release = others.hold();
      const { body: job } = await upgrade(path).expect(202);
      expect((await api('post', `${job.resource}/pause`).expect(200)).body).toMatchObject({ paused: true });
      await api('post', `/v1/jobs/${job.id}/cancel`).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'cancelled' });
      release();
      expect(await upgradeOf(job)).toMatchObject({ state: 'cancelled', paused: false });
      expect((await api('get', `${path}/upgrades`)).body.items).toMatchObject([{ state: 'cancelled', paused: false }]);
    });

    it('is held between two nodes, goes on, and is cancelled there: the node that was begun is finished', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      const release = others.hold();
      const { body: job } = await upgrade(path).expect(202);
      expect((await upgrade(path).expect(409)).body).toMatchObject({ code: 'cluster_busy' });
      expect((await api('delete', path).expect(409)).body).toMatchObject({ code: 'cluster_busy' });
      expect((await api('post', `${job.resource}/pause`).expect(200)).body).toMatchObject({ paused: true });
      release();
      await expect
        .poll(async () => (await api('get', `/v1/jobs/${job.id}`)).body.progress.phase, { timeout: 120_000 })
        .toBe('paused');
      expect((await api('get', path)).body).toMatchObject({ state: 'paused', targetImageSetId: set121 });
      expect(
        others
          .of('/v1/node-operations')
          .filter(({ operation }) => (operation as { action: string }).action === 'upgrade'),
      ).toEqual([]);

      // The worker hears of it within a second: while it waits for the first node, or for the second at the latest.
      others.looksAtNodes = 25;
      await api('post', `${job.resource}/resume`).expect(200);
      await expect.poll(async () => (await upgradeOf(job)).nodes[0].state, { timeout: 120_000 }).toBe('upgrading');
      await api('post', `/v1/jobs/${job.id}/cancel`).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'cancelled' });
      const states = (await upgradeOf(job)).nodes.map(({ state }: { state: string }) => state);
      expect(states).toEqual(['done', expect.stringMatching(/^(done|waiting)$/), 'waiting']);
      expect(
        others
          .of('/v1/node-operations')
          .filter(({ operation }) => (operation as { action: string }).action === 'upgrade'),
      ).toHaveLength(states.filter((state: string) => state === 'done').length);
      expect((await api('post', `${job.resource}/pause`).expect(409)).body).toMatchObject({
        code: 'upgrade_not_running',
      });
      await api('post', `/v1/jobs/${job.id}/retry`).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded' });
    });

    it('goes on with the same operation after the worker was stopped in the middle of a node', async () => {
      const path = await created({ provisioner: 'kubeadm' });
      others.asked = [];
      others.looksAtNodes = 10;
      const { body: job } = await upgrade(path).expect(202);
      await expect
        .poll(async () => (await upgradeOf(job)).nodes.some(({ state }: { state: string }) => state === 'upgrading'), {
          timeout: 120_000,
        })
        .toBe(true);
      await service.app.close();
      await startService();
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded' });
      expect(others.of('/v1/node-operations').map(({ hostId }) => hostId)).toEqual([one, two, three]);
    });

    it('brings a cluster from before the registry into it, which shows both states until then', async () => {
      others.registry = { mode: 'none', host: null, url: null, sockets: null };
      const path = await created({ kubernetesVersion: '1.19.16' });
      expect((await api('get', path)).body).toMatchObject({
        registryMode: { requested: 'none', effective: 'none' },
        fields: { k8sPrivateRegistry: '' },
      });
      others.registry = new OtherServices().registry;
      expect((await api('get', path)).body).toMatchObject({
        registryMode: { requested: 'local', effective: 'none' },
        followsDefaults: false,
      });
      const { body: job } = await upgrade(path, { kubernetesVersion: '1.20.11' }).expect(202);
      expect(await endOf(job.id)).toMatchObject({ state: 'succeeded', result: { registryMode: 'local' } });
      expect((await api('get', path)).body).toMatchObject({
        registryMode: { requested: 'local', effective: 'local' },
        fields: registryFields,
        followsDefaults: true,
      });
    });

    it('brings a cluster that wanted no registry into it, when it wants it now', async () => {
      const path = await created({ registryMode: 'none' });
      const { body: job } = await upgrade(path, { registryMode: 'local', dryRun: true }).expect(202);
      expect((await endOf(job.id)).result.plan).toMatchObject({ registryMode: { from: 'none', to: 'local' } });
      const { body: second } = await upgrade(path, { registryMode: 'local' }).expect(202);
      expect(await endOf(second.id)).toMatchObject({ state: 'succeeded' });
      expect((await api('get', path)).body).toMatchObject({
        registryMode: { requested: 'local', effective: 'local' },
        fields: registryFields,
      });
    });

    it('moves no cluster of before in a DU below 5.3, which creates new ones', async () => {
      await service.app.close();
      await startService({ duVersion: 'v-5.2.0-1500000' });
      const path = await created({ existing: true, kubernetesVersion: '1.19.16' });
      expect((await api('get', path)).body).toMatchObject({
        state: 'ready',
        registryMode: { requested: 'local', effective: 'none' },
      });
      expect((await upgrade(path, { kubernetesVersion: '1.20.11' })).body).toMatchObject({
        code: 'du_version_unsupported',
      });
      await created({ name: 'new', nodes: [node(four, 'controlPlane')] });
    });
  });
});
