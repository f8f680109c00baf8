import { type TempDir, tempDir } from '@airdock/testing/servers';
import { Column, type DataSource, Entity, PrimaryColumn } from 'typeorm';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { Outbox } from '../events/outbox.js';
import { findPage, getRow } from '../http/page.js';
import { newId } from '../ids.js';
import { tablesOf } from '../schema/testing/tables.js';
import { platformEntities } from './job.entity.js';
import { findPageWithState, getWithState, idOfResource, withState } from './job-resource.js';
import { JobsService } from './jobs.service.js';

@Entity('clay_thing')
class ThingEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') color!: string;
  @Column('varchar') jobId!: string;
}

const fakeQueue = { on: () => undefined, add: async () => undefined } as never;

describe('a resource that a job works on', () => {
  let folder: TempDir;
  let source: DataSource;
  let jobs: JobsService;
  const things = () => source.getRepository(ThingEntity);
  const add = async (color: string, hasJob = true) => {
    const [id, jobId] = [newId(), newId()];
    const insert = things().createQueryBuilder().insert().values({ id, color, jobId });
    if (hasJob) await jobs.submit({ id: jobId, type: 'image.thing', resource: `/v1/things/${id}` }, [insert]);
    else await insert.execute();
    return { id, color, jobId };
  };

  beforeAll(async () => {
    folder = await tempDir('job-resource');
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides: { dataDir: folder.path } });
    source = await connectDatabase(
      dataSourceOptions(
        config,
        'image',
        [...platformEntities, ThingEntity],
        [tablesOf([...platformEntities, ThingEntity])],
      ),
    );
    const database = new ServiceDatabase(source);
    jobs = new JobsService('image', database, new Map([['image.thing', fakeQueue]]), new Outbox(database));
  });
  beforeEach(() => things().clear());
  afterAll(async () => {
    await source?.destroy();
    await folder?.remove();
  });

  it('has the state of its job, and has failed when there is no job any more', async () => {
    const [waiting, cancelled, orphan] = [await add('red'), await add('red'), await add('red', false)];
    await jobs.cancel(cancelled.jobId);
    expect(await getWithState(things(), jobs, waiting.id, withState)).toEqual({ ...waiting, state: 'queued' });
    const page = await findPageWithState(things(), jobs, { limit: 10 }, ({ id }, state) => [id, state]);
    expect(page.items).toEqual([
      [orphan.id, 'failed'],
      [cancelled.id, 'cancelled'],
      [waiting.id, 'queued'],
    ]);
  });

  it('comes page by page, newest first, of those that are asked for', async () => {
    const red = [await add('red'), await add('red'), await add('red')].map(({ id }) => id);
    await add('blue');
    const pageOf = (cursor?: string) =>
      findPageWithState(things(), jobs, { limit: 2, cursor }, async ({ id }) => id, { color: 'red' });
    const first = await pageOf();
    expect(first).toEqual({ items: [red[2], red[1]], nextCursor: red[1] });
    expect(await pageOf(first.nextCursor)).toEqual({ items: [red[0]], nextCursor: undefined });
    // A last page that is full is the last one all the same.
    expect((await findPage(things(), { limit: 3 }, { color: 'red' })).nextCursor).toBeUndefined();
    const either = await findPage(things(), { limit: 9, cursor: red[2] }, [{ color: 'red' }, { color: 'blue' }]);
    expect(either.items.map(({ id }) => id)).toEqual([red[1], red[0]]);
  });

  it.each([newId(), 'x', `${newId()}0`, "' OR 1=1 --"])('is not found under %s', async (id) => {
    await add('red');
    const detail = expect.stringMatching(/^no clay thing with id /);
    await expect(getRow(things(), id)).rejects.toMatchObject({ code: 'resource_not_found', details: { detail } });
    await expect(getWithState(things(), jobs, id, withState)).rejects.toMatchObject({ code: 'resource_not_found' });
  });

  it('is not paged by a cursor that is none of ours', async () => {
    await expect(findPage(things(), { limit: 2, cursor: '%' })).rejects.toMatchObject({ code: 'cursor_invalid' });
  });

  it('is named by the last part of its path', () => {
    expect(idOfResource({ resource: '/v1/clusters/a/upgrades/b' })).toBe('b');
  });
});
