/**
 * The five services apart: ten processes, one Redis, one PostgreSQL. What holds in the embedded DU must hold here, also
 * when workers are killed.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  createBackup,
  createHost,
  createHostConfiguration,
  createPush,
  createRestore,
  createSshCredential,
  createWebhookEndpoint,
  deleteWebhookEndpoint,
  getJob,
  getPush,
  getRegistry,
  listImages,
  listTunnels,
  listWebhookDeliveries,
} from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import { type Lab, startLab } from '@airdock/testing/lab/lab';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type LargeBundle, register, writeLargeBundle } from '../support/bundles.js';
import { endOf, midway, resourceId, success } from '../support/jobs.js';
import { digestAt, missingOf, nameOf, namesAt } from '../support/registry.js';
import { Services } from '../support/services.js';
import { startWebhookReceiver } from '../support/webhook-receiver.js';

const started = await startLab();
if (!started.lab) process.stderr.write(`tunnels of services apart: skipped: ${started.reason}\n`);
let folder: TempDir;
let services: Services;
beforeAll(async () => {
  folder = await tempDir('services');
  services = await Services.start(folder.path, undefined, { webhooks: { allowedHosts: ['127.0.0.0/8'] } });
});
afterEach(({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${services.output}\n`);
});
afterAll(async () => {
  await services?.stop();
  await started.lab?.stop();
  await folder?.remove();
});

const image = () => services.client('image');
const backup = () => services.client('backup');

async function startPush(name: string, options: Partial<LargeBundle> = {}) {
  const bundleId = await register(
    image(),
    await writeLargeBundle({ dir: services.bundleDir, name, format: 'docker', ...options }),
  );
  const { data: job } = await createPush({ client: image(), body: { bundleId }, throwOnError: true });
  return { bundleId, job };
}

/** The end of a job that was disturbed at `before`. */
async function endAfter(client: ReturnType<typeof image>, before: Job): Promise<Job> {
  const ended = await endOf(client, before.id, ({ progress }) =>
    expect(progress.percent).toBeGreaterThanOrEqual(before.progress.percent),
  );
  expect(ended).toMatchObject({ state: 'succeeded', error: null });
  return ended;
}

describe('the services as ten processes', () => {
  it('bring the registry up, which every service then finds', async () => {
    const client = services.client('registry');
    const registry = await waitFor(async () => {
      const { data } = await getRegistry({ client, throwOnError: true });
      return data.health?.ok && data.health.readOnlyOk ? data : undefined;
    });
    expect(registry).toMatchObject({ mode: 'local', host: `localhost:${services.registryPort}`, error: null });
    expect(new Set([...services.processes.values()].map(({ pid }) => pid)).size).toBe(10);
  });

  it('push an image bundle, back the registry up, and restore it', async () => {
    const { bundleId, job } = await startPush('whole', { format: 'oci' });
    await success(image(), job);
    expect(await missingOf(image(), services.registryPort, bundleId)).toEqual([]);
    const list = async (query: { limit?: number; cursor?: string | undefined }) =>
      (
        await listImages({
          client: image(),
          query: { sort: 'smallest', platform: 'linux/amd64/v1', ...query },
          throwOnError: true,
        })
      ).data;
    const images = await list({});
    const { nextCursor } = await list({ limit: 1 });
    expect((await list({ cursor: nextCursor })).items).toHaveLength(images.items.length - 1);
    const references = images.items.flatMap(({ localReferences, digest }) =>
      localReferences.map((reference) => [nameOf(reference), digest] as const),
    );
    expect(references).toHaveLength(16);

    const saved = await success(backup(), createBackup({ client: backup(), body: {}, throwOnError: true }));
    await rm(join(folder.path, 'data', 'registry', 'storage', 'docker'), { recursive: true });
    for (const [name] of references) expect(await digestAt(services.registryPort, name)).toBeUndefined();
    const restored = await success(
      backup(),
      createRestore({ client: backup(), body: { backupId: resourceId(saved) }, throwOnError: true }),
    );
    expect(restored.result).toMatchObject({ images: references.length });
    for (const [name, digest] of references) expect(await digestAt(services.registryPort, name)).toBe(digest);
    expect(await missingOf(image(), services.registryPort, bundleId)).toEqual([]);
  });
});

describe('a worker that is killed', () => {
  it('in the middle of a push has it finished by its next life, without losing what was done', async () => {
    const { bundleId, job } = await startPush('killed');
    const before = await midway(image(), job.id);
    await services.process('image', 'worker').end('SIGKILL');
    const { data: orphan } = await getJob({ client: image(), path: { id: job.id }, throwOnError: true });
    expect(orphan).toMatchObject({ state: 'running', attempt: 1, finishedAt: null });
    await services.process('image', 'worker').start();
    const ended = await endAfter(image(), before);
    expect(ended.attempt).toBeGreaterThan(1);
    expect(await missingOf(image(), services.registryPort, bundleId)).toEqual([]);
    const { data: push } = await getPush({ client: image(), path: { id: resourceId(job) }, throwOnError: true });
    expect(push.results?.map(({ error }) => error)).toEqual(Array(8).fill(null));
  });

  it('in the middle of a backup has it finished by its next life, and the backup restores', async () => {
    const names = (await namesAt(services.registryPort)).length;
    const { data: job } = await createBackup({ client: backup(), body: { description: 'killed' }, throwOnError: true });
    const before = await midway(backup(), job.id);
    await services.process('backup', 'worker').end('SIGKILL');
    const { data: orphan } = await getJob({ client: backup(), path: { id: job.id }, throwOnError: true });
    expect(orphan).toMatchObject({ state: 'running', attempt: 1, finishedAt: null });
    await services.process('backup', 'worker').start();
    const ended = await endAfter(backup(), before);
    expect(ended.attempt).toBeGreaterThan(1);
    expect(ended.result).toMatchObject({ images: names });
    const restored = await success(
      backup(),
      createRestore({ client: backup(), body: { backupId: resourceId(job) }, throwOnError: true }),
    );
    expect(restored.result).toMatchObject({ images: names });
  });
});

