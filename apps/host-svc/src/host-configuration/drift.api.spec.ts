import { AppError, toProblem } from '@airdock/core/errors';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { startPostgres, startRedis, tempDir, waitFor } from '@airdock/testing/servers';
import request from 'supertest';
import type { DataSource } from 'typeorm';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { type Change, ConfigurationOptions, type Drift, type Host } from '../host/host.schema.js';
import { HostService } from '../host/host.service.js';
import { HostModule } from '../host.module.js';
import { ConfigureHost } from './configure-host.service.js';
import { DriftSchedule, driftAfter } from './drift.js';
import type { HostConfiguration } from './host-configuration.schema.js';

const mirror: Change = { kind: 'file', target: '/etc/docker/daemon.json', action: 'change', diff: '-a\n+b\n' };
const list: Change = { kind: 'file', target: '/etc/apt/sources.list.d/airdock.list', action: 'create', diff: '+deb\n' };

describe('driftAfter', () => {
  const problem = toProblem(new AppError('host_unreachable'));
  const before: Drift = {
    checkedAt: '2026-01-01T00:00:00.000Z',
    changes: [mirror],
    error: null,
    configurationId: 'old',
  };
  const after = (found: Change[], error: typeof problem | null, dryRun: boolean) =>
    driftAfter(
      before,
      { steps: [{ name: 'runtime', status: 'done', detail: '', changes: found, durationMs: 1 }], warnings: [], error },
      dryRun,
      'new',
    ).changes;

  it.each([
    ['a look that finds what a repair would do', [list], null, true, [list]],
    ['a look that finds nothing', [], null, true, []],
    ['a look that fails, which leaves what was known', [list], problem, true, [list, mirror]],
    ['a repair', [mirror], null, false, []],
    ['a repair that fails after it put something right', [mirror], problem, false, []],
    ['a repair that fails before', [], problem, false, [mirror]],
  ])('tells of %s', (_, found, error, dryRun, expected) => expect(after(found, error, dryRun)).toEqual(expected));
});

