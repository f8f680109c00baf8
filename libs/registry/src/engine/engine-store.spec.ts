import { mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { digestHex, digestOf } from '@airdock/core/oci/digest';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { inspectEngine, installEngine } from './engine-store.js';

const program = Buffer.from('\x7fELF … github.com/distribution v2.8.2+unknown …');
const digest = digestOf(program);

let dir: TempDir;
let folder: string;
let path: string;
beforeEach(async () => {
  dir = await tempDir('engine-store');
  folder = join(dir.path, 'engines');
  path = join(dir.path, 'registry');
  await writeFile(path, program);
});
afterEach(() => dir.remove());

describe('inspectEngine', () => {
  it('says digest and version of a program, and leaves nothing behind', async () => {
    expect(await inspectEngine({ kind: 'program', path }, { folder })).toEqual({
      path: expect.any(String) as string,
      digest,
      version: '2.8.2',
    });
    expect(await readdir(folder)).toEqual([]);
  });

  it('says no version where it sees none', async () => {
    await writeFile(path, 'v2.8.2');
    expect(await inspectEngine({ kind: 'program', path }, { folder })).toMatchObject({ version: undefined });
  });
});

describe('installEngine', () => {
  const install = (wanted = digest, signal?: AbortSignal) =>
    installEngine({ kind: 'program', path }, { folder, name: 'registry', digest: wanted, ...(signal && { signal }) });

  it('puts a copy where everybody can run it and nobody change it, under a name with its digest', async () => {
    const installed = await install();
    expect(installed).toBe(join(folder, `registry-${digestHex(digest).slice(0, 12)}`));
    expect(await readFile(installed)).toEqual(program);
    expect((await stat(installed)).mode & 0o777).toBe(0o555);
    expect((await stat(folder)).mode & 0o777).toBe(0o700);
    expect(await readdir(folder)).toHaveLength(1);
  });

  it('does the same again where it is there already', async () => {
    const first = await install();
    expect(await install()).toBe(first);
    expect(await readdir(folder)).toHaveLength(1);
  });

  it('takes no program with another digest, says which it has, and leaves nothing to be run', async () => {
    await expect(install(digestOf('another'))).rejects.toMatchObject({
      code: 'du_engine_digest_wrong',
      details: { actual: digest },
    });
    expect(await readdir(folder)).toEqual([]);
  });

  it.each([
    ['a link', async () => symlink(path, `${path}.link`)],
    ['a folder', async () => mkdir(`${path}.link`)],
  ])('takes no %s', async (_, make) => {
    await make();
    const file = { kind: 'program' as const, path: `${path}.link` };
    await expect(installEngine(file, { folder, name: 'registry', digest })).rejects.toMatchObject({
      code: 'bundle_unsafe',
    });
    expect(await readdir(folder)).toEqual([]);
  });

  it('ends with the reason of the signal, and leaves nothing', async () => {
    await expect(install(digest, AbortSignal.abort(new Error('over')))).rejects.toThrow('over');
    expect(await readdir(folder)).toEqual([]);
  });
});
