/** Somebody has had the stick with the backups in the hand: what lies there was changed, and Airdock reads it. */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { promisify } from 'node:util';
import {
  adoptBackupTarget,
  createBackup,
  createBackupOperation,
  createBackupSigningKey,
  createHost,
  createRestore,
  createSshCredential,
  deleteBackup,
  deleteBackupSigningKey,
  deleteHost,
  getBackup,
  getBackupSigningKey,
  getRestore,
  listBackups,
  listBackupTargets,
  listHosts,
  listTunnels,
} from '@airdock/clients/generated/sdk.gen';
import type { Job, Restore } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { freePort, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { carryIn, push } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { changeRecord, changeState, putRecord, putState, rowsOf } from '../support/hostile-store.js';
import { endOf, resourceId, success } from '../support/jobs.js';

const run = promisify(execFile);
const strangeId = '0198d6e5-0000-7000-8000-00000000000b';

let folder: TempDir;
let du: Du;
let client: Client;
let store: string;
let exchange: string;
let evil: { server: Server; port: number; connections: number };

beforeEach(async () => {
  folder = await tempDir('store');
  store = join(folder.path, 'store');
  exchange = join(folder.path, 'exchange');
  await mkdir(exchange);
  du = await Du.start({
    folder: folder.path,
    airdock: { backupDir: store, backup: { exchangeDir: exchange } },
    registry: { minFreeBytes: 0 },
  });
  client = await du.client();
  const port = await freePort();
  evil = {
    server: createServer((socket) => socket.on('error', () => undefined).on('data', () => undefined)),
    port,
    connections: 0,
  };
  evil.server.on('connection', (socket) => {
    evil.connections += 1;
    socket.destroy();
  });
  await new Promise<void>((resolve) => evil.server.listen(port, '127.0.0.1', resolve));
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  evil?.server.close();
  await du?.stop();
  await folder?.remove();
});

/** A host that nobody can reach, with a password, and a backup of everything. */
async function siteWithBackup(): Promise<{ backupId: string; credentialId: string; hostId: string }> {
  const body = { name: 'root', username: 'admin', password: 'S3cret-root-pw-9f2c' };
  const { data: credential } = await createSshCredential({ client, body, throwOnError: true });
  const { data: host } = await createHost({
    client,
    body: {
      name: 'node-1',
      address: '127.0.0.1',
      port: await freePort(),
      credentialId: credential.id,
      hostKey: `SHA256:${'A'.repeat(43)}`,
    },
    throwOnError: true,
  });
  await push(client, await carryIn(client, du, { images: ['k8s.gcr.io/pause:3.2'] }));
  const job = await success(client, createBackup({ client, body: {}, throwOnError: true }));
  return { backupId: resourceId(job), credentialId: credential.id, hostId: host.id };
}

const operate = async (operation: object): Promise<Job> =>
  endOf(
    client,
    (await createBackupOperation({ client, body: { operation: operation as never }, throwOnError: true })).data.id,
  );
/** The job of a restore, or what the request is refused with. */
const restore = async (body: object): Promise<{ job: Job; restore: Restore }> => {
  const job = await endOf(client, (await createRestore({ client, body: body as never, throwOnError: true })).data.id);
  return { job, restore: (await getRestore({ client, path: { id: resourceId(job) }, throwOnError: true })).data };
};

/** Exports a backup, unpacks it to be changed, and packs it again. */
async function tamper(backupId: string, change: (unpacked: string) => Promise<void>): Promise<void> {
  await success(client, await operate({ action: 'export', backupId, file: 'site.tar' }));
  const unpacked = join(folder.path, 'unpacked');
  await mkdir(unpacked);
  await run('tar', ['-xf', join(exchange, 'site.tar'), '-C', unpacked]);
  await change(unpacked);
  await run('tar', ['-cf', join(exchange, 'evil.tar'), ...(await readdir(unpacked))], { cwd: unpacked });
}

/** Rows that lead the DU to the attacker's server with a credential of the site. */
const leadAway =
  (credentialId: string) =>
  (unpacked: string, backupId: string, options = {}) =>
    changeState(
      unpacked,
      backupId,
      'host',
      (state) => {
        const [host] = rowsOf(state, 'host');
        const id = '0198d6e5-0000-7000-8000-00000000000a';
        rowsOf(state, 'host').push({
          ...host,
          id,
          name: 'evil',
          address: '127.0.0.1',
          port: evil.port,
          credentialId,
          hostKeyFingerprint: null,
        });
        rowsOf(state, 'tunnel').push({
          ...{
            id: '0198d6e5-0000-7000-8000-00000000000c',
            hostId: id,
            state: 'connecting',
            since: '2024-01-01T00:00:00.000Z',
            hostPort: 5100,
          },
          ...{
            target: '127.0.0.1:22',
            packagePort: null,
            reconnects: 0,
            latencyMs: null,
            bytesSent: '0',
            bytesPerSecond: 0,
            error: null,
            session: null,
          },
          ...{ leaseOwner: null, leaseUntil: null, createdAt: '2024-01-01T00:00:00.000Z' },
        });
      },
      options,
    );

describe('C3: a backup that somebody has changed', () => {
  it('brings nobody a password: it is refused at the import, and in the store', async () => {
    const { backupId, credentialId } = await siteWithBackup();
    await tamper(backupId, (unpacked) => leadAway(credentialId)(unpacked, backupId));
    await deleteBackup({ client, path: { id: backupId }, throwOnError: true });
    const imported = await operate({ action: 'import', file: 'evil.tar' });
    if (imported.state === 'succeeded') {
      // What happens then, for whoever runs this on a version that takes it.
      await restore({ backupId });
      await waitFor(() => evil.connections > 0, { what: 'the DU to knock at the attacker', timeoutMs: 20_000 }).catch(
        () => undefined,
      );
    }
    expect({ import: imported.state, connections: evil.connections }).toEqual({ import: 'failed', connections: 0 });
    expect(imported.error).toMatchObject({
      code: 'backup_unsigned',
      nextStep: expect.stringContaining('allowUnsigned'),
    });
    expect((await listHosts({ client, throwOnError: true })).data.items.map(({ name }) => name)).toEqual(['node-1']);
  });

  it('is never taken with a signature that is wrong, whatever the request says', async () => {
    const { backupId, credentialId } = await siteWithBackup();
    await tamper(backupId, (unpacked) => leadAway(credentialId)(unpacked, backupId, { keepsSignature: true }));
    expect(await operate({ action: 'import', file: 'evil.tar', allowUnsigned: true })).toMatchObject({
      state: 'failed',
      error: { code: 'backup_signature_wrong' },
    });
    await leadAway(credentialId)(store, backupId, { keepsSignature: true });
    for (const body of [{}, { allowUnsigned: true }, { allowUnsigned: true, drill: true }])
      await expect(restore({ backupId, ...body })).rejects.toMatchObject({ code: 'backup_signature_wrong' });
    expect(await operate({ action: 'verify', allowUnsigned: true })).toMatchObject({ state: 'failed' });
    expect(evil.connections).toBe(0);
  });

  it('shows what it would change when it is allowed, and uses a credential elsewhere only after that was confirmed', async () => {
    const { backupId, credentialId } = await siteWithBackup();
    await leadAway(credentialId)(store, backupId);
    for (const body of [{}, { dryRun: true }, { drill: true }])
      await expect(restore({ backupId, ...body })).rejects.toMatchObject({ code: 'backup_unsigned' });
    await expect(operate({ action: 'verify', backupId })).rejects.toMatchObject({ code: 'backup_unsigned' });
    const { restore: plan } = await restore({ backupId, allowUnsigned: true, dryRun: true });
    const change = plan.report?.changes?.find(({ name }) => name === 'evil');
    expect(change).toMatchObject({ service: 'host', table: 'host', action: 'add', needsConfirmation: true });
    expect(change?.columns).toContainEqual({ column: 'port', from: null, to: evil.port });
    expect(plan.report).toMatchObject({
      signature: { state: 'unsigned', keyId: null },
      planDigest: expect.stringMatching(/^sha256:/),
    });

    for (const confirm of [undefined, `sha256:${'0'.repeat(64)}`]) {
      const { job } = await restore({ backupId, allowUnsigned: true, ...(confirm && { confirm }) });
      expect(job).toMatchObject({
        state: 'failed',
        error: { code: 'restore_unconfirmed', nextStep: expect.stringContaining('planDigest') },
      });
    }
    expect((await listHosts({ client, throwOnError: true })).data.items.map(({ name }) => name)).toEqual(['node-1']);
    expect(evil.connections).toBe(0);

    const { job } = await restore({ backupId, allowUnsigned: true, confirm: plan.report?.planDigest });
    expect(job.state).toBe('succeeded');
    const { data: tunnels } = await listTunnels({ client, throwOnError: true });
    expect(tunnels.items.map(({ target }) => target)).not.toContain('127.0.0.1:22');
  });

  it('does not move a host that has a credential, even when the backup is signed by this DU', async () => {
    const { backupId, hostId, credentialId } = await siteWithBackup();
    await deleteHost({ client, path: { id: hostId }, throwOnError: true });
    const moved = { name: 'node-1', address: '10.9.9.9', port: 22, credentialId, hostKey: `SHA256:${'B'.repeat(43)}` };
    await createHost({ client, body: moved, throwOnError: true });
    const { job, restore: done } = await restore({ backupId, mode: 'exact' });
    // Its name is another host's now, so there is nothing to be confirmed.
    expect(job.state).toBe('succeeded');
    expect(done.report?.settings).toContainEqual(
      expect.objectContaining({ table: 'host', added: 0, conflicts: [hostId] }),
    );
    const [host] = (await listHosts({ client, throwOnError: true })).data.items;
    await deleteHost({ client, path: { id: host?.id ?? '' }, throwOnError: true });
    const again = await restore({ backupId });
    expect(again.job).toMatchObject({ state: 'failed', error: { code: 'restore_unconfirmed' } });
    const confirmed = await restore({ backupId, confirm: again.restore.report?.planDigest });
    expect(confirmed.job.state).toBe('succeeded');
    expect((await listHosts({ client, throwOnError: true })).data.items).toMatchObject([{ id: hostId }]);
  });

  it('is taken from a site whose key was added, as long as that is trusted', async () => {
    const { backupId } = await siteWithBackup();
    await success(client, await operate({ action: 'export', backupId, file: 'site.tar' }));
    const { data: key } = await getBackupSigningKey({ client, path: { id: 'own' }, throwOnError: true });
    expect(key.fingerprint.split(' ')).toHaveLength(16);
    await using other = await Du.start({
      folder: join(folder.path, 'other'),
      airdock: { backup: { exchangeDir: exchange } },
      registry: { minFreeBytes: 0 },
      stopsRegistry: true,
    });
    const there = await other.client();
    const importing = async () =>
      endOf(
        there,
        (
          await createBackupOperation({
            client: there,
            body: { operation: { action: 'import', file: 'site.tar' } },
            throwOnError: true,
          })
        ).data.id,
      );
    expect(await importing()).toMatchObject({
      state: 'failed',
      error: { code: 'backup_signer_unknown', keyId: key.keyId },
    });
    const { publicKey, keyId, fingerprint } = key;
    const wrong = createBackupSigningKey({
      client: there,
      body: { name: 'site', publicKey, keyId: `SHA256:${'A'.repeat(43)}` },
      throwOnError: true,
    });
    await expect(wrong).rejects.toMatchObject({ code: 'signing_key_invalid' });
    const { data: added } = await createBackupSigningKey({
      client: there,
      body: { name: 'site', publicKey, keyId: fingerprint.toUpperCase() },
      throwOnError: true,
    });
    expect(await importing()).toMatchObject({ state: 'succeeded' });
    const found = (await getBackup({ client: there, path: { id: backupId }, throwOnError: true })).data;
    expect(found.signature).toEqual({ state: 'trusted', keyId });
    const restoring = () => createRestore({ client: there, body: { backupId, settings: false }, throwOnError: true });
    expect(await success(there, restoring())).toMatchObject({ state: 'succeeded' });
    await deleteBackupSigningKey({ client: there, path: { id: added.id }, throwOnError: true });
    await expect(restoring()).rejects.toMatchObject({ code: 'backup_signer_unknown' });
    expect((await getBackup({ client: there, path: { id: backupId }, throwOnError: true })).data.signature?.state).toBe(
      'unknown',
    );
  });

  it('is not taken for the site’s own when its store is adopted', async () => {
    const { backupId } = await siteWithBackup();
    await changeRecord(store, backupId, (record) => void (record.description = 'changed'));
    await expect(
      adoptBackupTarget({ client, path: { name: 'default' }, body: {}, throwOnError: true }),
    ).rejects.toMatchObject({ code: 'backup_unsigned' });
    const { data } = await adoptBackupTarget({
      client,
      path: { name: 'default' },
      body: { allowUnsigned: true },
      throwOnError: true,
    });
    expect(data.error).toBeNull();
    await expect(restore({ backupId })).rejects.toMatchObject({ code: 'backup_unsigned' });
  });

  it('that is signed wrongly does not take the place of those that a schedule keeps', async () => {
    const { backupId } = await siteWithBackup();
    const record = JSON.parse(await readFile(join(store, 'backups', `${backupId}.json`), 'utf8')) as object;
    const newest = {
      ...record,
      id: strangeId,
      formatVersion: 1,
      sequence: 999_999_999,
      createdAt: '2099-01-01T00:00:00.000Z',
    };
    await putRecord(store, strangeId, Buffer.from(JSON.stringify(newest, null, 2)));
    const pruned = await operate({ action: 'prune', keep: { last: 1 } });
    expect(pruned).toMatchObject({ state: 'succeeded', result: { backups: 0 } });
    expect((await restore({ backupId, settings: false })).job.state).toBe('succeeded');
    expect(await success(client, createBackup({ client, body: {}, throwOnError: true }))).toMatchObject({
      state: 'succeeded',
    });
  });
});

describe('H4: a store that is hostile', () => {
  const problemsOf = async () =>
    (await listBackupTargets({ client, throwOnError: true })).data.items[0]?.problems ?? [];

  it('ends no DU with a record of eight million bytes of nothing, now or at the next start', async () => {
    await siteWithBackup();
    const record = Buffer.from(
      `{"formatVersion":1,"id":"${strangeId}","references":[${'{},'.repeat(2_700_000)}{}],"blobs":[]}`,
    );
    await putRecord(store, strangeId, record);
    await du.end();
    await du.startProcess();
    client = await du.client();
    const problems = await waitFor(async () => ((await problemsOf()).length > 0 ? problemsOf() : undefined), {
      what: 'the record to be told of',
      timeoutMs: 60_000,
    });
    expect(problems).toMatchObject([{ backupId: strangeId, code: 'backup_corrupt' }]);
    expect((await listBackups({ client, throwOnError: true })).data.items).toHaveLength(1);
    expect((await fetch(`${du.url}/livez`)).status).toBe(200);
  });

  it('keeps no DU busy with a state that is small only while it is compressed', async () => {
    const { backupId } = await siteWithBackup();
    const bomb = Buffer.from(
      `{"service":"image","formatVersion":1,"keyFingerprint":"x","tables":[${'{},'.repeat(20_000_000)}{}]}`,
    );
    await putState(store, backupId, 'image', bomb, { compressed: true });
    const { job } = await restore({ backupId, allowUnsigned: true, dryRun: true });
    expect(job).toMatchObject({ state: 'failed', error: { code: 'backup_corrupt' } });
    expect((await fetch(`${du.url}/livez`, { signal: AbortSignal.timeout(10_000) })).status).toBe(200);
  });

  it('leads nobody out of it: what is pruned, written and read lies in it', async () => {
    const { backupId } = await siteWithBackup();
    const outside = join(folder.path, 'outside');
    await mkdir(outside);
    await writeFile(join(outside, 'precious'), 'keep me');
    await rm(join(store, 'tmp'), { recursive: true, force: true });
    await symlink(outside, join(store, 'tmp'));
    await operate({ action: 'prune' });
    expect(await readdir(outside)).toEqual(['precious']);
    await rm(join(store, 'tmp'));
    await rm(join(store, 'backups', `${backupId}.json.sha256`));
    await run('mkfifo', [join(store, 'backups', `${backupId}.json.sha256`)]);
    await expect(restore({ backupId })).rejects.toMatchObject({ code: 'backup_store_unsafe' });
  });

  it('is told of and left alone when a process died while it read one of its records', async () => {
    const { backupId } = await siteWithBackup();
    await du.end();
    const record = JSON.parse(await readFile(join(store, 'backups', `${backupId}.json`), 'utf8')) as object;
    await putRecord(store, strangeId, Buffer.from(JSON.stringify({ ...record, id: strangeId, formatVersion: 1 })));
    const { size, mtimeMs } = await stat(join(store, 'backups', `${strangeId}.json`));
    // What that process has left behind.
    const fingerprint = createHash('sha256').update(`${strangeId} ${size} ${mtimeMs}`).digest('hex').slice(0, 16);
    const database = new DatabaseSync(join(du.dataDir, 'db/backup.sqlite'));
    const reading = JSON.stringify({
      backupId: strangeId,
      fingerprint,
      reader: 'one that died',
      since: '2024-01-01T00:00:00.000Z',
    });
    database.prepare('UPDATE backup_target SET reading = ?').run(reading);
    database.close();
    await du.startProcess();
    client = await du.client();
    const problems = await waitFor(async () => ((await problemsOf()).length > 0 ? problemsOf() : undefined), {
      what: 'the record to be told of',
      timeoutMs: 60_000,
    });
    expect(problems).toMatchObject([{ backupId: strangeId, detail: expect.stringContaining('ended while it read') }]);
    expect((await listBackups({ client, throwOnError: true })).data.items.map(({ id }) => id)).toEqual([backupId]);
    // Whoever looks at it and puts it there anew has it read.
    await putRecord(
      store,
      strangeId,
      Buffer.from(JSON.stringify({ ...record, id: strangeId, formatVersion: 1 }, null, 1)),
    );
    await waitFor(async () => ((await problemsOf()).length === 0 ? true : undefined), {
      what: 'the record to be read',
      timeoutMs: 90_000,
    });
    const { data } = await getBackup({ client, path: { id: strangeId }, throwOnError: true });
    expect(data.signature).toEqual({ state: 'unsigned', keyId: null });
  });
});
