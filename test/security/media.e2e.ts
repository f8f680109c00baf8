/**
 * What lies on a disk that somebody carried in: parts and layouts that lead out of it, pipes that hold who opens them,
 * and programs that want to be run.
 */
import { execFile } from 'node:child_process';
import { chmod, mkdir, readdir, readFile, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import {
  createBundle,
  createDuUpgrade,
  createPush,
  deleteBundle,
  getBundle,
  getDuUpgrade,
} from '@airdock/clients/generated/sdk.gen';
import type { Job } from '@airdock/clients/generated/types.gen';
import type { Client } from '@airdock/clients/service-clients';
import { digestOf } from '@airdock/core/oci/digest';
import { buildDockerArchive, buildOciLayout, makeImage } from '@airdock/testing/bundles';
import { type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { carryIn } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { endOf, resourceId, success } from '../support/jobs.js';
import { upload } from '../support/upload.js';

const run = promisify(execFile);
let folder: TempDir;
let du: Du;
let client: Client;
beforeAll(async () => {
  folder = await tempDir('media');
  du = await Du.start({ folder: folder.path, registry: { minFreeBytes: 0 } });
  client = await du.client();
});
afterEach(({ task }) => {
  if (task.result?.state === 'fail') process.stderr.write(`${du.output}\n`);
});
afterAll(async () => {
  await du?.stop();
  await folder?.remove();
});

const file = (name: string) => join(du.bundleDir, name);
/** How a request ends that registers a file: refused, or with its job. */
const registering = async (path: string): Promise<string> => {
  try {
    const { data } = await createBundle({ client, body: { path }, throwOnError: true });
    const job = await endOf(client, data.id);
    const { data: bundle } = await getBundle({ client, path: { id: resourceId(job) }, throwOnError: true });
    return `${job.error?.code ?? job.state}, ${bundle.sizeBytes} bytes`;
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
};

describe('M2: parts of a bundle', () => {
  it('that lead out of their folder are not read', async () => {
    const secret = join(folder.path, 'shadow');
    await writeFile(secret, 'x'.repeat(681));
    await writeFile(file('p.tar.aa'), Buffer.alloc(1024));
    await symlink(secret, file('p.tar.ab'));
    expect(await registering('p.tar.aa')).toBe('bundle_unsafe');
    await mkdir(file('inner'));
    await mkdir(join(folder.path, 'elsewhere'));
    for (const part of ['aa', 'ab'])
      await writeFile(join(folder.path, 'elsewhere', `l.tar.${part}`), Buffer.alloc(1024));
    await symlink(join(folder.path, 'elsewhere'), file('inner/link'));
    expect(await registering('inner/link/l.tar.aa')).toBe('bundle_path_forbidden');
  });

  it('that are pipes or devices hold nobody', async () => {
    for (const name of ['q', 'r', 's', 't']) {
      await writeFile(file(`${name}.tar.aa`), Buffer.alloc(1024));
      await run('mkfifo', [file(`${name}.tar.ab`)]);
      expect(await registering(`${name}.tar.aa`)).toBe('bundle_unsafe');
    }
    await writeFile(file('u.tar.aa'), Buffer.alloc(1024));
    await run('mknod', [file('u.tar.ab'), 'c', '1', '5']);
    expect(await registering('u.tar.aa')).toBe('bundle_unsafe');
    expect(await carryIn(client, du, { images: ['k8s.gcr.io/pause:3.2'] })).toMatch(/^[0-9a-f-]{36}$/);
  });

  it('of a layout are files of the layout', async () => {
    const image = await makeImage({ name: 'quay.io/a:1', layers: [{ randomBytes: 1000 }] });
    for (const [name, put] of [
      ['fifo', (path: string) => run('mkfifo', [path])],
      ['link', (path: string) => symlink(join(folder.path, 'shadow'), path)],
    ] as const) {
      await buildOciLayout(file(name), [image]);
      const blobs = join(file(name), 'blobs/sha256');
      for (const blob of await readdir(blobs)) {
        await rm(join(blobs, blob));
        await put(join(blobs, blob));
      }
      expect(await registering(name)).toMatch(/^bundle_unsafe/);
    }
  });
});

describe('M11: an upload that is a bundle', () => {
  it('stays, however old it is; one that nobody went on with goes', async () => {
    const source = join(folder.path, 'uploaded.tar');
    await buildDockerArchive(source, [
      await makeImage({ name: 'quay.io/kept:1', layers: [{ randomBytes: 50_000, seed: 'kept' }] }),
    ]);
    const token = await du.token();
    const uploadId = await upload(du.url, token, source);
    const abandoned = await upload(du.url, token, source);
    const bundle = resourceId(await success(client, createBundle({ client, body: { uploadId }, throwOnError: true })));
    const uploads = join(du.dataDir, 'image/uploads');
    const old = new Date(Date.now() - 8 * 24 * 3600_000);
    for (const id of [uploadId, abandoned]) {
      const state = JSON.parse(await readFile(join(uploads, `${id}.json`), 'utf8')) as object;
      await writeFile(join(uploads, `${id}.json`), JSON.stringify({ ...state, creation_date: old.toISOString() }));
      // The time of a bundle's file is part of what it is known by.
      if (id === abandoned) await utimes(join(uploads, id), old, old);
    }
    await du.end();
    await du.startProcess();
    client = await du.client();
    await waitFor(async () => !(await readdir(uploads)).includes(abandoned), {
      what: 'the abandoned upload to be removed',
      timeoutMs: 30_000,
    });
    expect(await readdir(uploads)).toContain(uploadId);
    expect(await success(client, createPush({ client, body: { bundleId: bundle }, throwOnError: true }))).toMatchObject(
      { state: 'succeeded' },
    );
    await deleteBundle({ client, path: { id: bundle }, throwOnError: true });
    expect(await readdir(uploads)).not.toContain(uploadId);
  });
});

describe('H5: a program of an upgrade', () => {
  const begin = async (body: object): Promise<Job> =>
    endOf(
      client,
      (await createDuUpgrade({ client, body: { toVersion: 'v-5.4.0', ...body } as never, throwOnError: true })).data.id,
    );
  const exists = (path: string) =>
    stat(path).then(
      () => true,
      () => false,
    );
  /** A program that tells that it was run. */
  async function program(name: string): Promise<{ marker: string; path: string; script: string }> {
    const marker = join(folder.path, `${name}-was-run`);
    const script = `#!/bin/sh\nid >'${marker}'\necho v9.9.9\n`;
    await writeFile(file(name), script);
    await chmod(file(name), 0o755);
    return { marker, path: name, script };
  }

  it('is not run by a dry run, by itself or in an image', async () => {
    const { marker, path, script } = await program('registry');
    await buildDockerArchive(file('eng.tar'), [
      await makeImage({ name: 'registry:2', layers: [{ files: { 'bin/registry': script } }] }),
    ]);
    for (const engine of [{ binary: path }, { image: 'eng.tar' }]) {
      const job = await begin({ engine, dryRun: true });
      expect({ run: await exists(marker) }).toEqual({ run: false });
      const { data: upgrade } = await getDuUpgrade({ client, path: { id: resourceId(job) }, throwOnError: true });
      expect(upgrade.problems?.find(({ check }) => check === 'engine')?.detail).toContain(
        digestOf(Buffer.from(script)),
      );
    }
    expect(await readdir(join(du.dataDir, 'registry/engines'))).toEqual([]);
  });

  it('is not run when it is another one than was asked for, nor asked for by its name alone', async () => {
    const { marker, path, script } = await program('registry-new');
    await expect(begin({ engine: { binary: path } })).rejects.toMatchObject({ code: 'du_engine_digest_missing' });
    await buildDockerArchive(file('eng2.tar'), [
      await makeImage({ name: 'registry:2', layers: [{ files: { 'bin/registry': script } }] }),
    ]);
    for (const engine of [{ binary: path }, { image: 'eng2.tar' }]) {
      const job = await begin({ engine: { ...engine, digest: `sha256:${'0'.repeat(64)}` } });
      expect(job).toMatchObject({ state: 'failed', error: { code: 'du_upgrade_preflight_failed' } });
      expect(await exists(marker)).toBe(false);
    }
    await symlink('/bin/sh', file('registry-link'));
    await expect(
      begin({ engine: { binary: 'registry-link', digest: `sha256:${'0'.repeat(64)}` } }),
    ).rejects.toMatchObject({ code: 'bundle_path_forbidden' });
  });
});
