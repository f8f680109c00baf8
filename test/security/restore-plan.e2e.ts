/**
 * What somebody has to confirm before a restore: on a DU that has lost its tables, and after a restore that ended in
 * the middle.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import {
  createBackup,
  createDuUpgrade,
  createHost,
  createRestore,
  createSshCredential,
  createWebhookEndpoint,
  deleteHost,
  deleteSshCredential,
  deleteWebhookEndpoint,
  finishDuUpgrade,
  getDuUpgrade,
  getRestore,
  listHosts,
  listSshCredentials,
  retryJob,
} from '@airdock/clients/generated/sdk.gen';
import type { Job, Restore } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { freePort, type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Du } from '../support/du.js';
import { changeRecord, changeState, rowsOf } from '../support/hostile-store.js';
import { endOf, resourceId, success } from '../support/jobs.js';

let folder: TempDir;
let du: Du;
let client: Client;
let store: string;
let ids: { backupId: string; credentialId: string; hostId: string };

beforeEach(async () => {
  folder = await tempDir('restore-plan');
  store = join(folder.path, 'store');
  du = await Du.start({
    folder: folder.path,
    airdock: { backupDir: store, duVersion: 'v-5.2.0-1500000', webhooks: { allowedHosts: ['127.0.0.1'] } },
    registry: { minFreeBytes: 0 },
  });
  client = await du.client();
  // With the same key of secrets and no row, as after its disk was replaced: whatever the backup brings can be used at
  // once.
  const body = { name: 'root', username: 'admin', password: 'S3cret-root-pw-9f2c' };
  const { data: credential } = await createSshCredential({ client, body, throwOnError: true });
  const where = { address: '127.0.0.1', port: await freePort(), hostKey: `SHA256:${'A'.repeat(43)}` };
  const { data: host } = await createHost({
    client,
    body: { name: 'node-1', credentialId: credential.id, ...where },
    throwOnError: true,
  });
  const { data: webhook } = await createWebhookEndpoint({
    client,
    body: { url: 'http://127.0.0.1:9/hook' },
    throwOnError: true,
  });
  const backupId = resourceId(await success(client, createBackup({ client, body: {}, throwOnError: true })));
  await deleteHost({ client, path: { id: host.id }, throwOnError: true });
  await deleteSshCredential({ client, path: { id: credential.id }, throwOnError: true });
  await deleteWebhookEndpoint({ client, path: { id: webhook.id }, throwOnError: true });
  ids = { backupId, credentialId: credential.id, hostId: host.id };
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  await du?.stop();
  await folder?.remove();
});

const restore = async (body: object): Promise<{ job: Job; restore: Restore }> => {
  const job = await endOf(
    client,
    (await createRestore({ client, body: { backupId: ids.backupId, ...body } as never, throwOnError: true })).data.id,
  );
  return { job, restore: (await getRestore({ client, path: { id: resourceId(job) }, throwOnError: true })).data };
};
const hosts = async () => (await listHosts({ client, throwOnError: true })).data.items;
const credentials = async () => (await listSshCredentials({ client, throwOnError: true })).data.items;
/** Leads the host, with its genuine credential, to somebody else. */
const leadAway = () =>
  changeState(store, ids.backupId, 'host', (state) => {
    for (const host of rowsOf(state, 'host'))
      Object.assign(host, { address: '127.0.0.66', hostKeyFingerprint: `SHA256:${'E'.repeat(43)}` });
  });
/** The database of a service takes no rows of a table: as if the restore was ended before it. */
const inDatabase = (statement: string) => {
  const database = new DatabaseSync(join(du.dataDir, 'db/host.sqlite'), { timeout: 10_000 });
  database.exec(statement);
  database.close();
};
const stopHosts = () =>
  inDatabase(`CREATE TRIGGER stopped BEFORE INSERT ON host BEGIN SELECT RAISE(ABORT, 'stopped'); END`);
const letHosts = () => inDatabase('DROP TRIGGER stopped');

