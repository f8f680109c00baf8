import { join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { Column, type DataSource, Entity, PrimaryColumn } from 'typeorm';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, now, ServiceDatabase } from '../database.js';
import { IdempotencyKeyEntity } from '../http/idempotency.entity.js';
import { newId } from '../ids.js';
import { platformEntities } from '../jobs/job.entity.js';
import { tablesOf } from '../schema/testing/tables.js';
import { SecretBox } from '../secrets.js';
import { SealedColumns } from './sealed-columns.js';

@Entity('safe')
class SafeEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('text') sealed!: string;
  @Column('text', { nullable: true }) sealedNext!: string | null;
  @Column('text') open!: string;
}

describe('sealed texts, when the key is exchanged', () => {
  let folder: TempDir;
  let source: DataSource;
  const safes = () => source.getRepository(SafeEntity);

  beforeAll(async () => {
    folder = await tempDir('sealed-columns');
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides: { dataDir: folder.path } });
    source = await connectDatabase(
      dataSourceOptions(
        config,
        'image',
        [...platformEntities, SafeEntity],
        [tablesOf([...platformEntities, SafeEntity])],
      ),
    );
  });
  afterAll(async () => {
    await source?.destroy();
    await folder?.remove();
  });

  it('are all sealed anew, in more rows than are read at once, but for those that no key opens', async () => {
    const secrets = new SecretBox(join(folder.path, 'secrets.key'));
    const rows = Array.from({ length: 205 }, (_, index) => {
      const id = newId();
      const sealedNext = index % 5 === 0 ? secrets.seal('next', id) : null;
      return { id, sealed: secrets.seal(`text ${index}`, id), sealedNext, open: 'as it is' };
    });
    const foreign = { ...rows[0], id: newId(), sealedNext: null } as SafeEntity;
    await safes().insert([...rows, foreign]);
    const columns = new SealedColumns(new ServiceDatabase(source), secrets);
    expect(await columns.reseal()).toEqual({ resealed: 0, unreadable: 0 });
    const answers = source.getRepository(IdempotencyKeyEntity);
    const answer = { createdAt: now(), status: 200, headers: null, body: null };
    await answers.insert({ ...answer, id: 'before', requestDigest: secrets.digest('a request') });
    secrets.beginRotation();
    await answers.insert({ ...answer, id: 'after', requestDigest: secrets.digest('a request') });
    expect(await columns.reseal()).toEqual({ resealed: 205 + 41 + 1, unreadable: 1 });
    // The digest of a request cannot be made anew, and without it its answer is of no use.
    expect((await answers.find()).map(({ id }) => id)).toEqual(['after']);
    expect(await columns.reseal()).toEqual({ resealed: 0, unreadable: 1 });
    secrets.endRotation();
    const found = await safes().find({ order: { id: 'ASC' } });
    expect(found.slice(0, 205).map(({ id, sealed }) => secrets.open(sealed, id))).toEqual(
      rows.map((_, index) => `text ${index}`),
    );
    expect(found.flatMap(({ id, sealedNext }) => (sealedNext ? secrets.open(sealedNext, id) : []))).toHaveLength(41);
    expect(found.at(-1)).toEqual(foreign);
    expect(new Set(found.map(({ open }) => open))).toEqual(new Set(['as it is']));
  });
});
