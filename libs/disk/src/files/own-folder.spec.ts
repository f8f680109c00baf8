import { mkdir, readdir, readFile, rename, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { replaceBelow, writeBelow } from './own-folder.js';

let dir: TempDir;
let root: string;
let elsewhere: string;
beforeEach(async () => {
  dir = await tempDir('own-folder');
  [root, elsewhere] = [join(dir.path, 'root'), join(dir.path, 'elsewhere')];
  await mkdir(root);
  await mkdir(elsewhere);
});
afterEach(() => dir.remove());

it('makes the folder, and replaces the file in it in one step, leaving nothing else there', async () => {
  const path = join(root, 'a/b/file');
  for (const content of ['one', 'two']) {
    await replaceBelow(root, path, content);
    expect(await readFile(path, 'utf8')).toBe(content);
    expect(await readdir(join(root, 'a/b'))).toEqual(['file']);
  }
});

it('replaces a link, and not what it leads to', async () => {
  await writeFile(join(elsewhere, 'precious'), 'precious');
  await mkdir(join(root, 'a'));
  await symlink(join(elsewhere, 'precious'), join(root, 'a/file'));
  await replaceBelow(root, join(root, 'a/file'), 'ours');
  expect(await readFile(join(root, 'a/file'), 'utf8')).toBe('ours');
  expect(await readFile(join(elsewhere, 'precious'), 'utf8')).toBe('precious');
});

it.each([
  ['the folder itself', 'file'],
  ['a folder above it', 'b/file'],
])('writes nothing where a link leads to %s', async (_where, name) => {
  await mkdir(join(elsewhere, 'b'));
  await symlink(elsewhere, join(root, 'a'));
  await expect(replaceBelow(root, join(root, 'a', name), 'ours')).rejects.toThrow(
    /ENOTDIR|ELOOP|reached through a link/,
  );
  expect(await readdir(elsewhere, { recursive: true })).toEqual(['b']);
});

it('follows links that lead to the root', async () => {
  const link = join(dir.path, 'link');
  await symlink(root, link);
  await replaceBelow(link, join(link, 'a/file'), 'ours');
  expect(await readFile(join(root, 'a/file'), 'utf8')).toBe('ours');
});

it('goes on in the folder that was opened when a link takes its name meanwhile', async () => {
  await writeBelow(root, join(root, 'a/file'), async (to) => {
    await rename(join(root, 'a'), join(root, 'moved'));
    await symlink(elsewhere, join(root, 'a'));
    await writeFile(to, 'ours');
  });
  expect(await readdir(elsewhere)).toEqual([]);
  expect(await readFile(join(root, 'moved/file'), 'utf8')).toBe('ours');
});

it('leaves no file of its own behind when it cannot replace what is there', async () => {
  await mkdir(join(root, 'a/file'), { recursive: true });
  await expect(replaceBelow(root, join(root, 'a/file'), 'ours')).rejects.toMatchObject({ code: 'EISDIR' });
  expect(await readdir(join(root, 'a'))).toEqual(['file']);
});
