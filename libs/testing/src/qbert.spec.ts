import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Qbert, type QbertOptions, startQbert } from './qbert.js';

const nodes = ['w1', 'm1', 'w2', 'm2', 'm3', 'w3', 'w4'].map((name) => ({
  uuid: randomUUID(),
  name,
  primaryIp: '10.0.0.1',
}));
const attachment = nodes.map(({ uuid, name }) => ({ uuid, isMaster: name.startsWith('m') }));

let qbert: Qbert;
let token: string;
afterEach(() => qbert.stop());

async function logIn(change: object = {}) {
  const domain = { id: 'default' };
  const identity = {
    methods: ['password'],
    password: { user: { name: qbert.user, domain, password: qbert.password, ...change } },
  };
  const body = JSON.stringify({ auth: { identity, scope: { project: { name: qbert.project, domain } } } });
  return fetch(`${qbert.url}/keystone/v3/auth/tokens?nocatalog`, { method: 'POST', body });
}

async function start(options: Partial<QbertOptions> = {}) {
  qbert = await startQbert({ nodes, ...options });
  token = (await logIn()).headers.get('x-subject-token') ?? '';
}

async function call(method: string, path: string, body?: unknown, { version = 'v4', project = qbert.projectId } = {}) {
  const headers = { 'x-auth-token': token, 'content-type': 'application/json' };
  const response = await fetch(`${qbert.url}/qbert/${version}/${project}${path}`, {
    method,
    headers,
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, text, json: () => JSON.parse(text) as Record<string, unknown> };
}

async function goodBody() {
  const pools = JSON.parse((await call('GET', '/nodePools')).text) as { uuid: string }[];
  return {
    name: 'a',
    kubeRoleVersion: '1.20.11-pmk.2038',
    nodePoolUuid: pools[0]?.uuid,
    containersCidr: '10.20.0.0/16',
    servicesCidr: '10.21.0.0/16',
    networkPlugin: 'calico',
    mtuSize: 1440,
    privileged: 1,
    k8sPrivateRegistry: 'localhost:5100',
  };
}

/** A cluster that has all nodes and is through with them. */
async function standingCluster(): Promise<string> {
  const { uuid } = (await call('POST', '/clusters', await goodBody())).json();
  expect((await call('POST', `/clusters/${uuid}/attach`, attachment)).status).toBe(200);
  for (let looks = 0; looks < 20; looks++)
    if ((await call('GET', `/clusters/${uuid}`)).json().taskStatus === 'success') return String(uuid);
  throw new Error('the cluster does not stand');
}

describe('the control plane refuses', () => {
  beforeEach(() => start());

  it.each<[string, object]>([
    ['no name', { name: undefined }],
    ['an empty name', { name: '' }],
    ['a boolean where 0 or 1 belongs', { privileged: true }],
    ['another number where 0 or 1 belongs', { allowWorkloadsOnMaster: 2 }],
    ['a registry with a path', { k8sPrivateRegistry: 'localhost:5100/k8s.gcr.io' }],
    ['a registry with a scheme', { dockerPrivateRegistry: 'http://localhost:5100' }],
    ['a version that it does not have', { kubeRoleVersion: '1.20.11' }],
    ['an unknown node pool', { nodePoolUuid: 'x' }],
    ['a network that is none', { containersCidr: '10.20.0.0' }],
    ['a virtual IP without interface', { masterVipIpv4: '10.0.0.9' }],
    ['a field that it does not know', { k8sPrivateRegistryy: 'x' }],
  ])('%s', async (_what, change) => {
    const body = await goodBody();
    expect((await call('POST', '/clusters', body)).status).toBe(200);
    const refused = await call('POST', '/clusters', { ...body, ...change });
    expect(refused.status).toBe(400);
    expect(refused.json().message).toEqual(expect.stringMatching(/./));
  });

  it('nodes that are unknown, taken, or have a number as isMaster', async () => {
    const { uuid } = (await call('POST', '/clusters', await goodBody())).json();
    const attach = async (body: unknown) => (await call('POST', `/clusters/${uuid}/attach`, body)).status;
    expect(await attach([{ uuid: 'x', isMaster: true }])).toBe(400);
    expect(await attach([{ uuid: nodes[0]?.uuid, isMaster: 1 }])).toBe(400);
    expect(await attach(attachment.slice(0, 1))).toBe(200);
    expect(await attach(attachment.slice(0, 1))).toBe(400);
  });

  it('unknown clusters, with 400 on v3', async () => {
    expect((await call('GET', '/clusters/x')).status).toBe(404);
    expect((await call('GET', '/clusters/x', undefined, { version: 'v3' })).status).toBe(400);
  });

  it('upgrades that the cluster does not offer, or while it is at work', async () => {
    const uuid = await standingCluster();
    const upgrade = async (query: string, body?: object) =>
      (await call('POST', `/clusters/${uuid}/upgrade${query}`, body)).status;
    expect(await upgrade('?type=patch')).toBe(400);
    expect(await upgrade('')).toBe(400);
    expect(await upgrade('?type=minor', { batchUpgradePercent: 0 })).toBe(400);
    expect(await upgrade('?type=minor', { batchUpgradeNodes: [nodes[1]?.uuid] })).toBe(400);
    expect(await upgrade('?type=minor')).toBe(200);
    expect(await upgrade('?type=minor')).toBe(400);
  });

  it('calls without a good token, and of another project', async () => {
    expect((await logIn({ password: 'wrong' })).status).toBe(401);
    expect((await call('GET', '/nodes', undefined, { project: 'other' })).status).toBe(403);
    qbert.expireTokens();
    expect((await call('GET', '/nodes')).status).toBe(401);
  });
});

it('lets a token be used so many times', async () => {
  await start({ callsPerToken: 2 });
  const statuses = [await call('GET', '/nodes'), await call('GET', '/nodes'), await call('GET', '/nodes')].map(
    ({ status }) => status,
  );
  expect(statuses).toEqual([200, 200, 401]);
});

it('shows each step of a task as often as it is told', async () => {
  await start({ looksPerStep: 2 });
  const { uuid } = (await call('POST', '/clusters', await goodBody())).json();
  await call('POST', `/clusters/${uuid}/attach`, attachment.slice(0, 1));
  const seen: unknown[] = [];
  for (let looks = 0; looks < 6; looks++) seen.push((await call('GET', `/clusters/${uuid}`)).json().taskStatus);
  expect(seen).toEqual(['creating', 'creating', 'converging', 'converging', 'success', 'success']);
});

describe('an upgrade', () => {
  /** Which nodes were at work at the same time, in their order. */
  async function batches(body?: object): Promise<string[]> {
    const uuid = await standingCluster();
    expect((await call('POST', `/clusters/${uuid}/upgrade?type=minor`, body)).status).toBe(200);
    const seen: string[] = [];
    for (let looks = 0; looks < 50; looks++) {
      const all = JSON.parse((await call('GET', '/nodes')).text) as { name: string; status: string }[];
      const atWork = all.filter(({ status }) => status === 'converging').map(({ name }) => name);
      if (atWork.length > 0) seen.push(atWork.join(' '));
      if ((await call('GET', `/clusters/${uuid}`)).json().taskStatus === 'success') return seen;
    }
    throw new Error('the upgrade does not end');
  }

  it('takes one node after the other, masters first', async () => {
    await start();
    expect(await batches()).toEqual(['m1', 'm2', 'm3', 'w1', 'w2', 'w3', 'w4']);
  });

  it('takes so many workers at a time as a percentage says', async () => {
    await start();
    expect(await batches({ batchUpgradePercent: 50 })).toEqual(['m1', 'm2', 'm3', 'w1 w2', 'w3 w4']);
  });

  it('takes the workers that are named together', async () => {
    await start();
    expect(await batches({ batchUpgradeNodes: [nodes[2], nodes[5]].map((node) => node?.uuid) })).toEqual([
      'm1',
      'm2',
      'm3',
      'w2 w3',
      'w1',
      'w4',
    ]);
  });

  it('leaves the registry fields alone, unless a test assumes that it takes them over', async () => {
    for (const assumed of [undefined, { dockerPrivateRegistry: 'localhost:5100' }]) {
      await qbert?.stop();
      await start({ assumeUpgradeTakesOver: assumed });
      await batches();
      const [cluster] = JSON.parse((await call('GET', '/clusters')).text) as Record<string, unknown>[];
      expect(cluster).toMatchObject({
        kubeRoleVersion: '1.21.3-pmk.72',
        dockerPrivateRegistry: '',
        k8sPrivateRegistry: 'localhost:5100',
        ...assumed,
      });
    }
  });
});

it('holds answers back after their effect, and fails calls with or without it', async () => {
  await start();
  const body = await goodBody();
  const clusters = async () => (JSON.parse((await call('GET', '/clusters')).text) as unknown[]).length;
  qbert.failCalls('/clusters');
  expect((await call('POST', '/clusters', body)).status).toBe(503);
  expect(await clusters()).toBe(0);
  qbert.failCalls('/clusters', { status: 502, withEffect: true });
  expect((await call('POST', '/clusters', body)).status).toBe(502);
  expect(await clusters()).toBe(1);
  const release = qbert.hold('/nodePools');
  const held = call('GET', '/nodePools');
  expect(await clusters()).toBe(1);
  release();
  expect((await held).status).toBe(200);
  expect(qbert.calls.at(-1)?.path).toContain('/clusters');
});