describe('a backup that nobody known has signed, on a DU that has lost its tables', () => {
  it('leads no credential anywhere before every host, credential and webhook of it was confirmed', async () => {
    await leadAway();
    const { job } = await restore({ allowUnsigned: true });
    expect({ state: job.state, code: job.error?.code, hosts: (await hosts()).map(({ address }) => address) }).toEqual({
      ...{ state: 'failed', code: 'restore_unconfirmed', hosts: [] },
    });
    expect(await credentials()).toEqual([]);
    const { restore: plan } = await restore({ allowUnsigned: true, dryRun: true });
    expect(plan.report?.changes?.map(({ table, needsConfirmation }) => ({ table, needsConfirmation }))).toEqual(
      expect.arrayContaining(
        ['ssh_credential', 'host', 'webhook_endpoint'].map((table) => ({ table, needsConfirmation: true })),
      ),
    );
    expect(plan.report?.changes?.every(({ needsConfirmation }) => needsConfirmation)).toBe(true);
    const confirm = plan.report?.planDigest;

    // What is confirmed is what was seen, also of what nobody is shown.
    await changeState(store, ids.backupId, 'host', (state) => {
      for (const row of rowsOf(state, 'ssh_credential')) row.sealed = `${row.sealed}A`;
    });
    expect((await restore({ allowUnsigned: true, confirm })).job).toMatchObject({
      state: 'failed',
      error: { code: 'restore_unconfirmed' },
    });
    const { restore: again } = await restore({ allowUnsigned: true, dryRun: true });
    expect((await restore({ allowUnsigned: true, confirm: again.report?.planDigest })).job.state).toBe('succeeded');
    expect(await hosts()).toMatchObject([{ id: ids.hostId, address: '127.0.0.66' }]);
  });

  it('that this DU has signed needs nobody there', async () => {
    expect((await restore({})).job.state).toBe('succeeded');
    expect(await hosts()).toMatchObject([{ id: ids.hostId, address: '127.0.0.1' }]);
  });
});

describe('a restore that ended between the rows of two tables', () => {
  it('goes on with what was accepted, and with nothing else', async () => {
    stopHosts();
    const { job } = await restore({});
    expect(job.state).toBe('failed');
    expect({ credentials: (await credentials()).length, hosts: (await hosts()).length }).toEqual({
      credentials: 1,
      hosts: 0,
    });
    letHosts();
    await retryJob({ client, path: { id: job.id }, throwOnError: true });
    const ended = await endOf(client, job.id);
    expect({ state: ended.state, code: ended.error?.code }).toEqual({ state: 'succeeded', code: undefined });
    expect(await hosts()).toMatchObject([{ id: ids.hostId }]);
  });

  it('goes on with a plan that somebody confirmed, as long as the disk holds that', async () => {
    await changeRecord(store, ids.backupId, () => undefined);
    const { restore: plan } = await restore({ allowUnsigned: true, dryRun: true });
    stopHosts();
    const { job } = await restore({
      allowUnsigned: true,
      ...(plan.report?.planDigest && { confirm: plan.report.planDigest }),
    });
    expect(job.state).toBe('failed');
    expect(await credentials()).toHaveLength(1);
    letHosts();
    await leadAway();
    await retryJob({ client, path: { id: job.id }, throwOnError: true });
    expect(await endOf(client, job.id)).toMatchObject({ state: 'failed', error: { code: 'restore_unconfirmed' } });
    expect(await hosts()).toEqual([]);
  });
});

describe('an upgrade of the DU that brings settings back', () => {
  const finish = async (body: object) => {
    const begun = { toVersion: 'v-5.3.0-1558488', step: 'finish' as const, backupId: ids.backupId, ...body };
    const job = await endOf(client, (await createDuUpgrade({ client, body: begun, throwOnError: true })).data.id);
    return { job, upgrade: (await getDuUpgrade({ client, path: { id: resourceId(job) }, throwOnError: true })).data };
  };

  it('goes on after it was ended between two tables, from the backup that this DU has signed', async () => {
    await restore({});
    await deleteHost({ client, path: { id: ids.hostId }, throwOnError: true });
    const { job, upgrade } = await finish({});
    expect({ state: job.state, phase: upgrade.phase, code: upgrade.error?.code }).toEqual({
      state: 'succeeded',
      phase: 'done',
      code: undefined,
    });
    expect(await hosts()).toMatchObject([{ id: ids.hostId }]);
  });

  it('waits for somebody to confirm what an unsigned backup leads where', async () => {
    await rm(join(store, 'backups', `${ids.backupId}.json.sig`));
    await leadAway();
    const { job, upgrade } = await finish({ allowUnsigned: true });
    expect({ state: job.state, phase: upgrade.phase, code: job.error?.code }).toEqual({
      state: 'failed',
      phase: 'restore',
      code: 'restore_unconfirmed',
    });
    expect(await hosts()).toEqual([]);
    const confirm = (job.error as unknown as { planDigest: string }).planDigest;
    const going = await finishDuUpgrade({ client, path: { id: upgrade.id }, body: { confirm }, throwOnError: true });
    expect(await success(client, going.data)).toMatchObject({ state: 'succeeded' });
    expect(await hosts()).toMatchObject([{ id: ids.hostId }]);
  });
});
