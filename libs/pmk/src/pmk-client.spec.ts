import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { inspect } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { type PmkClusterRequest, pmkCreateBody } from '@airdock/core/pmk/create-body';
import { type Qbert, type QbertOptions, startQbert } from '@airdock/testing/qbert';
import { waitFor } from '@airdock/testing/servers';
import { afterEach, describe, expect, it } from 'vitest';
import { PmkClient, type PmkCluster, type PmkConnection, type PmkHttpOptions } from './pmk-client.js';
import { PmkHttp } from './pmk-http.js';

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

// With what JSON escapes, since servers echo requests.
const password = 'open "sesame"\\';
const nodes = ['master', 'worker-1', 'worker-2'].map((name, index) => ({
  uuid: randomUUID(),
  name,
  primaryIp: `10.0.0.${index + 1}`,
}));
const uuidOf = (name: string): string => nodes.find((node) => node.name === name)?.uuid ?? '';
const wanted = nodes.map(({ uuid, name }) => ({ uuid, isMaster: name === 'master' }));
const registries = {
  dockerPrivateRegistry: 'localhost:5100',
  quayPrivateRegistry: 'localhost:5100',
  gcrPrivateRegistry: 'localhost:5100',
  k8sPrivateRegistry: 'localhost:5100',
};

async function qbert(options: Partial<QbertOptions> = {}): Promise<Qbert> {
  const server = await startQbert({ nodes, password, ...options });
  cleanups.push(server.stop);
  return server;
}

const connectionTo = ({ url, user, project }: Pick<Qbert, 'url' | 'user' | 'project'>): PmkConnection => ({
  url,
  user,
  project,
});
const clientOf = (server: Qbert, options: PmkHttpOptions = {}): PmkClient =>
  new PmkClient(connectionTo(server), password, options);