describe('a worker that is killed while it tells of a job', () => {
  it('has the event delivered by its next life, with the same id, and the start told once', async () => {
    await using receiver = await startWebhookReceiver();
    const { data: endpoint } = await createWebhookEndpoint({
      client: backup(),
      body: { url: receiver.url, events: ['backup.create.*'] },
      throwOnError: true,
    });
    receiver.setSecret(endpoint.secret);
    receiver.hold(true);
    const { data: job } = await createBackup({ client: backup(), body: { description: 'told' }, throwOnError: true });
    await waitFor(() => receiver.received.length > 0, { what: 'the start to be told', timeoutMs: 20_000 });
    await services.process('backup', 'worker').end('SIGKILL');
    receiver.hold(false);
    await services.process('backup', 'worker').start();
    expect(await endOf(backup(), job.id)).toMatchObject({ state: 'succeeded' });
    const told = () => new Set(receiver.received.map(({ id, verified, event }) => `${id} ${verified} ${event.type}`));
    await expect
      .poll(() => [...told()].map((line) => line.slice(37)).sort(), { timeout: 120_000 })
      .toEqual(['true backup.create.started', 'true backup.create.succeeded']);
    const delivered = async () => {
      const { data } = await listWebhookDeliveries({
        client: backup(),
        query: { endpointId: endpoint.id, state: 'delivered' },
        throwOnError: true,
      });
      return data.items.length === 2 ? data.items : undefined;
    };
    const items = await waitFor(delivered, { what: 'both to be delivered', timeoutMs: 60_000 });
    expect(items.find(({ eventType }) => eventType === 'backup.create.started')?.attempts).toBeGreaterThan(1);
    await deleteWebhookEndpoint({ client: backup(), path: { id: endpoint.id }, throwOnError: true });
  });
});

describe('two workers of one service', () => {
  it('share the jobs, and none is run twice', async () => {
    await using _second = {
      [Symbol.asyncDispose]: (
        (worker) => () =>
          worker.end()
      )(await services.addWorker('image')),
    };
    const pushes = await Promise.all(
      ['a', 'b', 'c', 'd', 'e', 'f'].map((name) => startPush(`shared-${name}`, { images: 2, layerBytes: 8_000_000 })),
    );
    const ended = await Promise.all(pushes.map(({ job }) => success(image(), job)));
    expect(ended.map(({ attempt }) => attempt)).toEqual(Array(6).fill(1));
    for (const { bundleId } of pushes) expect(await missingOf(image(), services.registryPort, bundleId)).toEqual([]);
  });

  it('do not both go on when one was frozen, its job taken over, and it wakes up again', async () => {
    const { bundleId, job } = await startPush('frozen');
    const before = await midway(image(), job.id);
    const frozen = services.process('image', 'worker');
    process.kill(frozen.pid, 'SIGSTOP');
    try {
      const second = await services.addWorker('image');
      await waitFor(
        async () => (await getJob({ client: image(), path: { id: job.id }, throwOnError: true })).data.attempt === 2,
        {
          what: 'the other worker to take the job',
          timeoutMs: 30_000,
        },
      );
      process.kill(frozen.pid, 'SIGCONT');
      const ended = await endAfter(image(), before);
      expect(ended.attempt).toBe(2);
      await second.end();
    } finally {
      process.kill(frozen.pid, 'SIGCONT');
    }
    expect(await missingOf(image(), services.registryPort, bundleId)).toEqual([]);
    const { data: after } = await getJob({ client: image(), path: { id: job.id }, throwOnError: true });
    expect(after).toMatchObject({ state: 'succeeded', attempt: 2 });
  });
});

describe.skipIf(!started.lab)('a worker of host-svc that is killed', () => {
  const lab = started.lab as Lab;

  it('has its tunnels taken over by another one', async () => {
    await using host = await lab.startHost({ withContainerd: true });
    const client = services.client('host');
    const { address, port, hostKey, privateKey, user: username } = host;
    const { data: credential } = await createSshCredential({
      client,
      body: { name: 'root', username, privateKey },
      throwOnError: true,
    });
    const body = { name: 'host', address, port, hostKey, credentialId: credential.id };
    const { id: hostId } = (await createHost({ client, body, throwOnError: true })).data;
    await success(client, createHostConfiguration({ client, body: { hostIds: [hostId] }, throwOnError: true }));
    const status = async () =>
      (await host.exec(`curl -s -o /dev/null -m 5 -w '%{http_code}' http://127.0.0.1:${services.registryPort}/v2/`))
        .stdout;
    const tunnel = async () => (await listTunnels({ client, query: { hostId }, throwOnError: true })).data.items[0];
    expect(await tunnel()).toMatchObject({ state: 'up' });
    expect(await status()).toBe('200');

    const second = await services.addWorker('host');
    const [killedAt, since] = [performance.now(), (await tunnel())?.since ?? ''];
    await services.process('host', 'worker').end('SIGKILL');
    await waitFor(
      async () => {
        const now = await tunnel();
        return now?.state === 'up' && now.since > since && (await status()) === '200';
      },
      { what: 'the other worker to bring the tunnel up', timeoutMs: 60_000, intervalMs: 100 },
    );
    process.stderr.write(
      `the tunnel of a killed worker was back after ${((performance.now() - killedAt) / 1000).toFixed(1)} s\n`,
    );
    await services.process('host', 'worker').start();
    await second.end();
  });
});
