/**
 * M3: rows that no service would have written, brought by a restore. Before, they went past all checks, and lists and
 * backups failed for good.
 */
import { join } from 'node:path';
import {
  createBackup,
  createRestore,
  createSshCredential,
  createWebhookEndpoint,
  getRestore,
  listBackupSchedules,
  listClusters,
  listHosts,
  listImageSets,
  listImages,
  listSshCredentials,
  listTunnels,
  listWebhookEndpoints,
} from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { startPostgres, type TempDir, type TestServer, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { changeRecord, changeState, rowsOf } from '../support/hostile-store.js';
import { endOf, resourceId, success } from '../support/jobs.js';

const id = (number: number): string => `0198d6e5-0000-7000-8000-${String(number).padStart(12, '0')}`;
const createdAt = '2024-01-01T00:00:00.000Z';
const host = {
  id: id(1),
  name: 'evil',
  address: '10.0.0.1',
  port: 22,
  credentialId: '',
  hostKeyFingerprint: null,
  hostKeySource: 'pinned',
  createdAt,
};
const image = {
  ...{
    id: id(2),
    upstream: 'quay.io/evil:1',
    localReferences: ['evil:1'],
    digest: `sha256:${'0'.repeat(64)}`,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
  },
  ...{
    imageIds: [],
    platforms: [],
    parts: [],
    sizeBytes: '0',
    firstBundleId: null,
    bundleId: null,
    firstPushedAt: createdAt,
    pushedAt: createdAt,
  },
};
const schedule = {
  ...{
    id: id(3),
    name: 'evil',
    cron: '30 2 * * *',
    timeZone: 'UTC',
    target: 'default',
    repositories: null,
    keep: null,
    alertAfterHours: null,
    enabled: true,
  },
  ...{ lastAt: createdAt, lastBackupId: null, prunedBackupId: null, staleSince: null, createdAt, version: 1 },
};

/** A row that is wrong in one column, of each kind. `credential` stands for the id of one that is there. */
const hostile: {
  service: string;
  table: string;
  column: string;
  row: (credential: string) => Record<string, unknown>;
}[] = [
  { service: 'host', table: 'host', column: 'credentialId', row: () => ({ ...host, credentialId: id(9) }) },
  { service: 'host', table: 'host', column: 'port', row: (credentialId) => ({ ...host, credentialId, port: 'ssh' }) },
  { service: 'host', table: 'host', column: 'id', row: (credentialId) => ({ ...host, credentialId, id: 'x' }) },
  { service: 'host', table: 'host', column: 'labels', row: (credentialId) => ({ ...host, credentialId, labels: [1] }) },
  {
    service: 'host',
    table: 'host',
    column: 'facts',
    row: (credentialId) => ({ ...host, credentialId, facts: { os: 7 } }),
  },
  {
    service: 'host',
    table: 'host',
    column: 'address',
    row: (credentialId) => ({ ...host, credentialId, address: 'a\0b' }),
  },
  { service: 'host', table: 'tunnel', column: 'hostId', row: () => ({ id: id(4), hostId: id(9), createdAt }) },
  { service: 'image', table: 'image', column: 'sizeBytes', row: () => ({ ...image, sizeBytes: 'many' }) },
  { service: 'image', table: 'image', column: 'parts', row: () => ({ ...image, parts: 'none' }) },
  {
    service: 'image',
    table: 'image_set',
    column: 'images',
    row: () => ({ id: id(5), name: 'evil', kubernetesVersion: null, images: null, createdAt }),
  },
  {
    service: 'cluster',
    table: 'cluster_node',
    column: 'clusterId',
    row: () => ({ hostId: id(1), clusterId: id(9), role: 'worker', position: 0 }),
  },
  { service: 'backup', table: 'backup_schedule', column: 'cron', row: () => ({ ...schedule, cron: 'x' }) },
  {
    service: 'backup',
    table: 'backup_schedule',
    column: 'alertAfterHours',
    row: () => ({ ...schedule, alertAfterHours: 'soon' }),
  },
  {
    service: 'backup',
    table: 'webhook_endpoint',
    column: 'url',
    row: () => ({ id: id(6), url: 'file:///etc/passwd', events: ['*'], sealedSecret: 'x', createdAt }),
  },
];

describe.each(['SQLite', 'PostgreSQL'])('M3: a backup with hostile rows, on %s', (database) => {
  let folder: TempDir;
  let postgres: TestServer | undefined;
  let du: Du;
  let client: Client;
  let store: string;
  beforeAll(async () => {
    folder = await tempDir('states');
    postgres = database === 'PostgreSQL' ? await startPostgres() : undefined;
    store = join(folder.path, 'store');
    du = await Du.start({
      folder: folder.path,
      airdock: { backupDir: store, databaseUrl: postgres?.url },
      registry: { minFreeBytes: 0 },
    });
    client = await du.client();
  });
  afterEach(({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${du.output}\n`);
  });
  afterAll(async () => {
    await du?.stop();
    await postgres?.stop();
    await folder?.remove();
  });

  it('changes nothing, is told by table, row and column, and every list goes on to answer', async () => {
    const { data: credential } = await createSshCredential({
      client,
      body: { name: 'root', username: 'root', password: 'x' },
      throwOnError: true,
    });
    await createWebhookEndpoint({ client, body: { url: 'http://127.0.0.1:9/' }, throwOnError: true }).catch(
      () => undefined,
    );
    await push(client, await carryIn(client, du, { images: ['k8s.gcr.io/pause:3.2'] }));
    const backupId = resourceId(await success(client, createBackup({ client, body: {}, throwOnError: true })));
    const lists = [
      listHosts,
      listSshCredentials,
      listTunnels,
      listImages,
      listImageSets,
      listClusters,
      listBackupSchedules,
      listWebhookEndpoints,
    ];
    const found = async () =>
      Promise.all(lists.map(async (list) => (await list({ client, throwOnError: true })).data.items.length));
    const before = await found();
    for (const { service, table, column, row } of hostile) {
      await changeState(store, backupId, service, (state) => void rowsOf(state, table).push(row(credential.id)));
      const { data } = await createRestore({ client, body: { backupId, allowUnsigned: true }, throwOnError: true });
      const job = await endOf(client, data.id);
      expect({ table, column, job }).toMatchObject({
        job: {
          state: 'failed',
          error: { code: 'state_rows_invalid', detail: expect.stringMatching(new RegExp(`^${table} .*${column}`)) },
        },
      });
      // The next one stands alone.
      await changeState(store, backupId, service, (state) => void rowsOf(state, table).pop());
    }
    expect(await found()).toEqual(before);
    expect(await success(client, createBackup({ client, body: {}, throwOnError: true }))).toMatchObject({
      state: 'succeeded',
    });
  });

  it('that is changed back is restored', async () => {
    const backupId = resourceId(await success(client, createBackup({ client, body: {}, throwOnError: true })));
    await changeRecord(store, backupId, () => undefined);
    const job = await success(
      client,
      createRestore({ client, body: { backupId, allowUnsigned: true, mode: 'exact' }, throwOnError: true }),
    );
    const { data } = await getRestore({ client, path: { id: resourceId(job) }, throwOnError: true });
    expect(data.report?.settings?.flatMap(({ conflicts }) => conflicts)).toEqual([]);
  });
});