/** A server that says what no good control plane says. */
async function server(listener: (incoming: IncomingMessage, outgoing: ServerResponse) => unknown): Promise<string> {
  const http = createServer((incoming, outgoing) => void listener(incoming, outgoing));
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  cleanups.push(() => {
    http.closeAllConnections();
    return new Promise((resolve) => http.close(resolve));
  });
  return `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
}

async function create(pmk: PmkClient, change: Partial<PmkClusterRequest> = {}): Promise<string> {
  const body = pmkCreateBody({
    name: 'site-a',
    kubeRoleVersion: '1.20.11-pmk.2038',
    nodePoolUuid: await pmk.defaultNodePool(),
    containerRuntime: 'docker',
    allowWorkloadsOnMaster: false,
    privileged: true,
    registries,
    ...change,
  });
  return pmk.createCluster(body);
}

/** What each look at the cluster sees until its task has ended. */
async function follow(pmk: PmkClient, uuid: string): Promise<PmkCluster[]> {
  const seen: PmkCluster[] = [];
  for (let looks = 0; looks < 30; looks++) {
    const cluster = await pmk.getCluster(uuid);
    if (!cluster) return seen;
    seen.push(cluster);
    if (['success', 'error'].includes(cluster.taskStatus)) return seen;
  }
  throw new Error(`the task did not end: ${seen.at(-1)?.taskStatus}`);
}

const failure = (work: Promise<unknown>): Promise<AppError> =>
  work.then(
    () => {
      throw new Error('did not fail');
    },
    (error: unknown) => {
      if (error instanceof AppError) return error;
      throw error;
    },
  );

describe('a cluster', () => {
  it('is created, gets its nodes, and is followed to its end', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    const uuid = await create(pmk);
    expect(await pmk.getCluster(uuid)).toEqual({
      uuid,
      name: 'site-a',
      kubeRoleVersion: '1.20.11-pmk.2038',
      upgradingTo: null,
      taskStatus: 'creating',
      taskError: undefined,
      status: '',
      canUpgrade: false,
      minorUpgradeRoleVersion: '1.21.3-pmk.72',
      patchUpgradeRoleVersion: null,
      containersCidr: '10.20.0.0/16',
      servicesCidr: '10.21.0.0/16',
      ...registries,
    });
    await pmk.attachNodes(uuid, wanted);
    const attached = await pmk.listNodes();
    expect(attached).toContainEqual({ ...nodes[0], clusterUuid: uuid, isMaster: true, status: 'converging' });
    expect(attached).toContainEqual({ ...nodes[1], clusterUuid: uuid, isMaster: false, status: 'converging' });
    const seen = await follow(pmk, uuid);
    expect([...new Set(seen.map(({ taskStatus }) => taskStatus))]).toEqual(['creating', 'converging', 'success']);
    expect(seen.at(-1)).toMatchObject({ status: 'ok', canUpgrade: true });
    expect(await pmk.listNodes()).toContainEqual(
      expect.objectContaining({ uuid: uuidOf('worker-2'), status: 'ok', kubeRoleVersion: '1.20.11-pmk.2038' }),
    );
    expect(
      server.calls.find(({ method, path }) => method === 'POST' && path.endsWith('/clusters'))?.body,
    ).toMatchObject({
      allowWorkloadsOnMaster: 0,
      privileged: 1,
      ...registries,
    });
    expect(server.logins()).toBe(1);
  });

  it('is found by its name, and not when there are two of that name', async () => {
    const pmk = clientOf(await qbert());
    expect(await pmk.findCluster('site-a')).toBeUndefined();
    const uuid = await create(pmk);
    await create(pmk, { name: 'site-b' });
    expect(await pmk.findCluster('site-a')).toMatchObject({ uuid });
    const second = await create(pmk);
    const error = await failure(pmk.findCluster('site-a'));
    expect(error.code).toBe('pmk_unexpected');
    expect(error.details.detail).toContain(second);
  });

  it('is found after an answer to its creation was lost, so that nobody has to create it twice', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    server.failCalls('/clusters', { status: 502, withEffect: true });
    expect((await failure(create(pmk))).code).toBe('pmk_unavailable');
    expect(await pmk.findCluster('site-a')).toMatchObject({ taskStatus: 'creating' });
  });

  it('gets only the nodes that it lacks, as often as it is told', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    const uuid = await create(pmk);
    await pmk.attachNodes(uuid, wanted.slice(0, 1));
    await pmk.attachNodes(uuid, wanted);
    await pmk.attachNodes(uuid, wanted);
    const attached = server.calls.filter(({ path }) => path.endsWith('/attach')).map(({ body }) => body);
    expect(attached).toEqual([wanted.slice(0, 1), wanted.slice(1)]);
  });

  it('does not get a node of another cluster, nor any other node then', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    const first = await create(pmk);
    await pmk.attachNodes(first, wanted.slice(0, 1));
    const second = await create(pmk, { name: 'site-b' });
    const error = await failure(pmk.attachNodes(second, wanted));
    expect(error).toMatchObject({ code: 'host_in_cluster', details: { nodes: [uuidOf('master')] } });
    expect(error.details.detail).toContain(first);
    expect((await pmk.listNodes()).filter(({ clusterUuid }) => clusterUuid === second)).toEqual([]);
  });

  it('is upgraded to what it offers, its version being the old one until the end', async () => {
    const server = await qbert({ versions: ['1.20.11-pmk.2038', '1.20.15-pmk.2100', '1.21.3-pmk.72'] });
    const pmk = clientOf(server);
    const uuid = await create(pmk);
    await pmk.attachNodes(uuid, wanted);
    expect((await follow(pmk, uuid)).at(-1)).toMatchObject({
      minorUpgradeRoleVersion: '1.21.3-pmk.72',
      patchUpgradeRoleVersion: '1.20.15-pmk.2100',
    });
    await pmk.upgradeCluster(uuid, 'patch', { batchUpgradePercent: 100, containerRuntime: 'containerd' });
    const seen = await follow(pmk, uuid);
    for (const cluster of seen.slice(0, -1))
      expect(cluster).toMatchObject({
        taskStatus: 'upgrading',
        kubeRoleVersion: '1.20.11-pmk.2038',
        upgradingTo: '1.20.15-pmk.2100',
        canUpgrade: false,
      });
    expect(seen.at(-1)).toMatchObject({
      taskStatus: 'success',
      kubeRoleVersion: '1.20.15-pmk.2100',
      upgradingTo: null,
      patchUpgradeRoleVersion: null,
    });
    expect((await failure(pmk.upgradeCluster(uuid, 'patch'))).code).toBe('pmk_refused');
  });

  it('tells why its task failed', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    const uuid = await create(pmk);
    await pmk.attachNodes(uuid, wanted);
    await pmk.getCluster(uuid);
    server.failTask('etcd did not start');
    expect((await follow(pmk, uuid)).at(-1)).toMatchObject({ taskStatus: 'error', taskError: 'etcd did not start' });
    expect((await pmk.listNodes()).map(({ status }) => status)).toEqual(['failed', 'failed', 'failed']);
  });

  it('is deleted, and one that is gone counts as deleted', async () => {
    for (const apiVersion of ['v3', 'v4'] as const) {
      const pmk = clientOf(await qbert(), { apiVersion });
      const uuid = await create(pmk);
      await pmk.attachNodes(uuid, wanted);
      await pmk.deleteCluster(uuid);
      expect((await follow(pmk, uuid)).map(({ taskStatus }) => taskStatus)).toEqual(['deleting']);
      await pmk.deleteCluster(uuid);
      expect((await pmk.listNodes()).map(({ clusterUuid }) => clusterUuid)).toEqual([null, null, null]);
    }
  });

  it('is not deleted when PMK refuses to', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    const uuid = await create(pmk);
    server.failCalls(`/clusters/${uuid}`, { status: 409, body: '{"message":"nodes are attached"}' });
    expect(await failure(pmk.deleteCluster(uuid))).toMatchObject({ code: 'pmk_refused', details: { pmkStatus: 409 } });
  });

  it('is not there when v4 says 404, or v3 400', async () => {
    const server = await qbert();
    const unknown = randomUUID();
    expect(await clientOf(server).getCluster(unknown)).toBeUndefined();
    expect(await clientOf(server, { apiVersion: 'v3' }).getCluster(unknown)).toBeUndefined();
    server.failCalls('/clusters/', { status: 400, body: '{"message":"bad"}' });
    expect((await failure(clientOf(server).getCluster(unknown))).code).toBe('pmk_refused');
  });
});

it('lists the supported versions, in either of the shapes that the answer may have', async () => {
  for (const versionsShape of ['roles', 'strings'] as const)
    expect(await clientOf(await qbert({ versionsShape })).supportedVersions()).toEqual([
      '1.20.11-pmk.2038',
      '1.21.3-pmk.72',
    ]);
});

it("passes PMK's own words on when it refuses", async () => {
  const pmk = clientOf(await qbert());
  const error = await failure(create(pmk, { kubeRoleVersion: '1.19.0-pmk.1' }));
  expect(error).toMatchObject({ code: 'pmk_refused', family: 'conflict', details: { pmkStatus: 400 } });
  expect(error.details.detail).toContain('kubeRoleVersion 1.19.0-pmk.1 is not supported');
  const uuid = await create(pmk);
  expect((await failure(pmk.attachNodes(uuid, [{ uuid: 'nobody', isMaster: true }]))).details.detail).toContain(
    'no node nobody',
  );
});

describe('the token', () => {
  it('is fetched once for calls at the same time, and once again when it has expired in the middle', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    await Promise.all(Array.from({ length: 5 }, () => pmk.listNodes()));
    expect(server.logins()).toBe(1);
    server.expireTokens();
    const release = server.hold('/keystone');
    const calls = Promise.all(Array.from({ length: 5 }, () => pmk.listNodes()));
    // Every call has been refused before the new token is there.
    await waitFor(() => server.calls.length === 12);
    release();
    expect((await calls).map((list) => list.length)).toEqual([3, 3, 3, 3, 3]);
    expect(server.logins()).toBe(2);
  });

  it('is replaced as often as it runs out, without a call being done twice', async () => {
    const server = await qbert({ callsPerToken: 2 });
    const pmk = clientOf(server);
    const uuid = await create(pmk);
    await pmk.attachNodes(uuid, wanted);
    await follow(pmk, uuid);
    expect(server.logins()).toBeGreaterThan(3);
    expect(await pmk.findCluster('site-a')).toMatchObject({ uuid });
  });

  it('is given up when a new one is refused too', async () => {
    const server = await qbert({ callsPerToken: 0 });
    expect(await failure(clientOf(server).listNodes())).toMatchObject({ code: 'pmk_unauthorized' });
    expect(server.logins()).toBe(2);
  });

  it('is fetched to the end when the call that asked for it is aborted, since others wait for it', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    const release = server.hold('/keystone');
    const controller = new AbortController();
    const first = failure(pmk.listNodes(controller.signal));
    const second = pmk.listNodes();
    await waitFor(() => server.calls.length === 1);
    controller.abort(new AppError('job_cancelled'));
    expect((await first).code).toBe('job_cancelled');
    release();
    expect(await second).toHaveLength(3);
    expect(server.logins()).toBe(1);
  });
});

describe('a login', () => {
  it('that is wrong is refused, and tried anew with the next call', async () => {
    const server = await qbert();
    const pmk = new PmkClient(connectionTo(server), 'wrong');
    expect(await failure(pmk.listNodes())).toMatchObject({ code: 'pmk_unauthorized', family: 'conflict' });
    expect((await failure(pmk.listNodes())).code).toBe('pmk_unauthorized');
    expect(server.calls).toHaveLength(2);
    const elsewhere = new PmkClient({ ...connectionTo(server), project: 'other' }, password);
    expect((await failure(elsewhere.listNodes())).details.detail).toContain("'other'");
  });

  it('that failed for a moment does not stand in the way of the next one', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    server.failCalls('/keystone');
    expect((await failure(pmk.listNodes())).code).toBe('pmk_unavailable');
    expect(await pmk.listNodes()).toHaveLength(3);
  });
});

describe('what may pass by waiting', () => {
  it.each([500, 502, 503, 429, 408])('is the status %i', async (status) => {
    const server = await qbert();
    server.failCalls('/nodes', { status, body: '<html>Bad gateway</html>' });
    const error = await failure(clientOf(server).listNodes());
    expect(error).toMatchObject({ code: 'pmk_unavailable', family: 'unavailable', details: { pmkStatus: status } });
    expect(error.message).not.toContain('html');
  });

  it('is a control plane that is not there', async () => {
    const server = await qbert();
    await server.stop();
    const error = await failure(clientOf(server).listNodes());
    expect(error.code).toBe('pmk_unavailable');
    expect(error.details.detail).toContain('ECONNREFUSED');
  });

  it('is an answer that does not come, or does not end, within the time limit', async () => {
    const slow = await qbert();
    slow.hold('/nodes');
    for (const signal of [undefined, new AbortController().signal]) {
      const error = await failure(clientOf(slow, { requestTimeoutMs: 200 }).listNodes(signal));
      expect(error).toMatchObject({
        code: 'pmk_unavailable',
        details: { detail: expect.stringContaining('no answer within 200 ms') },
      });
    }
    const url = await server((_incoming, outgoing) => outgoing.writeHead(201, { 'content-length': '100' }).write('{'));
    const endless = new PmkClient({ ...connectionTo(slow), url }, password, { requestTimeoutMs: 200 });
    expect((await failure(endless.listNodes())).code).toBe('pmk_unavailable');
  });
});

it('stops with the reason of the signal, before and in the middle of a call', async () => {
  const server = await qbert();
  const pmk = clientOf(server);
  const cancelled = new AppError('job_cancelled');
  expect(await failure(pmk.listNodes(AbortSignal.abort(cancelled)))).toBe(cancelled);
  server.hold('/nodes');
  const controller = new AbortController();
  const call = failure(pmk.listNodes(controller.signal));
  await waitFor(() => server.calls.some(({ path }) => path.endsWith('/nodes')));
  controller.abort(cancelled);
  expect(await call).toBe(cancelled);
});

describe('a control plane that is none', () => {
  const clientAt = (url: string) => new PmkClient({ url, user: 'u', project: 'p' }, password);
  const token = '{"token":{"project":{"id":"p1"}}}';

  it('is not followed to another address, neither with the password nor with the token', async () => {
    const seen: string[] = [];
    const elsewhere = await server((incoming, outgoing) => {
      seen.push(incoming.url ?? '');
      outgoing.end('[]');
    });
    for (const [status, from] of [
      [307, '/keystone'],
      [302, '/qbert'],
      [308, '/qbert'],
    ] as const) {
      const url = await server((incoming, outgoing) => {
        if (incoming.url?.startsWith(from)) outgoing.writeHead(status, { location: `${elsewhere}/stolen` }).end();
        else outgoing.writeHead(201, { 'x-subject-token': 'secret-token' }).end(token);
      });
      expect(await failure(clientAt(url).listNodes())).toMatchObject({
        code: 'pmk_unexpected',
        details: { pmkStatus: status },
      });
    }
    expect(seen).toEqual([]);
  });

  it.each([
    ['no token', {}, token, '[]', 'X-Subject-Token'],
    ['no project', { 'x-subject-token': 't' }, '{}', '[]', 'token'],
    ['a web page', { 'x-subject-token': 't' }, token, '<html>', 'not JSON'],
    ['another shape', { 'x-subject-token': 't' }, token, '[{"name":"a"}]', 'uuid'],
    ['too much', { 'x-subject-token': 't' }, token, `[${' '.repeat(33 * 1024 * 1024)}]`, 'larger'],
  ])('is told by an answer with %s', async (_what, headers, login, list, detail) => {
    const url = await server((incoming, outgoing) => {
      incoming.resume();
      if (incoming.url?.startsWith('/keystone')) outgoing.writeHead(201, headers).end(login);
      else outgoing.end(list);
    });
    const error = await failure(clientAt(url).listNodes());
    expect(error).toMatchObject({ code: 'pmk_unexpected', details: { detail: expect.stringContaining(detail) } });
    expect(error.message.length).toBeLessThan(1000);
  });

  it.each([
    'du.example.com',
    'ftp://du.example.com',
    'https://user:sesame@du.example.com',
    'https://du.example.com/?x=1',
    '',
  ])('is refused by its URL %j', (url) => {
    expect(() => clientAt(url)).toThrowError(
      expect.objectContaining({ code: 'configuration_invalid', message: expect.not.stringContaining('sesame') }),
    );
  });
});

describe('the password', () => {
  /** All that a log could show of an error. */
  const shown = (value: unknown) =>
    `${inspect(value, { depth: 20, showHidden: true })} ${JSON.stringify(value)} ${value instanceof Error ? value.message : ''}`;

  it('is in no error, whatever the server echoes, nor is the token', async () => {
    const errors: AppError[] = [];
    const echoes: ((sent: string) => string)[] = [
      (sent) => sent,
      (sent) => JSON.stringify({ error: { message: sent } }),
      (sent) => JSON.stringify({ message: `wrong: ${password}` + sent }),
    ];
    for (const echo of echoes)
      for (const [status, from] of [
        [400, '/keystone'],
        [401, '/keystone'],
        [500, '/keystone'],
        [403, '/qbert'],
        [503, '/qbert'],
      ] as const) {
        const url = await server(async (incoming, outgoing) => {
          const sent = (await incoming.toArray()).join('') + String(incoming.headers['x-auth-token']);
          if (incoming.url?.startsWith(from)) outgoing.writeHead(status).end(echo(sent));
          else outgoing.writeHead(201, { 'x-subject-token': 'secret-token' }).end('{"token":{"project":{"id":"p1"}}}');
        });
        errors.push(await failure(new PmkClient({ url, user: 'u', project: 'p' }, password).listNodes()));
      }
    const gone = await qbert();
    await gone.stop();
    errors.push(await failure(clientOf(gone).listNodes()));
    const slow = await qbert();
    slow.hold('/keystone');
    errors.push(await failure(clientOf(slow, { requestTimeoutMs: 100 }).listNodes()));
    errors.push(await failure(new PmkClient(connectionTo(await qbert()), 'sesame wrong').listNodes()));
    expect(errors).toHaveLength(18);
    for (const error of errors) expect(shown(error)).not.toMatch(/sesame|secret-token/);
  });

  it('is not shown with the client', async () => {
    const server = await qbert();
    const pmk = clientOf(server);
    await pmk.listNodes();
    expect(shown([pmk, new PmkHttp(connectionTo(server), password)])).not.toContain('sesame');
  });
});
