/**
 * What a push runs on is taken away in the middle of it: Redis with everything in it, the DU, the registry, or the wish
 * to go on.
 */
import { cancelJob, createPush, getJob, retryJob } from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { startRedis, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { register, writeLargeBundle } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { endOf, midway, notBackwards, success } from '../support/jobs.js';
import { childOf, registryPid, registryPids } from '../support/processes.js';
import { missingOf, namesAt } from '../support/registry.js';

/** A new DU for each test, so that each push starts from nothing; the bundle is written once. */
let bundle: string;
let bundles: TempDir;
let folder: TempDir;
let du: Du;
let client: Client;
beforeAll(async () => {
  bundles = await tempDir('bundles');
  bundle = await writeLargeBundle({ dir: bundles.path, name: 'large', format: 'docker' });
});
afterAll(() => bundles?.remove());
beforeEach(async () => {
  folder = await tempDir('faults');
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  await du?.stop();
  await folder?.remove();
});

async function startDu(environment: NodeJS.ProcessEnv = {}): Promise<void> {
  du = await Du.start({ folder: folder.path, bundleDir: bundles.path, environment });
  client = await du.client();
}

/** A push that is midway, and what it pushes. */
async function startPush(file = bundle) {
  const bundleId = await register(client, file);
  const { data } = await createPush({ client, body: { bundleId }, throwOnError: true });
  return { bundleId, job: await midway(client, data.id) };
}

/** Success without anyone's help, with progress that goes on from where it was. */
async function succeeds({ bundleId, job }: { bundleId: string; job: Job }): Promise<Job> {
  const ended = await endOf(client, job.id, (now) => void notBackwards(job.progress, now));
  expect(ended).toMatchObject({
    state: 'succeeded',
    error: null,
    progress: { percent: 100, itemsDone: 8, itemsTotal: 8 },
  });
  expect(await missingOf(client, du.registryPort, bundleId)).toEqual([]);
  return ended;
}

const stillRuns = async (id: string) =>
  expect((await getJob({ client, path: { id }, throwOnError: true })).data).toMatchObject({ state: 'running' });

describe('a push', () => {
  it('succeeds when the embedded Redis is killed, and what is started afterwards succeeds as well', async () => {
    await startDu();
    const push = await startPush();
    const redis = await childOf(du.pid, 'redis-server');
    process.kill(redis, 'SIGKILL');
    await stillRuns(push.job.id);
    await succeeds(push);
    expect(await childOf(du.pid, 'redis-server')).not.toBe(redis);
    await success(client, createPush({ client, body: { bundleId: push.bundleId }, throwOnError: true }));
  });

  it('that is still queued is not lost with Redis', async () => {
    await startDu();
    const bundleId = await register(client, bundle);
    process.kill(await childOf(du.pid, 'redis-server'), 'SIGKILL');
    const { data: job } = await createPush({ client, body: { bundleId }, throwOnError: true });
    await succeeds({ bundleId, job });
  });

  it('succeeds when a Redis of the site is stopped and comes back empty', async () => {
    await using redis = await startRedis();
    await startDu({ REDIS_URL: redis.url });
    const push = await startPush();
    await redis.kill();
    await stillRuns(push.job.id);
    await redis.restart();
    await succeeds(push);
    await du.end();
  });

  it('is handed back by a DU that ends while the Redis of the site is away, and continues at the next start', async () => {
    await using redis = await startRedis();
    await startDu({ REDIS_URL: redis.url });
    const push = await startPush();
    await redis.kill();
    const start = performance.now();
    await du.end();
    expect(performance.now() - start).toBeLessThan(15_000);
    await redis.restart();
    await du.startProcess();
    await succeeds(push);
    await du.end();
  });

  it('succeeds when the DU is killed with Redis, and finds the registry that went on', async () => {
    await startDu();
    const push = await startPush();
    const pids = await registryPids(du);
    await du.end('SIGKILL');
    await du.startProcess();
    const ended = await succeeds(push);
    expect(ended.attempt).toBeGreaterThan(1);
    expect(await registryPids(du)).toEqual(pids);
  });

  it('succeeds when the registry is killed, which its supervisor brings back', async () => {
    await startDu();
    const push = await startPush();
    const readWrite = await registryPid(du, 'read-write');
    process.kill(readWrite, 'SIGKILL');
    await succeeds(push);
    expect(await registryPid(du, 'read-write')).not.toBe(readWrite);
  });

  it('that is cancelled ends within two seconds, shows no incomplete image, and completes when it is retried', async () => {
    await startDu();
    // A worker hears of it within a second, when a fast machine has pushed a smaller one.
    const larger = await writeLargeBundle({
      dir: bundles.path,
      name: 'larger',
      format: 'docker',
      layerBytes: 96_000_000,
    });
    const { bundleId, job } = await startPush(larger);
    const start = performance.now();
    await cancelJob({ client, path: { id: job.id }, throwOnError: true });
    const ended = await waitFor(
      async () => {
        const { data } = await getJob({ client, path: { id: job.id }, throwOnError: true });
        return data.finishedAt ? data : undefined;
      },
      { what: 'the job to be cancelled' },
    );
    expect(performance.now() - start).toBeLessThan(2_000);
    expect(ended).toMatchObject({
      state: 'cancelled',
      error: { code: 'job_cancelled', nextStep: expect.stringContaining('Retry') as string },
    });

    const tagged = (await namesAt(du.registryPort)).filter((name) => name.includes(':'));
    expect(tagged.length).toBeLessThan(16);
    const problems = await missingOf(client, du.registryPort, bundleId);
    expect(problems.filter((problem) => tagged.some((name) => problem.includes(name)))).toEqual([]);

    await retryJob({ client, path: { id: job.id }, throwOnError: true });
    await succeeds({ bundleId, job: ended });
  });
});
