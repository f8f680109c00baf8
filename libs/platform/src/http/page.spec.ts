import { type TempDir, tempDir } from '@airdock/testing/servers';
import type { DataSource, Repository } from 'typeorm';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions } from '../database.js';
import { OutboxEventEntity } from '../events/outbox.entity.js';
import { newId } from '../ids.js';
import { tablesOf } from '../schema/testing/tables.js';
import { findPage, getRow, PageQuery } from './page.js';

describe('a list', () => {
  let folder: TempDir;
  let source: DataSource;
  let rows: Repository<OutboxEventEntity>;
  let newestFirst: string[];

  beforeAll(async () => {
    folder = await tempDir('page');
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides: { dataDir: folder.path } });
    const options = dataSourceOptions(config, 'image', [OutboxEventEntity], [tablesOf([OutboxEventEntity])]);
    source = await connectDatabase(options);
    rows = source.getRepository(OutboxEventEntity);
    const ids = Array.from({ length: 5 }, () => newId());
    const createdAt = new Date().toISOString();
    await rows.insert(ids.map((id, index) => ({ id, type: `t${index % 2}`, payload: '{}', createdAt })));
    newestFirst = ids.toReversed();
  });
  afterAll(async () => {
    await source?.destroy();
    await folder?.remove();
  });

  const pages = async (limit: number, where?: Parameters<typeof findPage<OutboxEventEntity>>[2]) => {
    const seen: string[][] = [];
    for (let cursor: string | undefined, isFirst = true; isFirst || cursor; isFirst = false) {
      const page = await findPage(rows, { limit, cursor }, where);
      seen.push(page.items.map(({ id }) => id));
      cursor = page.nextCursor;
    }
    return seen;
  };

  it('has each row once, newest first, and no empty page at its end', async () => {
    const [a, b, c, d, e] = newestFirst;
    expect(await pages(2)).toEqual([[a, b], [c, d], [e]]);
    expect(await pages(5)).toEqual([newestFirst]);
  });

  it('keeps to its conditions on every page, whichever of them holds', async () => {
    const [a, b, c, d, e] = newestFirst;
    expect(await pages(2, { type: 't0' })).toEqual([[a, c], [e]]);
    expect(await pages(2, [{ type: 't0' }, { type: 't1' }])).toEqual([[a, b], [c, d], [e]]);
  });

  it('is not shifted by what is added meanwhile', async () => {
    const [first] = await pages(2);
    const added = newId();
    await rows.insert({ id: added, type: 'new', payload: '{}', createdAt: new Date().toISOString() });
    const next = await findPage(rows, { limit: 2, cursor: first?.[1] });
    expect(next.items.map(({ id }) => id)).toEqual(newestFirst.slice(2, 4));
    await rows.delete({ id: added });
  });

  it.each(["' OR 1=1", 'x'.repeat(36), ''])('refuses the cursor and finds no row %j', async (text) => {
    await expect(getRow(rows, text)).rejects.toMatchObject({ code: 'resource_not_found' });
    if (text)
      await expect(findPage(rows, { limit: 2, cursor: text })).rejects.toMatchObject({ code: 'cursor_invalid' });
  });

  it('names the table, and no more of a hostile id than is readable', async () => {
    const error = await getRow(rows, `no-${'x'.repeat(500)}`).catch((thrown: unknown) => thrown);
    expect((error as { details: { detail: string } }).details.detail).toMatch(/^no outbox event with id no-x{57}$/);
  });

  it.each([{ limit: 0 }, { limit: 501 }, { limit: 1.5 }, { page: 2 }])('takes no query %j', (query) => {
    expect(PageQuery.safeParse(query).success).toBe(false);
  });
});
