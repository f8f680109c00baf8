import { cp, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { ServiceState, StateRowsResult } from '@airdock/platform/state/state.schema';
import { startComponent } from '@airdock/platform/testing/component';
import { startRedis, tempDir } from '@airdock/testing/servers';
import request from 'supertest';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HostModule } from './host.module.js';

describe('the state of host-svc', () => {
  let folder: Awaited<ReturnType<typeof tempDir>>;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  beforeAll(async () => {
    [folder, redis] = await Promise.all([tempDir('host-state'), startRedis()]);
  });
  afterAll(async () => {
    await redis?.stop();
    await folder?.remove();
  });

  async function start(name: string) {
    const service = await startComponent('host', HostModule, {
      dataDir: join(folder.path, name),
      redisUrl: redis.url,
      roles: ['api'],
    });
    const api = (method: 'get' | 'post' | 'put' | 'delete', path: string) =>
      request(service.url)[method](path).set('authorization', `Bearer ${service.internalToken}`);
    const state = async () => (await api('get', '/v1/states/host').expect(200)).body as ServiceState;
    const put = async (table: string, body: object) =>
      (await api('put', `/v1/states/host/tables/${table}`).send(body)).body as StateRowsResult & { code?: string };
    const rowsOf = async (table: string) => (await state()).tables.find((one) => one.name === table)?.rows ?? [];
    return { service, api, state, put, rowsOf, [Symbol.asyncDispose]: () => service.app.close() };
  }

  it('goes to another DU that has the key, row by row, and changes nothing there that is not asked for', async () => {
    await using here = await start('here');
    const credential = { name: 'root', username: 'root', password: 'sesame-4711' };
    const { body } = await here.api('post', '/v1/ssh-credentials').send(credential).expect(201);
    const host = {
      name: 'node-1',
      address: '10.0.0.1',
      credentialId: body.id,
      hostKey: `SHA256:${'A'.repeat(43)}`,
      labels: { rack: 'a' },
    };
    await here.api('post', '/v1/hosts').send(host).expect(201);
    const state = await here.state();
    expect(JSON.stringify(state)).not.toContain('sesame');
    const { keyFingerprint } = state;
    const [credentials, hosts] = [await here.rowsOf('ssh_credential'), await here.rowsOf('host')];

    await using stranger = await start('stranger');
    expect((await stranger.put('ssh_credential', { keyFingerprint, rows: credentials })).code).toBe(
      'secrets_key_mismatch',
    );
    expect(await stranger.rowsOf('ssh_credential')).toEqual([]);

    await mkdir(join(folder.path, 'there'));
    await cp(join(folder.path, 'here/secrets.key'), join(folder.path, 'there/secrets.key'));
    await using there = await start('there');
    expect(await there.put('ssh_credential', { keyFingerprint, rows: credentials })).toMatchObject({
      added: 1,
      kept: 0,
      conflicts: [],
    });
    expect(await there.put('host', { keyFingerprint, rows: hosts })).toMatchObject({ added: 1 });
    expect(await there.put('host', { keyFingerprint, rows: hosts })).toMatchObject({ added: 0, kept: 1 });
    expect((await there.state()).tables).toEqual(state.tables);
    const moved = hosts.map((row) => ({ ...row, address: '10.0.0.2', ofALaterVersion: true }));
    expect(await there.put('host', { keyFingerprint, rows: moved })).toMatchObject({ kept: 1 });
    expect(await there.put('host', { keyFingerprint, rows: moved, existing: 'replace' })).toMatchObject({
      replaced: 1,
    });
    expect((await there.api('get', '/v1/hosts')).body.items).toMatchObject([
      { name: 'node-1', address: '10.0.0.2', labels: { rack: 'a' } },
    ]);
    const namesake = hosts.map((row) => ({ ...row, id: '01900000-0000-7000-8000-000000000001' }));
    expect(await there.put('host', { keyFingerprint, rows: namesake })).toMatchObject({
      added: 0,
      conflicts: ['01900000-0000-7000-8000-000000000001'],
    });
  });

  it('is written only where it fits', async () => {
    await using here = await start('alone');
    const { keyFingerprint } = await here.state();
    expect((await here.put('job', { keyFingerprint, rows: [] })).code).toBe('resource_not_found');
    expect((await here.put('host', { keyFingerprint, rows: [{ name: 'without a key' }] })).code).toBe(
      'state_rows_invalid',
    );
    expect((await here.put('host', { keyFingerprint, rows: [{ id: 'x', name: null }] })).code).toBe(
      'state_rows_invalid',
    );
    expect((await here.api('get', '/v1/states/image')).body.code).toBe('resource_not_found');
    expect(await here.rowsOf('host')).toEqual([]);
  });
});