// What a host's configuration does is tested on real hosts, see test/e2e. Here it is what is known of hosts, and when
// they are looked at.
describe.each(['SQLite', 'PostgreSQL'])('drift, on %s', (database) => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let postgres: Awaited<ReturnType<typeof startPostgres>> | undefined;
  /** Two workers, as two replicas are. */
  let services: Awaited<ReturnType<typeof startComponent>>[];
  let ids: string[];
  let runs: { name: string; dryRun: boolean; options: ConfigurationOptions; bundleIds: string[] }[];
  let changes: Change[];
  let failure: AppError | undefined;
  let gate: Promise<void>;

  const first = () => services[0] as (typeof services)[0];
  const api = (method: 'get' | 'post' | 'patch' | 'delete', path: string) =>
    request(first().url)[method](path).set('authorization', `Bearer ${first().token}`);
  const endOf = async ({ id }: { id: string }): Promise<Job> =>
    (await api('get', `/v1/jobs/${id}?waitSeconds=40`)).body as Job;
  const start = async (body: object): Promise<Job> =>
    (await api('post', '/v1/host-configurations').send(body).expect(202)).body as Job;
  const reapply = async (body: object): Promise<Job> => endOf(await start({ action: 'reapply', ...body }));
  const hostOf = async (id = ''): Promise<Host> => (await api('get', `/v1/hosts/${id}`).expect(200)).body as Host;
  const listed = async (query: string): Promise<string[]> =>
    (await api('get', `/v1/hosts?${query}`).expect(200)).body.items.map(({ name }: Host) => name).sort();

  beforeAll(async () => {
    folder = await tempDir('drift');
    redis = await startRedis();
    postgres = database === 'PostgreSQL' ? await startPostgres() : undefined;
    services = [];
    for (let replica = 0; replica < 2; replica++) {
      const options = {
        dataDir: folder.path,
        redisUrl: redis.url,
        overrides: postgres ? { databaseUrl: postgres.url } : {},
      };
      const service = await startComponent('host', HostModule, options);
      services.push(service);
      vi.spyOn(service.app.get(ConfigureHost, { strict: false }), 'run').mockImplementation(
        async ({ name }, configuration, result, signal) => {
          const { dryRun, options, bundleIds } = configuration;
          runs.push({ name, dryRun, options, bundleIds });
          await Promise.race([
            gate,
            new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true })),
          ]);
          result.steps.push({ name: 'runtime', status: 'done', detail: '', changes, durationMs: 1 });
          if (failure) throw failure;
        },
      );
    }
    const credential = await api('post', '/v1/ssh-credentials')
      .send({ name: 'password', username: 'root', password: 'sesame' })
      .expect(201);
    ids = [];
    for (const name of ['one', 'two', 'new']) {
      const body = {
        name,
        address: '127.0.0.1',
        port: 9,
        credentialId: credential.body.id,
        hostKey: `SHA256:${'A'.repeat(43)}`,
        labels: { site: 'a' },
      };
      ids.push((await api('post', '/v1/hosts').send(body).expect(201)).body.id);
    }
    const hosts = first().app.get(HostService, { strict: false });
    for (const id of ids.slice(0, 2))
      await hosts.saveConfigured(id, ConfigurationOptions.parse({ skipYumRepoInstall: id === ids[1] }));
  });
  beforeEach(() => {
    runs = [];
    changes = [];
    failure = undefined;
    gate = Promise.resolve();
  });
  afterAll(async () => {
    await Promise.all((services ?? []).map(({ app }) => app.close()));
    await postgres?.stop();
    await redis?.stop();
    await folder?.remove();
  });

  it('is looked for with the options that each host was configured with, on configured hosts only', async () => {
    expect(
      (await api('post', '/v1/host-configurations').send({ action: 'reapply', hostIds: ids }).expect(409)).body,
    ).toMatchObject({
      code: 'host_not_configured',
      detail: 'new',
      nextStep: expect.stringContaining('host-configurations'),
    });
    const bundles = { action: 'reapply', hostIds: [ids[0]], bundleIds: ['01900000-0000-7000-8000-000000000001'] };
    expect((await api('post', '/v1/host-configurations').send(bundles).expect(422)).body.code).toBe('request_invalid');
    const job = await reapply({ labelSelector: 'site=a', dryRun: true, skipDockerInstall: true });
    expect(job).toMatchObject({ state: 'succeeded', result: { hosts: 2 } });
    expect(runs.toSorted((a, b) => a.name.localeCompare(b.name))).toEqual([
      {
        name: 'one',
        dryRun: true,
        bundleIds: [],
        options: expect.objectContaining({ skipYumRepoInstall: false, skipDockerInstall: false }),
      },
      {
        name: 'two',
        dryRun: true,
        bundleIds: [],
        options: expect.objectContaining({ skipYumRepoInstall: true, skipDockerInstall: false }),
      },
    ]);
    expect((await api('get', job.resource)).body).toMatchObject({ action: 'reapply', scheduled: false });
  });

  it('is shown on the host until a repair or a configuration has put it right', async () => {
    changes = [mirror];
    const found = await reapply({ hostIds: [ids[0]], dryRun: true });
    expect((await hostOf(ids[0])).drift).toEqual({
      checkedAt: expect.any(String),
      changes: [mirror],
      error: null,
      configurationId: found.resource.split('/').at(-1),
    });
    expect([
      await listed('drifted=true'),
      await listed('drifted=false'),
      await listed('drifted=true&labelSelector=site=b'),
    ]).toEqual([['one'], ['two'], []]);
    expect(await listed('limit=500')).toHaveLength(3);

    failure = new AppError('host_unreachable', { detail: 'one: ECONNREFUSED' });
    changes = [];
    expect((await reapply({ hostIds: [ids[0]], dryRun: true })).state).toBe('failed');
    expect((await hostOf(ids[0])).drift).toMatchObject({
      changes: [mirror],
      error: { code: 'host_unreachable', nextStep: expect.any(String) },
    });

    // Another configuration that fails, or is only planned, tells nothing of the one that the host has.
    expect((await endOf(await start({ hostIds: [ids[0]] }))).state).toBe('failed');
    failure = undefined;
    await endOf(await start({ hostIds: [ids[0]], dryRun: true }));
    expect((await hostOf(ids[0])).drift).toMatchObject({ changes: [mirror], error: { code: 'host_unreachable' } });

    changes = [mirror];
    await reapply({ hostIds: [ids[0]] });
    expect((await hostOf(ids[0])).drift).toMatchObject({ changes: [], error: null });
    await reapply({ hostIds: [ids[0]], dryRun: true });
    expect(await listed('drifted=true')).toEqual(['one']);
    await endOf(await start({ hostIds: [ids[0]] }));
    expect(await listed('drifted=true')).toEqual([]);
    expect((await hostOf(ids[2])).drift).toBeNull();
  });

  it('is not told by a look that was cancelled', async () => {
    gate = new Promise(() => undefined);
    const known = (await hostOf(ids[0])).drift;
    const job = await start({ action: 'reapply', hostIds: [ids[0]], dryRun: true });
    await waitFor(() => runs.length === 1, { what: 'the look to begin' });
    await api('post', `/v1/jobs/${job.id}/cancel`).expect(202);
    expect((await endOf(job)).state).toBe('cancelled');
    expect((await hostOf(ids[0])).drift).toEqual(known);
  });

  describe('is looked for by itself', () => {
    const source = () => first().app.get<DataSource>('hostDataSource');
    const scheduled = async () =>
      ((await api('get', '/v1/host-configurations?limit=500').expect(200)).body.items as HostConfiguration[]).filter(
        (one) => one.scheduled,
      );
    const hoursAgo = (hours: number) =>
      source()
        .createQueryBuilder()
        .update('drift_schedule')
        .set({ lastAt: new Date(Date.now() - hours * 3_600_000).toISOString() })
        .execute();
    /** Both workers look at the clock, several times at once. */
    const look = () =>
      Promise.all(
        services.flatMap(({ app }) => {
          const schedule = app.get(DriftSchedule, { strict: false }) as unknown as { round(): Promise<void> };
          return [schedule.round(), schedule.round(), schedule.round()];
        }),
      );

    it('once by several workers, once after a pause, and not while the look before still runs', async () => {
      await waitFor(async () => (await source().getRepository('drift_schedule').count()) === 1, {
        what: 'the schedule to begin',
      });
      await look();
      expect(await scheduled()).toEqual([]);
      let open = () => undefined as unknown;
      gate = new Promise((resolve) => {
        open = resolve;
      });
      await hoursAgo(5);
      await look();
      const [one, ...none] = await scheduled();
      expect(none).toEqual([]);
      expect(one).toMatchObject({
        action: 'reapply',
        dryRun: true,
        rollout: { atOnce: 8 },
        hosts: [{ hostName: 'two' }, { hostName: 'one' }],
      });
      await hoursAgo(2);
      await look();
      expect(await scheduled()).toHaveLength(1);
      open();
      expect(await endOf({ id: one?.jobId ?? '' })).toMatchObject({ state: 'succeeded', createdBy: 'schedule' });
      await look();
      expect(await scheduled()).toHaveLength(2);
      await look();
      expect(await scheduled()).toHaveLength(2);
      // A clock that was wrong once.
      await endOf({ id: (await scheduled())[0]?.jobId ?? '' });
      await hoursAgo(-50);
      await look();
      expect(await scheduled()).toHaveLength(3);
      await endOf({ id: (await scheduled())[0]?.jobId ?? '' });
    });

    it('never, when it is switched off, and puts it right when told to', async () => {
      const before = (await scheduled()).length;
      for (const { config } of services) config.hosts.drift.everyMinutes = 0;
      await hoursAgo(5);
      await look();
      expect(await scheduled()).toHaveLength(before);
      for (const { config } of services) config.hosts.drift = { everyMinutes: 1, repair: true };
      await look();
      const [newest] = await scheduled();
      expect(newest).toMatchObject({ dryRun: false });
      await endOf({ id: newest?.jobId ?? '' });
      expect(runs.every(({ dryRun }) => !dryRun)).toBe(true);
    });

    it('and only the newest looks are kept, with their jobs', async () => {
      const tables = ['host_configuration', 'host_configuration_host', 'job'];
      const counts = async () => {
        const found: Record<string, number> = {};
        for (const table of tables) found[table] = await source().getRepository(table).count();
        return found;
      };
      for (const { config } of services) config.hosts.drift.everyMinutes = 60;
      const own = (await scheduled()).length;
      const before = await counts();
      for (let round = 0; round < 22; round++) {
        await hoursAgo(2);
        await look();
        await endOf({ id: (await scheduled())[0]?.jobId ?? '' });
      }
      const kept = await scheduled();
      expect(kept).toHaveLength(24);
      const more = 24 - own;
      expect(await counts()).toEqual({
        host_configuration: (before.host_configuration ?? 0) + more,
        host_configuration_host: (before.host_configuration_host ?? 0) + 2 * more,
        job: (before.job ?? 0) + 3 * more,
      });
      for (const { hosts } of kept) expect(hosts.map(({ state }) => state)).toEqual(['succeeded', 'succeeded']);
      expect((await hostOf(ids[0])).drift?.configurationId).toBe(kept[0]?.id);
    });
  });
});
