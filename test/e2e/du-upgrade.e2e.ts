/** Upgrades of the DU: every image is there afterwards, whatever was lost or killed on the way. */
import { execFile } from 'node:child_process';
import { chmod, cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import {
  createBackup,
  createDuUpgrade,
  createHost,
  createPush,
  createSshCredential,
  deleteBackup,
  deleteImage,
  finishDuUpgrade,
  getClusterDefaults,
  getDu,
  getDuUpgrade,
  getJob,
  getRegistry,
  listBackups,
  listDuUpgrades,
  listHosts,
  listImages,
  putRegistry,
  rollBackDuUpgrade,
} from '@airdock/clients/generated/sdk.gen';
import type { DuUpgrade, Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { digestOf } from '@airdock/core/oci/digest';
import { localPushPasswordFile } from '@airdock/registry/engine/local-push';
import { buildDockerArchive, buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { findProgram, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { push, register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { digestAt, namesAt } from '../support/registry.js';

const run = promisify(execFile);

let folder: TempDir;
let du: Du;
let client: Client;
beforeEach(async () => {
  folder = await tempDir('du-upgrade');
});
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du?.output}\n`);
  await du?.stop();
  await folder?.remove();
});

/** A DU with images in its registry, whose backups lie outside of its data. */
async function start(options: Partial<Parameters<typeof Du.start>[0]> = {}): Promise<void> {
  du = await Du.start({
    folder: folder.path,
    registry: { localPush: true },
    airdock: { backupDir: join(folder.path, 'backups'), duVersion: 'v-5.2.0-1500000' },
    ...options,
  });
  client = await du.client();
}
async function pushImages(
  names = ['k8s.gcr.io/pause:3.2', 'quay.io/deep/er/app:v1', 'docker.io/library/nginx:1'],
): Promise<void> {
  const file = join(du.bundleDir, `${names.length}.tar`);
  const images = await Promise.all(
    names.map((name) => makeImage({ name, layers: [{ randomBytes: 400_000, seed: 'base' }, { files: { name } }] })),
  );
  await buildOciArchive(file, images);
  await push(client, await register(client, file));
}
const content = async (port = du.registryPort): Promise<Record<string, string | undefined>> =>
  Object.fromEntries(await Promise.all((await namesAt(port)).map(async (name) => [name, await digestAt(port, name)])));
/** The registry's program of a new release: the one that is there, under another name and number. */
async function newEngine(
  version = '2.9.9',
  serve = `exec ${findProgram('docker-registry')} "$@"`,
): Promise<{ binary: string; digest: string }> {
  const path = join(du.bundleDir, `registry-${version}`);
  const script = `#!/bin/sh\nif [ "$1" = --version ]; then echo "registry github.com/docker/distribution ${version}"; exit; fi\n${serve}\n`;
  await writeFile(path, script);
  await chmod(path, 0o755);
  return { binary: path, digest: digestOf(Buffer.from(script)) };
}
const begin = async (body: object): Promise<Job> =>
  (await createDuUpgrade({ client, body: { toVersion: 'v-5.3.0-1558488', ...body } as never, throwOnError: true }))
    .data;
const upgradeOf = async (job: Job): Promise<DuUpgrade> =>
  (await getDuUpgrade({ client, path: { id: resourceId(job) }, throwOnError: true })).data;
const registry = async () => (await getRegistry({ client, throwOnError: true })).data;
/** What an operator's `docker push` begins with. */
const pushed = async (port: number) => {
  const password = (await readFile(localPushPasswordFile(du.dataDir), 'utf8')).trim();
  const authorization = `Basic ${Buffer.from(`airdock:${password}`).toString('base64')}`;
  return fetch(`http://localhost:${port}/v2/new/blobs/uploads/`, { method: 'POST', headers: { authorization } });
};

const version = async () => {
  const [{ data: du }, { data: defaults }] = await Promise.all([
    getDu({ client, throwOnError: true }),
    getClusterDefaults({ client, throwOnError: true }),
  ]);
  return [du.version, du.movesClusters, defaults.duVersion, defaults.movesExistingClusters];
};
const [before52, after53] = [
  ['v-5.2.0-1500000', false, 'v-5.2.0-1500000', false],
  ['v-5.3.0-1558488', true, 'v-5.3.0-1558488', true],
];

describe('an upgrade of the DU', () => {
  it('replaces the engine, keeps every image, and lets hosts pull all the while', async () => {
    await start();
    await pushImages();
    const before = await content();
    const pulls = { done: 0, failed: 0 };
    const stop = new AbortController();
    const puller = (async () => {
      const [name] = Object.keys(before);
      while (!stop.signal.aborted) {
        const digest = await digestAt(du.registryPort, name ?? '').catch(() => undefined);
        if (digest === before[name ?? '']) pulls.done += 1;
        else pulls.failed += 1;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    })();
    const engine = await newEngine();
    const dry = await endOf(client, (await begin({ engine, dryRun: true })).id);
    expect(dry.state).toBe('succeeded');
    expect(await upgradeOf(dry)).toMatchObject({
      phase: 'preflight',
      problems: expect.arrayContaining([
        expect.objectContaining({
          check: 'engine',
          detail: `the registry becomes one of unknown version: ${engine.digest}`,
        }),
      ]),
    });
    expect((await registry()).engine?.version).not.toBe('2.9.9');
    expect(await version()).toEqual(before52);

    const job = await success(client, await begin({ engine }));
    stop.abort();
    await puller;
    expect(await upgradeOf(job)).toMatchObject({
      phase: 'done',
      error: null,
      report: { images: Object.keys(before).length, missing: [], changed: [], restored: false, engineVersion: '2.9.9' },
    });
    expect((await registry()).engine?.version).toBe('2.9.9');
    expect(await content()).toEqual(before);
    expect(pulls.done).toBeGreaterThan(20);
    // Only while the read-only engine itself is being replaced nobody can answer.
    expect(pulls.failed).toBeLessThan(pulls.done);
    await pushImages(['quay.io/after/wards:1']);
    expect(await version()).toEqual(after53);
    const backup = await success(client, (await createBackup({ client, body: {}, throwOnError: true })).data);
    const record = await readFile(join(folder.path, 'backups/backups', `${resourceId(backup)}.json`), 'utf8');
    expect(JSON.parse(record)).toMatchObject({ duVersion: 'v-5.3.0-1558488' });
    await du.end();
    await du.startProcess();
    expect(await version()).toEqual(after53);
    expect((await registry()).engine?.version).toBe('2.9.9');
    // The file says something new.
    await du.end();
    await writeFile(
      du.configFile,
      (await readFile(du.configFile, 'utf8')).replace('v-5.2.0-1500000', 'v-5.4.0-1600000'),
    );
    await du.startProcess();
    expect((await version())[0]).toBe('v-5.4.0-1600000');
    expect((await readdir(du.dataDir)).includes('du-upgrade.json')).toBe(false);
  });

  it('that is prepared keeps pushes away with 503 and a time, hosts go on, also over a restart, and is finished or rolled back', async () => {
    await start();
    await pushImages();
    const before = await content();
    const job = await success(client, await begin({ step: 'prepare' }));
    const prepared = await upgradeOf(job);
    expect(prepared.phase).toBe('prepared');
    for (const round of ['before', 'after a restart']) {
      const answer = await pushed(du.registryPort);
      expect(
        [
          answer.status,
          answer.headers.get('retry-after'),
          ((await answer.json()) as { errors: { code: string }[] }).errors[0]?.code,
        ],
        round,
      ).toEqual([503, '30', 'UNAVAILABLE']);
      expect(await content()).toEqual(before);
      expect(await content()).toEqual(before);
      expect(await registry()).toMatchObject({ fence: { upgradeId: prepared.id } });
      const bundleId = await register(client, join(du.bundleDir, '3.tar'));
      await expect(createPush({ client, body: { bundleId }, throwOnError: true })).rejects.toMatchObject({
        code: 'registry_fenced',
        status: 503,
      });
      const { data: images } = await listImages({ client, throwOnError: true });
      await expect(
        deleteImage({ client, path: { id: images.items[0]?.id ?? '' }, throwOnError: true }),
      ).rejects.toMatchObject({ code: 'registry_fenced' });
      expect((await success(client, createBackup({ client, body: {}, throwOnError: true }))).result).toMatchObject({
        addedBytes: 0,
      });
      await expect(
        deleteBackup({ client, path: { id: prepared.backupId ?? '' }, throwOnError: true }),
      ).rejects.toMatchObject({ code: 'resource_in_use' });
      await expect(begin({})).rejects.toMatchObject({ code: 'du_upgrade_running' });
      if (round !== 'before') break;
      await du.end('SIGKILL');
      await du.startProcess();
      await waitFor(async () => (await pushed(du.registryPort).catch(() => undefined))?.status === 503, {
        what: 'the fence to be up again',
        timeoutMs: 20_000,
      });
    }
    await success(client, rollBackDuUpgrade({ client, path: { id: prepared.id }, throwOnError: true }));
    expect((await upgradeOf(job)).phase).toBe('rolledBack');
    expect(await version()).toEqual(before52);
    expect((await pushed(du.registryPort)).status).toBe(202);
    // A file of an upgrade that cannot be read, or has nothing in it, is not taken for none.
    const file = join(du.dataDir, 'du-upgrade.json');
    for (const make of [() => mkdir(file), () => writeFile(file, ''), () => writeFile(file, '{"id"')]) {
      await make();
      await expect(begin({})).rejects.toMatchObject({ code: 'du_upgrade_file_unreadable', status: 409 });
      await rm(file, { recursive: true });
    }
    await expect(
      finishDuUpgrade({ client, path: { id: prepared.id }, body: {}, throwOnError: true }),
    ).rejects.toMatchObject({ code: 'du_upgrade_state' });

    const second = await success(client, await begin({ step: 'prepare' }));
    await success(
      client,
      finishDuUpgrade({
        client,
        path: { id: resourceId(second) },
        body: { engine: await newEngine() },
        throwOnError: true,
      }),
    );
    expect(await upgradeOf(second)).toMatchObject({
      phase: 'done',
      report: { restored: false, engineVersion: '2.9.9' },
    });
    expect(await content()).toEqual(before);
    expect((await getDu({ client, throwOnError: true })).data.upgradeId).toBeNull();
  });

  it('that loses the images, and all tables, in the middle brings them back from what lies on disk', async () => {
    await start();
    await pushImages();
    const { data: credential } = await createSshCredential({
      client,
      body: { name: 'root', username: 'root', password: 'sesame' },
      throwOnError: true,
    });
    await createHost({
      client,
      body: {
        name: 'node-1',
        address: '127.0.0.1',
        credentialId: credential.id,
        hostKey: 'SHA256:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopq',
      } as never,
      throwOnError: true,
    });
    const before = await content();
    const { data: images } = await listImages({ client, throwOnError: true });
    const job = await success(client, await begin({ step: 'prepare' }));
    await du.stop();
    for (const name of ['db', 'registry', 'image', 'redis'])
      await rm(join(du.dataDir, name), { recursive: true, force: true });
    await du.startProcess();
    expect(await content()).toEqual({});
    const found = await waitFor(async () => (await listDuUpgrades({ client, throwOnError: true })).data.items[0], {
      what: 'the upgrade to be found in its file',
    });
    expect(found).toMatchObject({ id: resourceId(job), phase: 'prepared' });
    await success(client, finishDuUpgrade({ client, path: { id: found.id }, body: {}, throwOnError: true }));
    expect(await upgradeOf(job)).toMatchObject({ phase: 'done', report: { restored: true, missing: [], changed: [] } });
    expect(await content()).toEqual(before);
    const { data: again } = await listImages({ client, throwOnError: true });
    expect(again.items.map(({ upstream, digest }) => ({ upstream, digest }))).toEqual(
      images.items.map(({ upstream, digest }) => ({ upstream, digest })),
    );
    expect((await listHosts({ client, throwOnError: true })).data.items.map(({ name }) => name)).toEqual(['node-1']);
  });

  it('is finished on a bare machine that has the configuration, the keys and the backups', async () => {
    await start();
    await pushImages();
    const before = await content();
    await success(client, createBackup({ client, body: {}, throwOnError: true }));
    await du.stop();
    const keys = ['secrets.key', 'signing.key'];
    for (const key of keys) await cp(join(du.dataDir, key), join(folder.path, key));
    await rm(du.dataDir, { recursive: true });
    await mkdir(du.dataDir);
    for (const key of keys) await cp(join(folder.path, key), join(du.dataDir, key));
    await du.startProcess();
    client = await du.client();
    const backup = await waitFor(async () => (await listBackups({ client, throwOnError: true })).data.items[0], {
      what: 'the backup to be found',
    });
    const job = await success(client, await begin({ step: 'finish', backupId: backup.id }));
    expect(await upgradeOf(job)).toMatchObject({ phase: 'done', report: { restored: true, missing: [] } });
    expect(await content()).toEqual(before);
    expect((await listImages({ client, throwOnError: true })).data.items).toHaveLength(3);
  });

  it('takes the engine out of an image file, and is rolled back when that does not run', async () => {
    await start();
    await pushImages();
    const before = await content();
    const { binary, digest } = await newEngine('2.7.7');
    const script = await readFile(binary, 'utf8');
    const image = join(du.bundleDir, 'registry-image.tar');
    await buildDockerArchive(image, [
      await makeImage({
        name: 'registry:2',
        layers: [{ files: { 'etc/a': 'b' } }, { files: { 'bin/registry': script } }, { files: { 'etc/c': 'd' } }],
      }),
    ]);
    const good = await success(client, await begin({ engine: { image, digest } }));
    expect(await upgradeOf(good)).toMatchObject({ phase: 'done', report: { engineVersion: '2.7.7' } });

    const broken = await endOf(client, (await begin({ engine: await newEngine('3.0.0', 'exit 1') })).id);
    expect(broken).toMatchObject({
      state: 'failed',
      error: { code: 'du_upgrade_rolled_back', detail: expect.stringContaining('registry_start_failed') },
    });
    expect(await upgradeOf(broken)).toMatchObject({
      phase: 'rolledBack',
      error: { code: 'registry_start_failed' },
      report: { missing: [] },
    });
    expect((await registry()).engine?.version).toBe('2.7.7');
    expect(await content()).toEqual(before);
    expect((await pushed(du.registryPort)).status).toBe(202);
    await expect(begin({ engine: { binary: '/bin/sh', digest } })).rejects.toMatchObject({
      code: 'bundle_path_forbidden',
    });
    await expect(begin({ engine: { binary: 'none', digest } })).rejects.toMatchObject({ code: 'bundle_not_found' });
  });

  it('is refused for older versions, and has nothing to carry while the registry is off, which may be on afterwards', async () => {
    await start({ privateRegistryType: 'none' });
    const older = await endOf(client, (await begin({ toVersion: 'v-5.1.0-1' })).id);
    expect(older).toMatchObject({ state: 'failed', error: { code: 'du_upgrade_preflight_failed' } });
    expect((await upgradeOf(older)).phase).toBe('refused');
    const off = await success(client, await begin({}));
    expect(await upgradeOf(off)).toMatchObject({ phase: 'done', backupId: null });
    await success(client, putRegistry({ client, body: { mode: 'local' }, throwOnError: true }));
    await pushImages();
    expect((await upgradeOf(await success(client, await begin({})))).backupId).not.toBeNull();
  });

  it('is refused while its backup has no room, or no place', async () => {
    const small = join(folder.path, 'small');
    await mkdir(small);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', small]);
    try {
      await start({ airdock: { backupDir: small } });
      await pushImages();
      for (const [change, detail] of [
        [{}, 'are free at the backup target default'],
        [{ backupTarget: 'nowhere' }, 'there is no backup target nowhere'],
      ] as const) {
        const refused = await endOf(client, (await begin(change)).id);
        expect(refused).toMatchObject({
          state: 'failed',
          error: { code: 'du_upgrade_preflight_failed', detail: expect.stringContaining(detail) },
        });
        expect(await upgradeOf(refused)).toMatchObject({ phase: 'refused', backupId: null });
      }
      expect((await pushed(du.registryPort)).status).toBe(202);
    } finally {
      await du.stop();
      await run('umount', ['-l', small]);
    }
  });

  const phases = ['preflight', 'backup', 'fence', 'finalBackup', 'engine', 'migrate', 'restore', 'compare', 'open'];
  it.each(phases)('that is killed at %s goes on, and loses nothing', async (phase) => {
    await start();
    await pushImages();
    const before = await content();
    const file = join(du.dataDir, 'du-upgrade.json');
    const job = await begin({ engine: await newEngine() });
    // The last phases may be over between two looks; then it is killed a little later.
    let seen = '';
    const reached = async () => {
      const now = /"phase": "(\w+)"/.exec(await readFile(file, 'utf8').catch(() => ''))?.[1];
      const isOver = seen !== '' && now === undefined;
      seen = now ?? seen;
      return isOver || phases.indexOf(seen) >= phases.indexOf(phase);
    };
    await waitFor(reached, { what: `the phase ${phase}`, intervalMs: 1, timeoutMs: 90_000 });
    await du.end('SIGKILL');
    // What was there is there at once, for the hosts.
    expect(await content().catch(() => before)).toEqual(before);
    await du.startProcess();
    const end = await waitFor(
      async () => {
        const { data } = await getJob({ client, path: { id: job.id }, throwOnError: true });
        return data.finishedAt ? data : undefined;
      },
      { what: 'the upgrade to end', timeoutMs: 90_000 },
    );
    expect(end.error).toBeNull();
    expect((await upgradeOf(job)).phase).toBe('done');
    expect(await content()).toEqual(before);
    expect((await registry()).fence).toBeNull();
  });
});
