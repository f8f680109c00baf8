import { loadConfig } from '@airdock/platform/config';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '@airdock/platform/database';
import { Outbox } from '@airdock/platform/events/outbox';
import { newId } from '@airdock/platform/ids';
import { platformEntities } from '@airdock/platform/jobs/job.entity';
import { JobsService } from '@airdock/platform/jobs/jobs.service';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { registryMigrations } from '../registry.migrations.js';
import { CollectionClaimService } from './collection-claim.service.js';
import { RegistryEntity } from './registry.entity.js';
import { RegistryRowService } from './registry-row.service.js';

const type = 'registry.collectGarbage';
const queue = { on: () => undefined, add: async () => undefined } as never;

let folder: TempDir;
/** As API and worker have it, each with a connection of its own. */
let processes: {
  database: ServiceDatabase;
  rows: RegistryRowService;
  jobs: JobsService;
  claims: CollectionClaimService;
}[];
const [api, worker] = [() => processAt(0), () => processAt(1)];
const processAt = (index: number) => processes[index] as (typeof processes)[number];

beforeEach(async () => {
  folder = await tempDir('collection-claim');
  const config = loadConfig({ environment: {}, file: '/dev/null', overrides: { dataDir: folder.path } });
  processes = [];
  for (let i = 0; i < 2; i++) {
    const options = dataSourceOptions(config, 'registry', [...platformEntities, RegistryEntity], registryMigrations);
    const database = new ServiceDatabase(await connectDatabase(options));
    const registries = database.dataSource.getRepository(RegistryEntity);
    const rows = new RegistryRowService(config, registries);
    const jobs = new JobsService('registry', database, new Map([[type, queue]]), new Outbox(database));
    processes.push({ database, rows, jobs, claims: new CollectionClaimService(registries, rows, jobs) });
  }
});
afterEach(async () => {
  for (const { database } of processes) await database.dataSource.destroy();
  await folder.remove();
});

/** Begins a garbage collection as the API does: the claim and the job, both or none. */
async function begin({ jobs, claims } = api()): Promise<string> {
  const id = newId();
  await jobs.submit({ id, type, resource: `/v1/registry/garbage-collections/${id}` }, [await claims.claim(id)]);
  return id;
}
const fail = async (id: string) => {
  await worker().jobs.claims.claim(id, 'worker');
  await worker().jobs.claims.end(id, { state: 'failed', error: null, result: null }, { leaseOwner: 'worker' });
};
const row = () => api().rows.load();

it('there is no garbage collection at first, and then the one that was begun, until it has ended', async () => {
  expect(await api().claims.open()).toBeUndefined();
  const id = await begin();
  expect(await worker().claims.open()).toBe(id);
  await fail(id);
  expect(await api().claims.open()).toBeUndefined();
  const next = await begin();
  expect(await worker().claims.open()).toBe(next);
});

it('keeps a second garbage collection away, and names the first one', async () => {
  const id = await begin();
  await expect(begin(worker())).rejects.toMatchObject({
    code: 'collection_running',
    details: { jobId: id, collectionId: id },
  });
  expect(await api().claims.open()).toBe(id);
});

it('of two that are begun at once it lets one in', async () => {
  const jobs = [newId(), newId()];
  // Both have looked before either writes.
  const claims = await Promise.all(jobs.map((id, index) => processAt(index).claims.claim(id)));
  const outcomes = await Promise.allSettled(
    jobs.map((id, index) =>
      processAt(index).jobs.submit({ id, type, resource: `/v1/registry/garbage-collections/${id}` }, [
        claims[index] as never,
      ]),
    ),
  );
  expect(outcomes.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected']);
  expect(await api().claims.open()).toBe(jobs[outcomes.findIndex(({ status }) => status === 'fulfilled')]);
});

it('lets no other in when the last one is retried between the look and the write', async () => {
  const id = await begin();
  await fail(id);
  const claim = await api().claims.claim(newId());
  await worker().jobs.retry(id);
  expect((await claim.execute()).affected).toBe(0);
  expect((await row()).collectionJobId).toBe(id);
});

it('gives the registry back to a retried garbage collection, unless another one runs', async () => {
  const first = await begin();
  await worker().claims.retake(first);
  await fail(first);
  const second = await begin();
  await api().jobs.retry(first);
  await expect(worker().claims.retake(first)).rejects.toMatchObject({ code: 'collection_running' });
  expect((await row()).collectionJobId).toBe(second);
  await fail(second);
  await worker().claims.retake(first);
  expect((await row()).collectionJobId).toBe(first);
});

it('gives nothing back when the one that ended last is retried between the look and the write', async () => {
  const first = await begin();
  await fail(first);
  const last = await begin();
  await fail(last);
  await api().jobs.retry(first);
  const { jobs, claims } = worker();
  const find = jobs.find.bind(jobs);
  jobs.find = async (id) => {
    const found = await find(id);
    await api().jobs.retry(last);
    return found;
  };
  await expect(claims.retake(first)).rejects.toMatchObject({ code: 'collection_running' });
  expect((await row()).collectionJobId).toBe(last);
});

it('only the garbage collection that has the registry keeps others away', async () => {
  const id = await begin();
  await worker().claims.setCollecting(newId(), true);
  expect((await row()).collectingJobId).toBeNull();
  await worker().claims.setCollecting(id, true);
  expect((await row()).collectingJobId).toBe(id);
  await worker().claims.setCollecting(newId(), false);
  expect((await row()).collectingJobId).toBe(id);
  await worker().claims.setCollecting(id, false);
  expect((await row()).collectingJobId).toBeNull();
});
