import { startComponent } from '@airdock/platform/component';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { freePort, startJsonServer, startRedis, startRegistry, tempDir, waitFor } from '@airdock/testing/servers';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import request from 'supertest';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HostModule } from './host.module.js';
import { TunnelService } from './tunnel/tunnel.service.js';

// Hosts with a Docker of their own are in the lab, see test/e2e/hosts.e2e.ts. Here a real sshd stands for the host.
describe('host-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let registry: Awaited<ReturnType<typeof startRegistry>>;
  let others: Awaited<ReturnType<typeof startJsonServer>>;
  let sshd: Sshd;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let hostPort: number;
  let credentialId: string;
  const api = (method: 'get' | 'post' | 'patch' | 'delete', path: string) => request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const post = async (path: string, body: object): Promise<Job> => {
    const { body: job } = await api('post', path).send(body).expect(202);
    return (await api('get', `/v1/jobs/${job.id}?waitSeconds=40`)).body as Job;
  };
  let count = 0;
  const addHost = async (change: object = {}): Promise<string> => {
    const body = { name: `host-${++count}`, address: '127.0.0.1', port: sshd.port, credentialId, hostKey: sshd.hostKeys.ed25519, ...change };
    return (await api('post', '/v1/hosts').send(body).expect(201)).body.id as string;
  };
  const tunnelOf = async (hostId: string) => (await api('get', `/v1/tunnels?hostId=${hostId}`)).body.items[0];

  beforeAll(async () => {
    folder = await tempDir('host-svc');
    [redis, registry, sshd] = await Promise.all([startRedis(), startRegistry({ readOnly: true }), startSshd()]);
    others = await startJsonServer({
      '/v1/registry': { mode: 'local', host: registry.host, url: registry.url, readOnlyUrl: registry.url },
      '/v1/images': { items: [] },
    });
    hostPort = await freePort();
    const overrides = { 'services.registry': others.url, 'services.image': others.url, 'registry.port': hostPort };
    service = await startComponent('host', HostModule, { dataDir: folder.path, redisUrl: redis.url, overrides });
    const created = await api('post', '/v1/ssh-credentials').send({ name: 'key', username: sshd.user, privateKey: sshd.privateKey }).expect(201);
    credentialId = created.body.id;
  });
  afterAll(async () => {
    await service?.app.close();
    await Promise.all([redis, registry, others, sshd].map((server) => server?.stop()));
    await folder?.remove();
  });

  it('keeps credentials to itself, and only those that can be used', async () => {
    const { body, text } = await api('get', `/v1/ssh-credentials/${credentialId}`).expect(200);
    expect(body).toMatchObject({ kind: 'key', publicKeyFingerprint: expect.stringMatching(/^SHA256:/) });
    expect(text).not.toContain('PRIVATE');
    const stored = await service.app.get('hostDataSource').query('SELECT * FROM ssh_credential');
    expect(JSON.stringify(stored)).not.toContain('PRIVATE');
    const bad = await api('post', '/v1/ssh-credentials').send({ name: 'bad', username: 'root', privateKey: 'sesame' }).expect(422);
    expect(bad.body.code).toBe('credential_invalid');
    expect(bad.text).not.toContain('sesame');
    expect((await api('post', '/v1/ssh-credentials').send({ name: 'key', username: 'root', password: 'x' }).expect(409)).body.code).toBe('resource_exists');
    expect((await api('post', '/v1/ssh-credentials').send({ name: 'none', username: 'root' }).expect(422)).body.code).toBe('request_invalid');
  });

  it('pins the host key, and takes a new one only when told', async () => {
    const id = await addHost();
    const host = (await api('get', `/v1/hosts/${id}`)).body;
    expect(host.hostKeyFingerprint).toMatch(/^SHA256:/);
    const other = `SHA256:${'B'.repeat(43)}`;
    expect((await api('patch', `/v1/hosts/${id}`).send({ hostKey: other }).expect(200)).body.hostKeyFingerprint).toBe(other);
    const job = await post('/v1/host-checks', { hostIds: [id] });
    expect(job).toMatchObject({
      state: 'failed',
      attempt: 1,
      error: { code: 'host_key_mismatch', pinned: other, seen: host.hostKeyFingerprint, nextStep: expect.stringContaining('fingerprint') },
    });
    expect((await api('post', '/v1/hosts').send({ name: 'x', address: '127.0.0.1', credentialId, hostKey: 'no key' }).expect(422)).body.code).toBe(
      'request_invalid',
    );
    expect((await api('delete', `/v1/ssh-credentials/${credentialId}`).expect(409)).body.code).toBe('resource_in_use');
  });

  it('says why a host cannot be reached, at once', async () => {
    const closed = await addHost({ port: await freePort() });
    expect(await post('/v1/host-checks', { hostIds: [closed] })).toMatchObject({
      state: 'failed',
      attempt: 1,
      error: { code: 'host_unreachable', detail: expect.stringContaining('ECONNREFUSED') },
    });
    const { body: stranger } = await api('post', '/v1/ssh-credentials').send({ name: 'other', username: sshd.user, privateKey: sshd.otherPrivateKey });
    const refused = await addHost({ credentialId: stranger.id });
    expect(await post('/v1/host-checks', { hostIds: [refused] })).toMatchObject({ state: 'failed', error: { code: 'host_auth_failed' } });
    const mixed = await post('/v1/host-checks', { hostIds: [await addHost(), closed] });
    const { results } = (await api('get', `/v1/host-checks/${mixed.resource.split('/').at(-1)}`)).body;
    expect(results.map(({ error }: { error: { code: string } | null }) => error?.code ?? null)).toEqual([null, 'host_unreachable']);
  });

  it('looks at a host and keeps the facts', async () => {
    const id = await addHost();
    const job = await post('/v1/host-checks', { hostIds: [id] });
    expect(job.state).toBe('succeeded');
    const { results } = (await api('get', `/v1/host-checks/${job.resource.split('/').at(-1)}`)).body;
    expect(results[0].checks.map(({ name }: { name: string }) => name)).toEqual(['os', 'docker', `port ${hostPort}`, 'disk', 'memory', 'swap']);
    for (const { status, nextStep } of results[0].checks) expect(status === 'pass' ? nextStep : nextStep?.length > 5).toBe(status === 'pass' ? null : true);
    expect((await api('get', `/v1/hosts/${id}`)).body.facts).toMatchObject({
      os: expect.any(String),
      cpus: expect.any(Number),
      memoryBytes: expect.any(Number),
    });
    expect(
      (
        await api('post', '/v1/host-checks')
          .send({ hostIds: ['01900000-0000-7000-8000-000000000001'] })
          .expect(404)
      ).body.code,
    ).toBe('resource_not_found');
    expect(
      (
        await api('post', '/v1/host-checks')
          .send({ hostIds: [id], pull: ['NOT A NAME'] })
          .expect(422)
      ).body.code,
    ).toBe('reference_invalid');
  });

  it('keeps a tunnel up: through it the registry answers, and it comes back when the host does', async () => {
    const hostId = await addHost();
    await service.app.get(TunnelService, { strict: false }).ensureUp(hostId, new AbortController().signal);
    const answers = () =>
      fetch(`http://127.0.0.1:${hostPort}/v2/`).then(
        ({ status }) => status === 200,
        () => false,
      );
    expect(await answers()).toBe(true);
    expect(await tunnelOf(hostId)).toMatchObject({ state: 'up', hostPort, target: `127.0.0.1:${registry.port}`, reconnects: 0, error: null });
    expect((await fetch(`http://127.0.0.1:${hostPort}/v2/x/blobs/uploads/`, { method: 'POST' })).status).toBe(405);
    await sshd.kill();
    await waitFor(async () => (await tunnelOf(hostId)).state === 'down', { what: 'the tunnel to be seen down', timeoutMs: 30_000 });
    expect((await tunnelOf(hostId)).error).toMatchObject({ nextStep: expect.any(String) });
    await sshd.restart();
    await waitFor(async () => (await tunnelOf(hostId)).state === 'up' && (await answers()), { what: 'the tunnel to be up again', timeoutMs: 30_000 });
    expect((await tunnelOf(hostId)).reconnects).toBeGreaterThan(0);
    await api('delete', `/v1/hosts/${hostId}`).expect(204);
    await waitFor(async () => !(await answers()), { what: 'the tunnel to be closed', timeoutMs: 10_000 });
    expect(await tunnelOf(hostId)).toBeUndefined();
  });

  it('says that the port is taken on the host', async () => {
    const occupied = await startRegistry({ port: hostPort });
    const hostId = await addHost();
    const failure = await service.app
      .get(TunnelService, { strict: false })
      .ensureUp(hostId, new AbortController().signal)
      .catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: 'host_port_taken' });
    await api('delete', `/v1/hosts/${hostId}`).expect(204);
    await occupied.stop();
  });
});
