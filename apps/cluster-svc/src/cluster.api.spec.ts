import { startComponent } from '@airdock/platform/component';
import { startJsonServer, startRedis, tempDir } from '@airdock/testing/servers';
import request from 'supertest';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ClusterModule } from './cluster.module.js';

const [host, otherHost, bareHost] = ['01900000-0000-7000-8000-000000000001', '01900000-0000-7000-8000-000000000002', '01900000-0000-7000-8000-000000000003'];
const setId = '01900000-0000-7000-8000-00000000000a';
const checkJob = '01900000-0000-7000-8000-00000000000b';

// The creation itself, which needs hosts that pull, is tested in the lab; here are the rules.
describe('cluster-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let others: Awaited<ReturnType<typeof startJsonServer>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  const answers: Record<string, unknown> = {
    '/v1/registry': { mode: 'local', host: 'localhost:5100', url: 'http://localhost:5100' },
    [`/v1/hosts/${host}`]: { id: host, name: 'one', configuredAt: '2026-01-01T00:00:00.000Z' },
    [`/v1/hosts/${otherHost}`]: { id: otherHost, name: 'two', configuredAt: '2026-01-01T00:00:00.000Z' },
    [`/v1/hosts/${bareHost}`]: { id: bareHost, name: 'bare', configuredAt: null },
    '/v1/tunnels': { items: [{ state: 'up' }] },
    '/v1/image-sets': { items: [{ id: setId, name: 'k8s', images: ['k8s.gcr.io/pause:3.2'] }] },
    [`/v1/image-sets/${setId}`]: { id: setId, name: 'k8s', images: ['k8s.gcr.io/pause:3.2'] },
    [`/v1/image-sets/${setId}/missing`]: { missing: [] },
    '/v1/host-checks': { id: checkJob, resource: '/v1/host-checks/check', progress: { itemsDone: 0 } },
    [`/v1/jobs/${checkJob}`]: { id: checkJob, progress: { itemsDone: 1 }, finishedAt: '2026-01-01T00:00:00.000Z', error: null },
    '/v1/host-checks/check': { results: [{ hostName: 'one', pulls: [{ reference: 'localhost:5100/pause:3.2', error: null }] }] },
  };
  const api = (method: 'get' | 'post' | 'delete', path: string) => request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const create = (body: object) =>
    api('post', '/v1/clusters').send({ name: 'one', kubernetesVersion: '1.20.11', nodes: [{ hostId: host, role: 'controlPlane' }], ...body });

  beforeAll(async () => {
    folder = await tempDir('cluster-svc');
    redis = await startRedis();
    others = await startJsonServer(answers);
    const overrides = { 'services.registry': others.url, 'services.image': others.url, 'services.host': others.url };
    service = await startComponent('cluster', ClusterModule, { dataDir: folder.path, redisUrl: redis.url, overrides });
  });
  afterAll(async () => {
    await service?.app.close();
    await Promise.all([redis?.stop(), others?.stop()]);
    await folder?.remove();
  });

  it('points new clusters at the registry, with the field names of PMK, and at nothing without one', async () => {
    const registry = 'localhost:5100';
    const fields = { dockerPrivateRegistry: registry, quayPrivateRegistry: registry, gcrPrivateRegistry: registry, k8sPrivateRegistry: registry };
    expect((await api('get', '/v1/cluster-defaults').expect(200)).body).toMatchObject({ registryMode: 'local', fields });
    const on = answers['/v1/registry'];
    answers['/v1/registry'] = { mode: 'none', host: null, url: null };
    expect((await api('get', '/v1/cluster-defaults')).body).toMatchObject({ registryMode: 'none', fields: { k8sPrivateRegistry: '' } });
    answers['/v1/registry'] = on;
  });

  it.each([
    ['a version below 1.20', { kubernetesVersion: '1.19.16' }, 422, 'kubernetes_version_unsupported'],
    ['a version that is none', { kubernetesVersion: 'latest' }, 422, 'kubernetes_version_unsupported'],
    [
      'a host twice',
      {
        nodes: [
          { hostId: host, role: 'controlPlane' },
          { hostId: host, role: 'worker' },
        ],
      },
      422,
      'request_invalid',
    ],
    [
      'an even number of control planes',
      {
        nodes: [
          { hostId: host, role: 'controlPlane' },
          { hostId: otherHost, role: 'controlPlane' },
        ],
      },
      422,
      'request_invalid',
    ],
    ['a host that is not configured', { nodes: [{ hostId: bareHost, role: 'controlPlane' }] }, 409, 'host_not_configured'],
    ['a host that does not exist', { nodes: [{ hostId: setId, role: 'controlPlane' }] }, 404, 'resource_not_found'],
  ])('refuses %s', async (_what, body, status, code) => expect((await create(body).expect(status)).body).toMatchObject({ code, nextStep: expect.any(String) }));

  it('refuses while an image is missing, naming it, and while no image set is defined', async () => {
    answers[`/v1/image-sets/${setId}/missing`] = { missing: ['k8s.gcr.io/pause:3.2'] };
    expect((await create({}).expect(409)).body).toMatchObject({ code: 'images_missing', missing: ['k8s.gcr.io/pause:3.2'] });
    answers[`/v1/image-sets/${setId}/missing`] = { missing: [] };
    const sets = answers['/v1/image-sets'];
    answers['/v1/image-sets'] = { items: [] };
    expect((await create({}).expect(409)).body).toMatchObject({ code: 'image_set_missing' });
    answers['/v1/image-sets'] = sets;
    expect((await api('get', '/v1/clusters')).body.items).toEqual([]);
  });

  it('answers unavailable, and accepts nothing, when a service that it needs is away', async () => {
    const away = await startComponent('cluster', ClusterModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      overrides: { 'services.registry': 'http://127.0.0.1:9' },
    });
    const answer = await request(away.url).get('/v1/cluster-defaults').set('authorization', `Bearer ${away.token}`);
    await away.app.close();
    expect(answer.body).toMatchObject({ status: 503, code: 'dependency_unavailable' });
    expect(answer.headers['retry-after']).toBeDefined();
  });

  it('creates a cluster once its hosts have every image, keeps its hosts from other clusters, and tells its readiness', async () => {
    const { body: job } = await create({ kubernetesVersion: '1.20.11-pmk.2038' }).expect(202);
    expect((await api('get', `/v1/jobs/${job.id}?waitSeconds=20`)).body).toMatchObject({ state: 'succeeded', result: { imagesPerHost: 1 } });
    const id = job.resource.split('/').at(-1);
    expect((await api('get', `/v1/clusters/${id}`)).body).toMatchObject({
      name: 'one',
      state: 'ready',
      registryMode: 'local',
      nodes: [{ hostId: host, role: 'controlPlane' }],
    });
    expect((await create({ name: 'two' }).expect(409)).body).toMatchObject({ code: 'host_in_cluster', hostIds: [host] });
    expect((await create({ nodes: [{ hostId: otherHost, role: 'controlPlane' }] }).expect(409)).body).toMatchObject({ code: 'resource_exists' });
    expect((await api('get', `/v1/clusters/${id}/readiness`)).body).toMatchObject({
      ready: true,
      missingImages: [],
      hosts: [{ name: 'one', configured: true, tunnelUp: true }],
    });
    answers['/v1/tunnels'] = { items: [{ state: 'down' }] };
    expect((await api('get', `/v1/clusters/${id}/readiness`)).body).toMatchObject({ ready: false, hosts: [{ tunnelUp: false }] });
    await api('delete', `/v1/clusters/${id}`).expect(204);
    await create({ name: 'two' }).expect(202);
  });
});
