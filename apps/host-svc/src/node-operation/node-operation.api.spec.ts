import { AppError } from '@airdock/core/errors';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { JobRetention } from '@airdock/platform/jobs/job-retention';
import { startComponent } from '@airdock/platform/testing/component';
import { freePort, startJsonServer, startRedis, tempDir, waitFor } from '@airdock/testing/servers';
import { type SshServer, startSshServer } from '@airdock/testing/ssh-server';
import request from 'supertest';
import type { DataSource } from 'typeorm';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { HostService } from '../host/host.service.js';
import { HostModule } from '../host.module.js';
import { ConfigureHost } from '../host-configuration/configure-host.service.js';
import { TunnelService } from '../tunnel/tunnel.service.js';
import type { NodeOperation } from './node-operation.schema.js';

const token = 'abcdef.0123456789abcdef';
const key = 'f'.repeat(64);
const facts = 'os=debian\nosLike=\ncodename=bookworm\nosVersion=12\ndockerd=yes\ndocker=20.10.24\n';

// What becomes of hosts is tested on real ones, see test/e2e/node-operations.e2e.ts. Here an SSH server that answers as
// it is told stands for them.
describe('operations on nodes', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let others: Awaited<ReturnType<typeof startJsonServer>>;
  let ssh: SshServer;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let credentialId: string;
  /** What the host says to a command; undefined: nothing, with success. */
  let answer: (command: string, input: string) => string | undefined;
  let inputs: string[];

  const api = (method: 'get' | 'post', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const post = (body: object) => api('post', '/v1/node-operations').send(body);
  const end = async (job: Job): Promise<Job> => (await api('get', `/v1/jobs/${job.id}?waitSeconds=40`)).body as Job;
  const read = async ({ resource }: Job): Promise<NodeOperation> =>
    (await api('get', resource).expect(200)).body as NodeOperation;
  const operate = async (body: object): Promise<Job> => end((await post(body).expect(202)).body as Job);
  const hosts = () => service.app.get(HostService, { strict: false });
  let count = 0;
  async function addHost(runtime: 'docker' | 'containerd' | null = 'docker', port = ssh.port): Promise<string> {
    const body = { name: `Node-${++count}`, address: '127.0.0.1', port, credentialId, hostKey: ssh.hostKey };
    const id = (await api('post', '/v1/hosts').send(body).expect(201)).body.id as string;
    if (runtime) {
      const flags = {
        skipDockerImgImport: false,
        skipDockerInstall: false,
        skipImageRenaming: false,
        skipYumRepoInstall: false,
      };
      await hosts().saveConfigured(id, { ...flags, containerRuntime: runtime });
    }
    return id;
  }

  const cluster = {
    kubernetesVersion: '1.20.11',
    imageRepository: 'localhost:5100',
    podSubnet: '10.20.0.0/16',
    serviceSubnet: '10.21.0.0/16',
    pauseImage: 'localhost:5100/pause:3.2',
  };
  const init = (change: object = {}) => ({ action: 'init', cluster: { ...cluster, ...change } });

  beforeAll(async () => {
    folder = await tempDir('node-operations');
    redis = await startRedis();
    others = await startJsonServer({
      '/v1/registry': { mode: 'local', host: 'localhost:5100', url: 'http://127.0.0.1:9', sockets: null },
    });
    ssh = await startSshServer({
      user: 'root',
      password: 'sesame',
      answer: (command, input) => {
        inputs.push(input);
        return answer(command, input) ?? '';
      },
    });
    service = await startComponent('host', HostModule, {
      dataDir: folder.path,
      redisUrl: redis.url,
      overrides: { 'services.registry': others.url, 'registry.port': await freePort() },
    });
    credentialId = (
      await api('post', '/v1/ssh-credentials').send({ name: 'root', username: 'root', password: 'sesame' }).expect(201)
    ).body.id as string;
  });
  beforeEach(() => {
    vi.restoreAllMocks();
    inputs = [];
    answer = (_, input) => (input.includes('os-release') ? facts : undefined);
  });
  afterAll(async () => {
    await service?.app.close();
    await Promise.all([redis, others, ssh].map((server) => server?.stop()));
    await folder?.remove();
  });
  /** The tunnels of these tests lead nowhere. */
  const withTunnel = () =>
    vi.spyOn(service.app.get(TunnelService, { strict: false }), 'ensureUp').mockResolvedValue({} as never);

  it('are refused for hosts that are not configured, and for versions and runtimes that do not go together', async () => {
    const codeOf = async (body: object) => (await post(body)).body.code as string;
    const [bare, docker, containerd] = [await addHost(null), await addHost(), await addHost('containerd')];
    expect(await codeOf({ hostId: bare, operation: init() })).toBe('host_not_configured');
    expect(await codeOf({ hostId: docker, operation: init({ kubernetesVersion: '1.19.16' }) })).toBe(
      'kubernetes_version_unsupported',
    );
    expect(await codeOf({ hostId: docker, operation: init({ kubernetesVersion: '1.24.0' }) })).toBe(
      'runtime_unsupported',
    );
    expect(await codeOf({ hostId: containerd, operation: init({ pauseImage: 'UPPER:' }) })).toBe('reference_invalid');
    expect(await codeOf({ hostId: '01900000-0000-7000-8000-000000000001', operation: init() })).toBe(
      'resource_not_found',
    );
    const join = { action: 'join', role: 'worker', cluster };
    expect(await codeOf({ hostId: docker, operation: { ...join, controlPlaneHostId: bare } })).toBe(
      'host_not_configured',
    );
    for (const operation of [
      { ...join, controlPlaneHostId: docker },
      { action: 'inspect', controlPlaneHostId: containerd },
      { action: 'explode' },
      init({ podSubnet: 'everything' }),
      init({ imageRepository: 'http://localhost:5100' }),
      { ...init(), token },
      {
        action: 'upgrade',
        kubernetesVersion: '1.21.14',
        role: 'worker',
        isFirst: true,
        controlPlaneHostId: docker,
        cluster,
      },
    ])
      expect(await codeOf({ hostId: docker, operation })).toBe('request_invalid');
  });

  it('need a tunnel', async () => {
    const failed = await operate({ hostId: await addHost(), operation: init() });
    expect(failed).toMatchObject({ state: 'failed', error: { code: 'tunnel_failed' } });
    expect((await read(failed)).error).toMatchObject({ code: 'tunnel_failed' });
    const planned = await operate({ hostId: await addHost(), operation: init(), dryRun: true });
    expect(planned).toMatchObject({ state: 'failed', error: { code: 'tunnel_failed' } });
  });

  it('say that a host cannot be reached, and do not try for long', async () => {
    withTunnel();
    const failed = await operate({ hostId: await addHost('docker', await freePort()), operation: init() });
    expect(failed).toMatchObject({ state: 'failed', error: { code: 'host_unreachable' }, progress: { phase: 'init' } });
  });

  it('tell of the nodes as the cluster does', async () => {
    answer = (command) =>
      command.includes('kubectl')
        ? 'a v1.20.11 ready=True unschedulable=\nb v1.21.14 ready=Unknown unschedulable=true\nrubbish\n'
        : undefined;
    const hostId = await addHost();
    const job = await operate({ hostId, operation: { action: 'inspect', controlPlaneHostId: hostId } });
    expect(job.state).toBe('succeeded');
    expect((await read(job)).nodes).toEqual([
      { name: 'a', ready: true, version: '1.20.11', schedulable: true },
      { name: 'b', ready: false, version: '1.21.14', schedulable: false },
    ]);
  });

  it('are forgotten with their jobs when those ended long ago, by a worker that may be killed meanwhile', async () => {
    const hostId = await addHost();
    const inspect = { hostId, operation: { action: 'inspect', controlPlaneHostId: hostId } };
    const [old, young] = [await operate(inspect), await operate(inspect)];
    const query = (sql: string) => service.app.get<DataSource>('hostDataSource').query(sql);
    await query(`UPDATE job SET "finishedAt" = '2020-01-01T00:00:00.000Z' WHERE id = '${old.id}'`);
    const retention = service.app.get(JobRetention, { strict: false });
    // Whatever ends it between the two rows, as a killed worker would.
    await query(`CREATE TRIGGER killed BEFORE DELETE ON node_operation BEGIN SELECT RAISE(ABORT, 'killed'); END`);
    await expect(retention.forgetOld()).rejects.toThrow('killed');
    await query('DROP TRIGGER killed');
    await api('get', `/v1/jobs/${old.id}`).expect(200);
    expect((await read(old)).state).toBe('succeeded');
    await retention.forgetOld();
    await api('get', old.resource).expect(404);
    await api('get', `/v1/jobs/${old.id}`).expect(404);
    expect((await read(young)).state).toBe('succeeded');
  });

  it('bring the token on standard input, and keep it out of commands, rows and answers', async () => {
    withTunnel();
    let hasJoined = false;
    answer = (command, input) => {
      if (input.includes('os-release')) return facts;
      if (command.includes('dpkg-query'))
        return 'installed kubeadm 1.20.11-00\ninstalled kubelet 1.20.11-00\ninstalled kubectl 1.20.11-00\n';
      if (command.includes('token create'))
        return `kubeadm join 10.0.0.1:6443 --token ${token}     --discovery-token-ca-cert-hash sha256:${'a'.repeat(64)} \n`;
      if (command.includes('upload-certs')) return `[upload-certs] Using certificate key:\n${key}\n`;
      if (command.includes('config.yaml') && command.endsWith(' join')) hasJoined = true;
      // Both hosts are one here: the control plane's state is that of a member, which the other has not become yet.
      if (command.includes('authority=')) return states.shift() ?? '';
      if (command.includes('get node '))
        return hasJoined ? JSON.stringify({ status: { nodeInfo: { kubeletVersion: 'v1.20.11' } } }) : '';
      if (command.includes('limit=$1')) return 'settled not absent\n';
      return undefined;
    };
    const states = ['file=admin.conf\nfile=kubelet.conf\nauthority=123\n', ''];
    const controlPlaneHostId = await addHost();
    const job = await operate({
      hostId: await addHost(),
      operation: { action: 'join', role: 'controlPlane', controlPlaneHostId, cluster },
    });
    expect(job).toMatchObject({ state: 'succeeded', error: null });
    const sent = inputs.filter((input) => input.includes('JoinConfiguration') && !input.includes('***'));
    expect(sent).toHaveLength(1);
    expect(sent[0]).toContain(token);
    expect(sent[0]).toContain(key);
    const operation = await read(job);
    const stored = JSON.stringify(await service.app.get('hostDataSource').query('SELECT * FROM node_operation'));
    for (const text of [ssh.commands.join('\n'), JSON.stringify(operation), JSON.stringify(job), stored]) {
      expect(text).not.toContain(token);
      expect(text).not.toContain(key);
    }
    expect(operation.steps.find(({ name }) => name === 'kubeadm')?.changes.map(({ target }) => target)).toEqual([
      '/etc/kubernetes/airdock-unfinished.yaml',
      'kubeadm join --config FILE',
    ]);
  });

  it('wait for a configuration that has the host, and it for them', async () => {
    let open = () => undefined as unknown;
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    const begun: string[] = [];
    vi.spyOn(service.app.get(ConfigureHost, { strict: false }), 'run').mockImplementation(async () => {
      begun.push('configuration');
      await gate;
    });
    const hostId = await addHost();
    answer = (command) => {
      if (command.includes('kubectl')) begun.push('operation');
      return undefined;
    };
    const inspect = { hostId, operation: { action: 'inspect', controlPlaneHostId: hostId } };
    const configuration = (
      await api('post', '/v1/host-configurations')
        .send({ hostIds: [hostId] })
        .expect(202)
    ).body as Job;
    await waitFor(() => begun.length === 1, { what: 'the configuration to have the host' });
    const [first, second] = [
      (await post(inspect).expect(202)).body as Job,
      (await post(inspect).expect(202)).body as Job,
    ];
    const isWaiting = async (job: Job) =>
      (await api('get', `/v1/jobs/${job.id}`)).body.progress.phase === 'wait for the host';
    await waitFor(async () => (await isWaiting(first)) && (await isWaiting(second)), {
      what: 'both operations to wait',
    });
    expect(begun).toEqual(['configuration']);
    open();
    expect((await end(configuration)).state).toBe('succeeded');
    expect([(await end(first)).state, (await end(second)).state]).toEqual(['succeeded', 'succeeded']);
    expect(begun).toEqual(['configuration', 'operation', 'operation']);
  });

  it('leave the host to others when they are cancelled while they wait', async () => {
    const gate = new AbortController();
    vi.spyOn(service.app.get(ConfigureHost, { strict: false }), 'run').mockImplementation(
      (_host, _configuration, _result, signal) =>
        new Promise((_, reject) => {
          for (const one of [signal, gate.signal])
            one.addEventListener('abort', () => reject(new AppError('host_unreachable')), { once: true });
        }),
    );
    const hostId = await addHost();
    const configuration = (
      await api('post', '/v1/host-configurations')
        .send({ hostIds: [hostId] })
        .expect(202)
    ).body as Job;
    const turnOf = async () =>
      (await service.app.get('hostDataSource').query(`SELECT "turnJobId" FROM host WHERE id = '${hostId}'`))[0]
        .turnJobId as string;
    await waitFor(turnOf, { what: 'the configuration to have the host' });
    const waiting = (await post({ hostId, operation: { action: 'inspect', controlPlaneHostId: hostId } }).expect(202))
      .body as Job;
    await waitFor(async () => (await read(waiting)).state === 'running', { what: 'the operation to wait' });
    await api('post', `/v1/jobs/${waiting.id}/cancel`).expect(202);
    expect((await end(waiting)).state).toBe('cancelled');
    expect(await turnOf()).not.toBe(waiting.id);
    gate.abort();
    await end(configuration);
    expect((await operate({ hostId, operation: { action: 'inspect', controlPlaneHostId: hostId } })).state).toBe(
      'succeeded',
    );
  });
});
