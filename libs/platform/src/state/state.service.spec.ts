import { join } from 'node:path';
import { startPostgres, type TempDir, tempDir } from '@airdock/testing/servers';
import { Column, type DataSource, Entity, PrimaryColumn } from 'typeorm';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { loadConfig } from '../config.js';
import { connectDatabase, dataSourceOptions, ServiceDatabase } from '../database.js';
import { tablesOf } from '../schema/testing/tables.js';
import { SecretBox } from '../secrets.js';
import { PutStateRows } from './state.schema.js';
import { StateService } from './state.service.js';
import { StatesController } from './states.controller.js';

@Entity('credential')
class CredentialEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar') sealedKey!: string;
}

@Entity('machine')
class MachineEntity {
  @PrimaryColumn('varchar') id!: string;
  @Column('varchar', { unique: true }) name!: string;
  @Column('varchar') address!: string;
  @Column('varchar', { nullable: true }) credentialId!: string | null;
  @Column('varchar', { nullable: true }) state!: string | null;
}

const entities = [CredentialEntity, MachineEntity];
const text = z.string();
const machineTable = {
  entity: MachineEntity,
  row: z.object({
    id: text,
    name: text,
    address: text,
    credentialId: text.nullish(),
    state: text.nullish(),
  }),
  references: { credentialId: 'credential' },
  reset: { state: null },
  destination: { name: 'name', columns: ['address'], needsConfirmation: ({ before }: { before: unknown }) => !!before },
};
const databases = [
  ['SQLite', async () => ({ url: undefined, stop: async () => {} })],
  ['PostgreSQL', startPostgres],
] as const;

describe.each(databases)('the state of a service on %s', (_name, start) => {
  let server: Awaited<ReturnType<typeof start>>;
  let folder: TempDir;
  let source: DataSource;
  let secrets: SecretBox;
  let state: StateService;
  const machines = () => source.getRepository(MachineEntity);
  const row = (id: string, more: object = {}) => ({ id, name: `name-${id}`, address: '10.0.0.1', ...more });
  const put = (rows: object[], more: object = {}, table = 'machine') =>
    state.write(table, PutStateRows.parse({ keyFingerprint: secrets.fingerprint, rows, ...more }));

  beforeAll(async () => {
    server = await start();
    folder = await tempDir('state');
    const overrides = { dataDir: folder.path, databaseUrl: server.url };
    const config = loadConfig({ environment: {}, file: '/dev/null', overrides });
    source = await connectDatabase(dataSourceOptions(config, 'image', entities, [tablesOf(entities)]));
    secrets = new SecretBox(join(folder.path, 'secrets.key'));
    const tables = [{ entity: CredentialEntity, row: z.object({ id: text, sealedKey: text }) }, machineTable];
    state = new StateService('image', tables, new ServiceDatabase(source), secrets, config);
  });
  beforeEach(async () => {
    for (const entity of entities) await source.getRepository(entity).deleteAll();
  });
  afterAll(async () => {
    await source?.destroy();
    await folder?.remove();
    await server?.stop();
  });

  it('comes back as it was given, without what means nothing on another machine', async () => {
    await put([{ id: 'c', sealedKey: secrets.seal('key', 'c') }], {}, 'credential');
    await machines().insert(row('a', { credentialId: 'c', state: 'connected' }));
    const { tables } = await new StatesController([state]).get('image');
    await machines().deleteAll();
    expect(await put(tables[1]?.rows ?? [])).toMatchObject({ added: 1 });
    expect(await machines().find()).toEqual([row('a', { credentialId: 'c', state: null })]);
    expect(secrets.open(String(tables[0]?.rows[0]?.sealedKey), 'c')).toBe('key');
  });

  it('is written all or not at all: one wrong row keeps the others out', async () => {
    await expect(put([row('a'), row('b', { address: 7 })])).rejects.toMatchObject({
      code: 'state_rows_invalid',
      details: { row: 'b', column: 'address' },
    });
    await expect(put([row('a'), row('a')])).rejects.toMatchObject({ code: 'state_rows_invalid' });
    await expect(put([row('a'), row('')])).rejects.toMatchObject({ code: 'state_rows_invalid' });
    expect(await machines().count()).toBe(0);
  });

  it('keeps rows that are there unless they are to be replaced, and then what they mean on this machine', async () => {
    await machines().insert(row('a', { state: 'connected' }));
    const coming = row('a', { address: '10.0.0.2', state: 'lost' });
    expect(await put([coming])).toMatchObject({ kept: 1, replaced: 0 });
    expect(await machines().find()).toMatchObject([{ address: '10.0.0.1' }]);
    const { replaced, changes } = await put([coming], { existing: 'replace' });
    expect(replaced).toBe(1);
    expect(changes).toEqual([
      {
        key: 'a',
        name: 'name-a',
        action: 'change',
        columns: [{ column: 'address', from: '10.0.0.1', to: '10.0.0.2' }],
        needsConfirmation: true,
      },
    ]);
    expect(await machines().find()).toMatchObject([{ address: '10.0.0.2', state: 'connected' }]);
  });

  it('leaves out rows whose name another one has, and rows that name what was left out', async () => {
    await machines().insert(row('a'));
    expect(await put([row('b', { name: 'name-a' }), row('c'), row('d', { name: 'name-c' })])).toMatchObject({
      added: 1,
      conflicts: ['b', 'd'],
    });
    const orphan = row('e', { credentialId: 'gone' });
    await expect(put([orphan])).rejects.toMatchObject({ details: { row: 'e', column: 'credentialId' } });
    expect(await put([orphan], { left: { credential: ['gone'] } })).toMatchObject({ added: 0, conflicts: ['e'] });
    expect((await machines().find()).map(({ id }) => id).toSorted()).toEqual(['a', 'c']);
  });

  it('is only looked at in a dry run, which may name what comes with it', async () => {
    const request = [row('a', { credentialId: 'c' })];
    const coming = { credential: ['c'] };
    expect(await put(request, { dryRun: true, coming })).toMatchObject({ added: 1 });
    expect(await machines().count()).toBe(0);
    await expect(put(request, { coming })).rejects.toMatchObject({ code: 'state_rows_invalid' });
  });

  it('takes no sealed text of another key, nor rows of a table or service that it does not have', async () => {
    const sealed = [{ id: 'c', sealedKey: 'x' }];
    const foreign = { keyFingerprint: 'another' };
    await expect(put(sealed, foreign, 'credential')).rejects.toMatchObject({ code: 'secrets_key_mismatch' });
    expect(await put(sealed, { ...foreign, dryRun: true }, 'credential')).toMatchObject({ added: 1 });
    await expect(put([], {}, 'job')).rejects.toMatchObject({ code: 'resource_not_found' });
    expect(() => new StatesController([state]).get('host')).toThrow(
      expect.objectContaining({ code: 'resource_not_found' }),
    );
  });
});
