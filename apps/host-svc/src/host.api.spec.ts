import { mkdir } from 'node:fs/promises';
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { freePort, startJsonServer, startRedis, startRegistry, tempDir, waitFor } from '@airdock/testing/servers';
import { type SshServerOptions, startSshServer } from '@airdock/testing/ssh-server';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import request from 'supertest';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HostModule } from './host.module.js';
import { SshCredentialService } from './ssh-credential/ssh-credential.service.js';
import { TunnelService } from './tunnel/tunnel.service.js';

// Hosts with a Docker of their own are in the lab, see test/e2e/hosts.e2e.ts. Here a real sshd stands for the host.
describe('host-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let registry: Awaited<ReturnType<typeof startRegistry>>;
  let others: Awaited<ReturnType<typeof startJsonServer>>;
  /** The socket that tunnels lead to. */
  let readOnly: Server;
  let sshd: Sshd;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let hostPort: number;
  let credentialId: string;
  const api = (method: 'get' | 'post' | 'patch' | 'delete', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const post = async (path: string, body: object): Promise<Job> => {
    const { body: job } = await api('post', path).send(body).expect(202);
    return (await api('get', `/v1/jobs/${job.id}?waitSeconds=40`)).body as Job;
  };
  let count = 0;
  const addHost = async (change: object = {}): Promise<string> => {
    const body = {
      name: `host-${++count}`,
      address: '127.0.0.1',
      port: sshd.port,
      credentialId,
      hostKey: sshd.hostKeys.ed25519,
      ...change,
    };
    return (await api('post', '/v1/hosts').send(body).expect(201)).body.id as string;
  };
  const tunnelOf = async (hostId: string) => (await api('get', `/v1/tunnels?hostId=${hostId}`)).body.items[0];

  beforeAll(async () => {
    folder = await tempDir('host-svc');
    [redis, registry, sshd] = await Promise.all([startRedis(), startRegistry({ readOnly: true }), startSshd()]);
    others = await startJsonServer({
      '/v1/registry': {
        mode: 'local',
        host: registry.host,
        url: registry.url,
        sockets: { readWrite: registry.url, readOnly: registry.url },
      },
      '/v1/images': { items: [] },
    });
    hostPort = await freePort();
    const socketDir = join(folder.path, 'sockets');
    await mkdir(socketDir);
    readOnly = createServer(
      (socket) =>
        void socket
          .pipe(connect(registry.port, '127.0.0.1'))
          .on('error', () => socket.destroy())
          .pipe(socket),
    );
    await new Promise<void>((resolve) => readOnly.listen(join(socketDir, 'read-only.sock'), resolve));
    const overrides = {
      'services.registry': others.url,
      'services.image': others.url,
      'registry.port': hostPort,
      'registry.socketDir': socketDir,
    };
    service = await startComponent('host', HostModule, { dataDir: folder.path, redisUrl: redis.url, overrides });
    const created = await api('post', '/v1/ssh-credentials')
      .send({ name: 'key', username: sshd.user, privateKey: sshd.privateKey })
      .expect(201);
    credentialId = created.body.id;
  });
  afterAll(async () => {
    await service?.app.close();
    readOnly?.close();
    await Promise.all([redis, registry, others, sshd].map((server) => server?.stop()));
    await folder?.remove();
  });

  it('keeps credentials to itself, and only those that can be used', async () => {
    const { body, text } = await api('get', `/v1/ssh-credentials/${credentialId}`).expect(200);
    expect(body).toMatchObject({ kind: 'key', publicKeyFingerprint: expect.stringMatching(/^SHA256:/) });
    expect(text).not.toContain('PRIVATE');
    const stored = await service.app.get('hostDataSource').query('SELECT * FROM ssh_credential');
    expect(JSON.stringify(stored)).not.toContain('PRIVATE');
    const bad = await api('post', '/v1/ssh-credentials')
      .send({ name: 'bad', username: 'root', privateKey: 'sesame' })
      .expect(422);
    expect(bad.body.code).toBe('credential_invalid');
    expect(bad.text).not.toContain('sesame');
    expect(
      (await api('post', '/v1/ssh-credentials').send({ name: 'key', username: 'root', password: 'x' }).expect(409)).body
        .code,
    ).toBe('resource_exists');
    expect(
      (await api('post', '/v1/ssh-credentials').send({ name: 'none', username: 'root' }).expect(422)).body.code,
    ).toBe('request_invalid');
  });

  it('lets a credential be rotated where it is, and says nothing of the old and the new secret', async () => {
    const { body: stale } = await api('post', '/v1/ssh-credentials')
      .send({ name: 'stale', username: sshd.user, privateKey: sshd.otherPrivateKey, sudoPassword: 'Sesam' })
      .expect(201);
    const path = `/v1/ssh-credentials/${stale.id}`;
    const check = async () => post('/v1/host-checks', { hostIds: [hostId] });
    const hostId = await addHost({ credentialId: stale.id });
    expect(await check()).toMatchObject({ state: 'failed', error: { code: 'host_auth_failed' } });
    const locked = await sshd.authorizedKey('-t', 'ed25519', '-N', 'Abrakadabra');
    expect((await api('patch', path).send({ privateKey: locked }).expect(422)).body.code).toBe('credential_invalid');
    const { body: rotated, text } = await api('patch', path)
      .send({ privateKey: locked, passphrase: 'Abrakadabra' })
      .expect(200);
    expect(rotated).toEqual({ ...stale, publicKeyFingerprint: expect.stringMatching(/^SHA256:/) });
    expect(rotated.publicKeyFingerprint).not.toBe(stale.publicKeyFingerprint);
    expect(text).not.toMatch(/PRIVATE|Abrakadabra|Sesam/);
    expect((await check()).state).toBe('succeeded');
    // What is not given stays: the key, then the password for sudo.
    expect((await api('patch', path).send({ name: 'fresh', sudoPassword: null }).expect(200)).body).toEqual({
      ...rotated,
      name: 'fresh',
      hasSudoPassword: false,
    });
    expect((await check()).state).toBe('succeeded');
    await api('patch', path).send({ sudoPassword: 'Simsalabim' }).expect(200);
    const password = (await api('patch', path).send({ password: 'Sesam', username: 'admin' }).expect(200)).body;
    expect(password).toMatchObject({
      kind: 'password',
      username: 'admin',
      publicKeyFingerprint: null,
      hasSudoPassword: true,
    });
    expect(await check()).toMatchObject({
      state: 'failed',
      error: { code: 'host_auth_failed', detail: expect.stringContaining('admin@') },
    });
    expect(await service.app.get(SshCredentialService, { strict: false }).open(stale.id)).toEqual({
      username: 'admin',
      password: 'Sesam',
      sudoPassword: 'Simsalabim',
    });
    expect(JSON.stringify(await service.app.get('hostDataSource').query('SELECT * FROM ssh_credential'))).not.toMatch(
      /Sesam|Simsalabim|Abrakadabra|PRIVATE/,
    );
    expect((await api('patch', path).send({ name: 'key' }).expect(409)).body.code).toBe('resource_exists');
    for (const wrong of [
      { privateKey: locked, password: 'x' },
      { passphrase: 'x' },
      { password: 'a\nb' },
      { username: '-x' },
      { kind: 'key' },
      { name: '' },
    ])
      expect((await api('patch', path).send(wrong).expect(422)).body.code).toBe('request_invalid');
    await api('patch', '/v1/ssh-credentials/01900000-0000-7000-8000-000000000001').send({ name: 'x' }).expect(404);
    expect((await api('patch', path).send({}).expect(200)).body).toEqual({ ...password });
  });

  it('does not let two changes of a secret at the same time undo each other', async () => {
    const credentials = service.app.get(SshCredentialService, { strict: false });
    const { id } = await credentials.create({ name: 'both', username: 'root', password: 'old' });
    const changes = await Promise.allSettled([
      credentials.patch(id, { password: 'new' }),
      credentials.patch(id, { sudoPassword: 'sudo' }),
    ]);
    const refused = changes.flatMap((change) =>
      change.status === 'rejected' ? [(change.reason as { code: string }).code] : [],
    );
    expect(refused).toEqual(['resource_changed']);
    expect([
      { username: 'root', password: 'new' },
      { username: 'root', password: 'old', sudoPassword: 'sudo' },
    ]).toContainEqual(await credentials.open(id));
  });

  it('pins the host key, and takes a new one only when told', async () => {
    const id = await addHost();
    const host = (await api('get', `/v1/hosts/${id}`)).body;
    expect(host.hostKeyFingerprint).toMatch(/^SHA256:/);
    const other = `SHA256:${'B'.repeat(43)}`;
    expect((await api('patch', `/v1/hosts/${id}`).send({ hostKey: other }).expect(200)).body.hostKeyFingerprint).toBe(
      other,
    );
    const job = await post('/v1/host-checks', { hostIds: [id] });
    expect(job).toMatchObject({
      state: 'failed',
      attempt: 1,
      error: {
        code: 'host_key_mismatch',
        pinned: other,
        seen: host.hostKeyFingerprint,
        nextStep: expect.stringContaining('fingerprint'),
      },
    });
    expect(
      (
        await api('post', '/v1/hosts')
          .send({ name: 'x', address: '127.0.0.1', credentialId, hostKey: 'no key' })
          .expect(422)
      ).body.code,
    ).toBe('request_invalid');
    expect((await api('delete', `/v1/ssh-credentials/${credentialId}`).expect(409)).body.code).toBe('resource_in_use');
  });

  it('says why a host cannot be reached, at once', async () => {
    const closed = await addHost({ port: await freePort() });
    expect(await post('/v1/host-checks', { hostIds: [closed] })).toMatchObject({
      state: 'failed',
      attempt: 1,
      error: { code: 'host_unreachable', detail: expect.stringContaining('ECONNREFUSED') },
    });
    const { body: stranger } = await api('post', '/v1/ssh-credentials').send({
      name: 'other',
      username: sshd.user,
      privateKey: sshd.otherPrivateKey,
    });
    const refused = await addHost({ credentialId: stranger.id });
    expect(await post('/v1/host-checks', { hostIds: [refused] })).toMatchObject({
      state: 'failed',
      error: { code: 'host_auth_failed' },
    });
    const mixed = await post('/v1/host-checks', { hostIds: [await addHost(), closed] });
    const { results } = (await api('get', `/v1/host-checks/${mixed.resource.split('/').at(-1)}`)).body;
    expect(results.map(({ error }: { error: { code: string } | null }) => error?.code ?? null)).toEqual([
      null,
      'host_unreachable',
    ]);
  });

  it('looks at a host and keeps the facts', async () => {
    const id = await addHost();
    const job = await post('/v1/host-checks', { hostIds: [id] });
    expect(job.state).toBe('succeeded');
    const { results } = (await api('get', `/v1/host-checks/${job.resource.split('/').at(-1)}`)).body;
    expect(results[0].checks.map(({ name }: { name: string }) => name)).toEqual(
      expect.arrayContaining(['ssh', 'sudo', 'os', 'docker', `port ${hostPort}`, 'time']),
    );
    for (const { status, nextStep } of results[0].checks)
      expect(status === 'pass' ? nextStep : nextStep?.length > 5).toBe(status === 'pass' ? null : true);
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

  const resultOf = async (hostId: string) => {
    const job = await post('/v1/host-checks', { hostIds: [hostId] });
    const { body } = await api('get', `/v1/host-checks/${job.resource.split('/').at(-1)}`);
    return {
      job,
      result: body.results?.[0],
      checkOf: (name: string) => body.results?.[0].checks.find((check: { name: string }) => check.name === name),
    };
  };

  it('pins the first key when told to, and only that one', async () => {
    const body = { name: 'first', address: '127.0.0.1', port: sshd.port, credentialId };
    for (const keys of [{}, { hostKey: sshd.hostKeys.ed25519, trustOnFirstUse: true }, { trustOnFirstUse: false }])
      expect(
        (
          await api('post', '/v1/hosts')
            .send({ ...body, ...keys })
            .expect(422)
        ).body.code,
      ).toBe('request_invalid');
    const { id, ...host } = (
      await api('post', '/v1/hosts')
        .send({ ...body, trustOnFirstUse: true })
        .expect(201)
    ).body;
    expect(host).toMatchObject({ hostKeyFingerprint: null, hostKeySource: 'firstUse' });
    const [one, two] = await Promise.all([resultOf(id), resultOf(id)]);
    for (const { job } of [one, two]) expect(job.state).toBe('succeeded');
    const pinned = (await api('get', `/v1/hosts/${id}`)).body;
    expect(pinned).toMatchObject({ hostKeyFingerprint: expect.stringMatching(/^SHA256:/), hostKeySource: 'firstUse' });
    await using other = await startSshd();
    await api('patch', `/v1/hosts/${id}`).send({ port: other.port }).expect(200);
    const changed = await resultOf(id);
    expect(changed.job.error).toMatchObject({
      code: 'host_key_mismatch',
      pinned: pinned.hostKeyFingerprint,
      seen: expect.stringMatching(/^SHA256:/),
    });
    expect((await api('get', `/v1/hosts/${id}`)).body.hostKeyFingerprint).toBe(pinned.hostKeyFingerprint);
    expect((await api('patch', `/v1/hosts/${id}`).send({ trustOnFirstUse: true }).expect(200)).body).toMatchObject({
      hostKeyFingerprint: null,
    });
    expect(
      (await api('patch', `/v1/hosts/${id}`).send({ hostKey: sshd.hostKeys.ed25519 }).expect(200)).body,
    ).toMatchObject({ hostKeySource: 'pinned' });
  });

  it('uses passwords for login and sudo, and gives neither away', async () => {
    const secrets = ['open sesame', 'Sesam öffne dich'];
    const [password = '', sudoPassword = ''] = secrets;
    const check = async (options: Partial<SshServerOptions>, credential: object) => {
      const server = await startSshServer({ password, ...options });
      const { body } = await api('post', '/v1/ssh-credentials')
        .send({ name: `password-${++count}`, username: 'admin', password, ...credential })
        .expect(201);
      const outcome = await resultOf(
        await addHost({ port: server.port, hostKey: server.hostKey, credentialId: body.id }),
      );
      const listed = (await api('get', '/v1/ssh-credentials')).text;
      for (const text of [JSON.stringify([body, outcome, server.commands]), listed])
        for (const secret of secrets) expect(text).not.toContain(secret);
      await server.stop();
      return { ...outcome, credential: body };
    };
    const asked = await check({ asks: 'keyboard-interactive', sudo: { password: sudoPassword } }, { sudoPassword });
    expect(asked.credential).toMatchObject({ kind: 'password', hasSudoPassword: true });
    expect(asked.job.state).toBe('succeeded');
    expect(asked.checkOf('sudo')).toMatchObject({ status: 'pass', seen: 'sudo with password' });
    const wrong = await check({ sudo: { password: 'another' } }, { sudoPassword });
    expect(wrong.result.error).toMatchObject({
      code: 'host_sudo_failed',
      nextStep: expect.stringContaining('sudoPassword'),
    });
    expect((await check({ sudo: { password: 'another' } }, {})).result.error.detail).toContain('has no sudoPassword');
    expect(
      (await api('post', '/v1/ssh-credentials').send({ name: 'lines', username: 'a', password: 'a\nb' }).expect(422))
        .text,
    ).not.toContain('a\\nb');
    const stored = JSON.stringify(await service.app.get('hostDataSource').query('SELECT * FROM ssh_credential'));
    for (const secret of secrets) expect(stored).not.toContain(secret);
  });

  it('goes through jump hosts, checks the key of each, and says which one fails', async () => {
    await using inner = await startSshd();
    const innerKey = (
      await api('post', '/v1/ssh-credentials').send({
        name: 'inner',
        username: inner.user,
        privateKey: inner.privateKey,
      })
    ).body.id;
    const jumpHostId = await addHost();
    const hostId = await addHost({
      port: inner.port,
      credentialId: innerKey,
      hostKey: inner.hostKeys.ed25519,
      jumpHostId,
    });
    const { job, checkOf } = await resultOf(hostId);
    expect(job.state).toBe('succeeded');
    expect(checkOf('ssh').seen).toContain(`127.0.0.1:${inner.port} through 127.0.0.1:${sshd.port}`);
    expect((await api('delete', `/v1/hosts/${jumpHostId}`).expect(409)).body).toMatchObject({
      code: 'resource_in_use',
      detail: expect.stringContaining('host-'),
    });
    const jumpName = (await api('get', `/v1/hosts/${jumpHostId}`)).body.name;
    await api('patch', `/v1/hosts/${jumpHostId}`)
      .send({ hostKey: `SHA256:${'C'.repeat(43)}` })
      .expect(200);
    expect((await resultOf(hostId)).result.error).toMatchObject({
      code: 'host_key_mismatch',
      jumpHost: jumpName,
      detail: expect.stringContaining(`jump host ${jumpName}`),
    });
    // Neither circles nor chains without an end.
    for (const id of [hostId, jumpHostId])
      expect((await api('patch', `/v1/hosts/${jumpHostId}`).send({ jumpHostId: id }).expect(422)).body.code).toBe(
        'jump_host_invalid',
      );
    let last = hostId;
    for (let jumps = 2; jumps <= 4; jumps++) last = await addHost({ jumpHostId: last });
    const further = { name: 'far', address: '127.0.0.1', credentialId, trustOnFirstUse: true, jumpHostId: last };
    expect((await api('post', '/v1/hosts').send(further).expect(422)).body.code).toBe('jump_host_invalid');
    expect(
      (
        await api('patch', `/v1/hosts/${jumpHostId}`)
          .send({ jumpHostId: await addHost() })
          .expect(422)
      ).body.code,
    ).toBe('jump_host_invalid');
    await api('patch', `/v1/hosts/${hostId}`).send({ jumpHostId: null }).expect(200);
    await api('delete', `/v1/hosts/${jumpHostId}`).expect(204);
  });

  it('labels hosts and finds them by selector, page by page', async () => {
    const ids: string[] = [];
    for (const [index, env] of ['a', 'b', 'c', 'a'].entries())
      ids.push(
        await addHost({ labels: { env, 'example.com/nr': String(index), ...(index === 0 ? { old: '' } : {}) } }),
      );
    const find = async (query: Record<string, string>) =>
      (await api('get', `/v1/hosts?${new URLSearchParams(query)}`).expect(200)).body;
    const idsOf = async (labelSelector: string) =>
      (await find({ labelSelector })).items.map(({ id }: { id: string }) => id).reverse();
    expect(await idsOf('env in (a,b),!old')).toEqual([ids[1], ids[3]]);
    expect(await idsOf('env!=a,example.com/nr')).toEqual([ids[1], ids[2]]);
    const first = await find({ labelSelector: 'env=a', limit: '1' });
    expect(first.items.map(({ id }: { id: string }) => id)).toEqual([ids[3]]);
    const second = await find({ labelSelector: 'env=a', limit: '1', cursor: first.nextCursor });
    expect([second.items[0].id, second.nextCursor]).toEqual([ids[0], undefined]);
    const patched = (
      await api('patch', `/v1/hosts/${ids[0]}`)
        .send({ labels: { env: 'z', old: null, fresh: 'yes' } })
        .expect(200)
    ).body;
    expect(patched.labels).toEqual({ env: 'z', 'example.com/nr': '0', fresh: 'yes' });
    expect((await api('get', '/v1/hosts?labelSelector=env%20in').expect(422)).body.code).toBe('label_selector_invalid');
    for (const labels of [
      { '-a': '' },
      { a: 'b c' },
      Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`l${index}`, ''])),
    ])
      expect((await api('patch', `/v1/hosts/${ids[0]}`).send({ labels }).expect(422)).body.code).toBe(
        'request_invalid',
      );
  });

  describe('imports', () => {
    const importHosts = (body: object) =>
      api('post', '/v1/hosts/imports').send({
        format: 'csv',
        defaults: { credentialId, labels: { rack: '1' } },
        ...body,
      });
    const content = () =>
      `name,address,host_key,labels\nimport-1,10.0.0.1,${sshd.hostKeys.ed25519},role=worker\nimport-2,10.0.0.2,${sshd.hostKeys.ecdsa},\n`;
    const named = async (name: string) =>
      (await api('get', '/v1/hosts?limit=500')).body.items.find((host: { name: string }) => host.name === name);

    it('register hosts once, and change what the inventory says differently', async () => {
      const dry = (await importHosts({ content: content(), dryRun: true }).expect(200)).body;
      expect(dry).toMatchObject({
        dryRun: true,
        created: 2,
        refused: 0,
        hosts: [{ line: 2, name: 'import-1', outcome: 'created', hostId: null }, { line: 3 }],
      });
      expect(await named('import-1')).toBeUndefined();
      const created = (await importHosts({ content: content() }).expect(200)).body;
      expect(created).toMatchObject({
        created: 2,
        unchanged: 0,
        hosts: [{ outcome: 'created', hostId: (await named('import-1')).id }, {}],
      });
      expect(await named('import-1')).toMatchObject({
        address: '10.0.0.1',
        port: 22,
        hostKeySource: 'pinned',
        labels: { rack: '1', role: 'worker' },
      });
      const changed = content().replace('10.0.0.2', '10.0.0.22');
      expect((await importHosts({ content: changed }).expect(200)).body).toMatchObject({
        created: 0,
        unchanged: 1,
        updated: 1,
      });
      expect(await named('import-2')).toMatchObject({ address: '10.0.0.22', labels: { rack: '1' } });
    });

    it('take what Ansible takes: many groups, IPv6, and with partial everything but an odd line', async () => {
      const groups = Array.from({ length: 120 }, (_, index) => `[g${index}:children]\nall-in-one\n`).join('');
      const ini = `[all-in-one]\nmany-groups ansible_host=10.0.0.7 node-role=worker\n[2001:db8::7]:2222\nodd line here\n${groups}`;
      const body = {
        format: 'ini',
        content: ini,
        defaults: { credentialId, labels: { rack: '1' }, trustOnFirstUse: true },
      };
      expect((await importHosts(body)).status).toBe(422);
      const done = (await importHosts({ ...body, partial: true }).expect(200)).body;
      expect(done).toMatchObject({
        created: 2,
        refused: 1,
        hosts: [{ name: 'many-groups' }, { name: '2001-db8--7' }, { line: 4, outcome: 'refused' }],
      });
      expect(done.warnings.join()).toContain('many-groups (58)');
      const { labels } = await named('many-groups');
      expect(Object.keys(labels)).toHaveLength(64);
      expect(labels).toMatchObject({ rack: '1', 'ansible-group/all-in-one': '' });
      expect(await named('2001-db8--7')).toMatchObject({ address: '2001:db8::7', port: 2222 });
      const twice = {
        ...body,
        format: 'yaml',
        content: 'g:\n  hosts:\n    twice: {ansible_host: a}\n    twice: {ansible_host: b}\n',
      };
      expect((await importHosts(twice).expect(200)).body).toMatchObject({
        created: 1,
        warnings: [expect.stringContaining('line 4: the key is in line 3')],
      });
      expect(await named('twice')).toMatchObject({ address: 'b' });
      const again = (await importHosts({ ...body, partial: true, groupLabels: ['all-*', 'g7'] }).expect(200)).body;
      expect(again).toMatchObject({ refused: 1, warnings: [] });
    });

    it('are all or nothing unless partial, and name each line that is wrong', async () => {
      const bad =
        `${content()}import-3,10.0.0.3,no key,\nimport-3,not an address,,\nimport_4,10.0.0.4,${sshd.hostKeys.ed25519},\n`
          .replace(sshd.hostKeys.ecdsa, sshd.hostKeys.ed25519)
          .concat('import-5,10.0.0.5,,');
      const refused = (await importHosts({ content: bad }).expect(422)).body;
      expect(refused).toMatchObject({ code: 'inventory_refused', detail: expect.stringContaining('5 of 6') });
      expect(refused.refused.map(({ line }: { line: number }) => line)).toEqual([3, 4, 5, 6, 7]);
      const partial = (await importHosts({ content: bad.replace('import_4', 'import-4'), partial: true }).expect(200))
        .body;
      expect(partial).toMatchObject({ unchanged: 1, created: 1, refused: 4 });
      const trusting = { credentialId, trustOnFirstUse: true };
      expect(
        (await importHosts({ content: 'name,address\nimport-6,10.0.0.6', defaults: trusting }).expect(200)).body,
      ).toMatchObject({ created: 1 });
      expect(await named('import-6')).toMatchObject({ hostKeyFingerprint: null, hostKeySource: 'firstUse' });
    });

    it('take inventories of Ansible, and none with passwords', async () => {
      const ini = `[web]\nansible-[1:3] ansible_user=${sshd.user}\n[web:vars]\nairdock_credential=key\n`;
      const defaults = { trustOnFirstUse: true };
      expect((await importHosts({ format: 'ini', content: ini, defaults }).expect(200)).body).toMatchObject({
        created: 3,
      });
      expect(await named('ansible-2')).toMatchObject({ address: 'ansible-2', labels: { 'ansible-group/web': '' } });
      const other = await importHosts({
        format: 'ini',
        content: ini.replace('[1:3]', '[4:4]').replace(sshd.user, 'somebody'),
        defaults,
      }).expect(422);
      expect(other.body.refused[0].problem).toContain('user');
      const there = await importHosts({
        format: 'ini',
        content: ini.replace(sshd.user, 'somebody').replace(/\[web:vars][^]*/, ''),
        defaults,
      }).expect(422);
      expect(there.body.refused).toHaveLength(3);
      const secret = await importHosts({ format: 'ini', content: `${ini}ansible_password=hunter2\n`, defaults }).expect(
        422,
      );
      expect(secret.body.refused[0].problem).toContain('ansible_password');
      expect(secret.text).not.toContain('hunter2');
      const broken = await importHosts({ format: 'yaml', content: 'all: hosts: hunter2', defaults }).expect(422);
      expect(broken.body).toMatchObject({ code: 'inventory_invalid', line: 1 });
      expect(broken.text).not.toContain('hunter2');
      const fleet = Array.from({ length: 5000 }, (_, index) => `fleet-${index},10.1.0.1,`).join('\n');
      expect(
        (
          await importHosts({
            content: `name,address,host_key\n${fleet}`,
            defaults: { credentialId, trustOnFirstUse: true },
          }).expect(200)
        ).body.created,
      ).toBe(5000);
      await importHosts({ content: 'x'.repeat(1_000_001) }).expect(422);
      for (const missing of [
        { credentialId: '01900000-0000-7000-8000-000000000001' },
        { credentialId, jumpHostId: '01900000-0000-7000-8000-000000000001' },
      ])
        expect((await importHosts({ content: content(), defaults: missing }).expect(404)).body.code).toBe(
          'resource_not_found',
        );
    });
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
    expect(await tunnelOf(hostId)).toMatchObject({
      state: 'up',
      hostPort,
      target: `unix:${folder.path}/sockets/read-only.sock`,
      reconnects: 0,
      error: null,
    });
    expect((await fetch(`http://127.0.0.1:${hostPort}/v2/x/blobs/uploads/`, { method: 'POST' })).status).toBe(405);
    await sshd.kill();
    await waitFor(async () => (await tunnelOf(hostId)).state === 'down', {
      what: 'the tunnel to be seen down',
      timeoutMs: 30_000,
    });
    expect((await tunnelOf(hostId)).error).toMatchObject({ nextStep: expect.any(String) });
    await sshd.restart();
    await waitFor(async () => (await tunnelOf(hostId)).state === 'up' && (await answers()), {
      what: 'the tunnel to be up again',
      timeoutMs: 30_000,
    });
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
