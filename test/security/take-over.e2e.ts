/** The first start of a version that signs backups, on the store of one that did not: what it may sign as its own. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import {
  createBackup,
  createHost,
  createRestore,
  createSshCredential,
  getBackup,
  getRestore,
  listBackupTargets,
} from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { freePort, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { changeRecord, changeState, rowsOf } from '../support/hostile-store.js';
import { endOf, resourceId, success } from '../support/jobs.js';

let folder: TempDir;
let du: Du;
let client: Client;
let store: string;

beforeEach(async () => {
  folder = await tempDir('take-over');
  store = join(folder.path, 'store');
  du = await Du.start({ folder: folder.path, airdock: { backupDir: store }, registry: { minFreeBytes: 0 } });
  client = await du.client();
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  await du?.stop();
  await folder?.remove();
});

const backUp = async (body: object): Promise<string> =>
  resourceId(await success(client, createBackup({ client, body: body as never, throwOnError: true })));
const unsigned = () => undefined;

/**
 * Starts with the tables of a version that did not sign, and with records as that wrote them, but for what somebody did
 * to the disk meanwhile.
 */
async function startAsUpgraded(records: Record<string, (record: BackupRecord) => void>): Promise<void> {
  await du.end();
  for (const [id, change] of Object.entries(records)) await changeRecord(store, id, change);
  const database = new DatabaseSync(join(du.dataDir, 'db/backup.sqlite'));
  database.exec('DROP TABLE migrations');
  database.exec('ALTER TABLE backup DROP COLUMN "signedBy"');
  for (const column of ['takenOverAt', 'problems', 'reading'])
    database.exec(`ALTER TABLE backup_target DROP COLUMN "${column}"`);
  database.close();
  await rm(join(du.dataDir, 'signing.key'));
  await du.startProcess();
  client = await du.client();
}
/** As soon as the records were looked at: what is in the store then is signed, or never will be. */
async function signaturesOf(ids: readonly string[]): Promise<(string | undefined)[]> {
  const isLookedAt = () => {
    const database = new DatabaseSync(join(du.dataDir, 'db/backup.sqlite'), { readOnly: true, timeout: 10_000 });
    const [row] = database.prepare('SELECT "takenOverAt" FROM backup_target').all();
    database.close();
    return row?.takenOverAt ? true : undefined;
  };
  await waitFor(isLookedAt, { what: 'the store to be taken over', timeoutMs: 90_000 });
  return Promise.all(
    ids.map(async (id) => (await getBackup({ client, path: { id }, throwOnError: true })).data.signature?.state),
  );
}

describe('a store of before there were signatures', () => {
  it('goes on to be used: images are signed where the catalogue knows every one of them, and nothing that comes later', async () => {
    await push(client, await carryIn(client, du, { images: ['k8s.gcr.io/pause:3.2'] }));
    const [genuine, changed] = [
      await backUp({ repositories: ['k8s.gcr.io/*'] }),
      await backUp({ repositories: ['k8s.gcr.io/*'] }),
    ];
    await startAsUpgraded({
      [genuine]: unsigned,
      // As many names, as many bytes, and the same words.
      [changed]: (record) =>
        void (record.references = record.references.map((reference) => ({ ...reference, tag: '3.9' }))),
    });
    expect(await signaturesOf([genuine, changed])).toEqual(['own', 'unsigned']);
    expect(await readdir(join(store, 'backups'))).toContain(`${genuine}.json.sig`);
    expect(
      await success(client, createRestore({ client, body: { backupId: genuine }, throwOnError: true })),
    ).toMatchObject({ state: 'succeeded' });
    await expect(createRestore({ client, body: { backupId: changed }, throwOnError: true })).rejects.toMatchObject({
      code: 'backup_unsigned',
    });

    await changeRecord(store, genuine, (record) => void (record.duVersion = 'v-5.3.0'));
    await du.end();
    await du.startProcess();
    client = await du.client();
    await expect(createRestore({ client, body: { backupId: genuine }, throwOnError: true })).rejects.toMatchObject({
      code: 'backup_unsigned',
    });
  });

  it('has no settings signed: nobody can say that they are as this DU wrote them', async () => {
    const body = { name: 'root', username: 'admin', password: 'S3cret-root-pw-9f2c' };
    const { data: credential } = await createSshCredential({ client, body, throwOnError: true });
    const where = { address: '127.0.0.1', port: await freePort(), hostKey: `SHA256:${'A'.repeat(43)}` };
    await createHost({ client, body: { name: 'node-1', credentialId: credential.id, ...where }, throwOnError: true });
    await push(client, await carryIn(client, du, { images: ['k8s.gcr.io/pause:3.2'] }));
    const [genuine, changed] = [await backUp({}), await backUp({})];
    const before = await recordOf(changed);
    await changeState(store, changed, 'host', (state) => {
      for (const host of rowsOf(state, 'host')) host.address = '127.0.0.6';
    });
    await startAsUpgraded({
      [genuine]: unsigned,
      [changed]: (record) => {
        const names = new Set(record.settings.map(({ digest }) => digest));
        const gone = before.settings.find(({ digest }) => !names.has(digest));
        record.blobs = record.blobs.filter(({ digest }) => digest !== gone?.digest);
        record.totalBytes = before.totalBytes;
      },
    });
    expect(await signaturesOf([changed, genuine])).toEqual(['unsigned', 'unsigned']);
    // They can be used all the same by somebody who has looked.
    const request = { backupId: genuine, allowUnsigned: true };
    const planned = await endOf(
      client,
      (await createRestore({ client, body: { ...request, dryRun: true }, throwOnError: true })).data.id,
    );
    const { report } = (await getRestore({ client, path: { id: resourceId(planned) }, throwOnError: true })).data;
    expect(report).toMatchObject({ signature: { state: 'unsigned' }, changes: [], planDigest: null });
    expect(await success(client, createRestore({ client, body: request, throwOnError: true }))).toMatchObject({
      state: 'succeeded',
    });
    expect((await listBackupTargets({ client, throwOnError: true })).data.items[0]?.error).toBeNull();
  });
});

const recordOf = async (id: string): Promise<BackupRecord> => {
  let found: BackupRecord | undefined;
  await changeRecord(store, id, (record) => void (found = structuredClone(record)), { keepsSignature: true });
  if (!found) throw new Error(`there is no record ${id}`);
  return found;
};
