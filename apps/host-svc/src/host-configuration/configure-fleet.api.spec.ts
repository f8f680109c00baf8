import { AppError } from '@airdock/core/errors';
import type { Job } from '@airdock/platform/jobs/job.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { startRedis, tempDir, waitFor } from '@airdock/testing/servers';
import request from 'supertest';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { HostModule } from '../host.module.js';
import { ConfigureHost } from './configure-host.service.js';
import type { HostConfiguration } from './host-configuration.schema.js';

// What a host's configuration does is tested on real hosts, see test/e2e. Here it is the rollout over many.
describe('a rollout', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let service: Awaited<ReturnType<typeof startComponent>>;
  let hostIds: string[];
  /** Names of hosts in the order in which they began. */
  let begun: string[];
  let running: Set<string>;
  let most: number;
  /** Hosts that fail, and a gate that all pass. */
  let broken: Set<string>;
  let gate: Promise<void>;

  const api = (method: 'get' | 'post' | 'patch', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const jobOf = async (id: string): Promise<Job> => (await api('get', `/v1/jobs/${id}?waitSeconds=40`)).body as Job;
  const start = async (body: object): Promise<Job> =>
    (await api('post', '/v1/host-configurations').send(body).expect(202)).body as Job;
  const read = async ({ resource }: Job): Promise<HostConfiguration> =>
    (await api('get', resource).expect(200)).body as HostConfiguration;
  const states = ({ hosts }: HostConfiguration) => hosts.map(({ state }) => state);

  beforeAll(async () => {
    folder = await tempDir('rollout');
    redis = await startRedis();
    service = await startComponent('host', HostModule, { dataDir: folder.path, redisUrl: redis.url, overrides: {} });
    const credential = await api('post', '/v1/ssh-credentials')
      .send({ name: 'password', username: 'root', password: 'sesame' })
      .expect(201);
    const create = async (_: unknown, index: number) =>
      (
        await api('post', '/v1/hosts')
          .send({
            name: `host-${index}`,
            address: '127.0.0.1',
            port: 9,
            credentialId: credential.body.id,
            hostKey: `SHA256:${'A'.repeat(43)}`,
          })
          .expect(201)
      ).body.id as string;
    hostIds = await Promise.all(Array.from({ length: 10 }, create));
    vi.spyOn(service.app.get(ConfigureHost, { strict: false }), 'run').mockImplementation(
      async ({ name }, _configuration, result, signal) => {
        begun.push(name);
        if (running.has(name)) throw new Error(`${name} is configured twice at the same time`);
        running.add(name);
        most = Math.max(most, running.size);
        const aborted = new Promise<never>((_resolve, reject) =>
          signal.addEventListener('abort', () => reject(signal.reason), { once: true }),
        );
        try {
          await Promise.race([gate, aborted]);
          result.steps.push({ name: 'check', status: 'done', detail: name, changes: [], durationMs: 1 });
          if (broken.has(name)) throw new AppError('host_unreachable', { detail: name, changes: [] });
        } finally {
          running.delete(name);
        }
      },
    );
  });
  beforeEach(() => {
    begun = [];
    running = new Set();
    most = 0;
    broken = new Set();
    gate = Promise.resolve();
  });
  afterAll(async () => {
    await service?.app.close();
    await redis?.stop();
    await folder?.remove();
  });

  it('has a job for each host, and not more of them at once than asked for', async () => {
    let open = () => undefined as unknown;
    gate = new Promise((resolve) => {
      open = resolve;
    });
    const job = await start({ hostIds, rollout: { atOnce: 3 } });
    await waitFor(() => running.size === 3, { what: 'three hosts to be configured' });
    expect(states(await read(job)).sort()).toEqual([...Array(3).fill('running'), ...Array(7).fill('waiting')]);
    open();
    const ended = await jobOf(job.id);
    expect(ended).toMatchObject({
      state: 'succeeded',
      progress: { itemsDone: 10, itemsTotal: 10 },
      result: { hosts: 10 },
    });
    expect(ended.children).toHaveLength(10);
    expect(begun.toSorted()).toEqual(Array.from({ length: 10 }, (_, index) => `host-${index}`));
    expect(most).toBe(3);
    const { hosts } = await read(job);
    expect(hosts.map(({ hostId }) => hostId)).toEqual(hostIds);
    for (const { jobId, steps } of hosts) {
      expect(steps).toHaveLength(1);
      expect(await jobOf(jobId as string)).toMatchObject({ type: 'host.configure-host', state: 'succeeded' });
    }
  });

  it('begins no other host when a canary fails, and a retry does only what is left', async () => {
    broken.add('host-1');
    const job = await start({ hostIds, rollout: { atOnce: 8, canary: 2 } });
    const failed = await jobOf(job.id);
    expect(failed).toMatchObject({
      state: 'failed',
      error: { code: 'host_unreachable', host: 'host-1', failed: 1, notBegun: 8 },
    });
    expect(begun.sort()).toEqual(['host-0', 'host-1']);
    expect(states(await read(job))).toEqual(['succeeded', 'failed', ...Array(8).fill('waiting')]);
    broken.clear();
    begun = [];
    await api('post', `/v1/jobs/${job.id}/retry`).expect(202);
    expect(await jobOf(job.id)).toMatchObject({ state: 'succeeded', error: null });
    expect(begun[0]).toBe('host-1');
    expect(begun.sort()).toEqual(Array.from({ length: 9 }, (_, index) => `host-${index + 1}`));
    expect((await read(job)).hosts.every(({ state, error }) => state === 'succeeded' && error === null)).toBe(true);
  });

  it('begins no further host when too many have failed', async () => {
    for (const index of [0, 1, 2, 3]) broken.add(`host-${index}`);
    const job = await start({ hostIds, rollout: { atOnce: 1, maxFailureShare: 0.2 } });
    expect(await jobOf(job.id)).toMatchObject({ state: 'failed', error: { failed: 3, notBegun: 7 } });
    expect(begun).toEqual(['host-0', 'host-1', 'host-2']);
  });

  it('goes on after failures unless told otherwise', async () => {
    broken.add('host-3').add('host-7');
    const job = await start({ hostIds });
    expect(await jobOf(job.id)).toMatchObject({ state: 'failed', error: { host: 'host-3', failed: 2, notBegun: 0 } });
    expect(states(await read(job)).filter((state) => state === 'succeeded')).toHaveLength(8);
  });

  it('takes its hosts along when it is cancelled', async () => {
    gate = new Promise(() => undefined);
    const job = await start({ hostIds, rollout: { atOnce: 2 } });
    await waitFor(() => running.size === 2, { what: 'two hosts to be configured' });
    await api('post', `/v1/jobs/${job.id}/cancel`).expect(202);
    expect((await jobOf(job.id)).state).toBe('cancelled');
    expect(running.size).toBe(0);
    expect(states(await read(job))).toEqual(['cancelled', 'cancelled', ...Array(8).fill('waiting')]);
  });

  it('takes the hosts whose labels match', async () => {
    const chosen = hostIds.slice(2, 5);
    for (const id of chosen)
      await api('patch', `/v1/hosts/${id}`)
        .send({ labels: { role: 'worker' } })
        .expect(200);
    const job = await start({ labelSelector: 'role in (worker)' });
    expect((await jobOf(job.id)).state).toBe('succeeded');
    expect((await read(job)).hosts.map(({ hostId }) => hostId).sort()).toEqual(chosen);
    const refused = async (body: object) =>
      (await api('post', '/v1/host-configurations').send(body)).body.code as string;
    expect(await refused({ labelSelector: 'role=none' })).toBe('resource_not_found');
    expect(await refused({ labelSelector: 'role in' })).toBe('label_selector_invalid');
    expect(await refused({ labelSelector: 'role=worker', hostIds })).toBe('request_invalid');
    expect(await refused({})).toBe('request_invalid');
  });

  it('waits for another one that has the host', async () => {
    let open = () => undefined as unknown;
    gate = new Promise((resolve) => {
      open = resolve;
    });
    const first = await start({ hostIds: hostIds.slice(0, 1) });
    await waitFor(() => running.size === 1, { what: 'the first to have the host' });
    const second = await start({ hostIds: hostIds.slice(0, 1) });
    await waitFor(async () => (await read(second)).hosts[0]?.state === 'running', { what: 'the second to wait' });
    expect(begun).toEqual(['host-0']);
    open();
    expect((await jobOf(first.id)).state).toBe('succeeded');
    expect((await jobOf(second.id)).state).toBe('succeeded');
    expect(begun).toEqual(['host-0', 'host-0']);
  });
});
