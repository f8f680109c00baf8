import { execFileSync } from 'node:child_process';
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { ensureFolderMark, readFolderMark, whyNotSame, writeFolderMark } from './folder-mark.js';

const name = '.id';
let dir: TempDir;
let folder: string;
beforeEach(async () => {
  dir = await tempDir('folder-mark');
  folder = join(dir.path, 'storage');
});
afterEach(() => dir.remove());

it('gives a folder without an id one, and keeps it from then on', async () => {
  expect(await readFolderMark(folder, name)).toMatchObject({ state: 'absent' });
  await mkdir(folder);
  expect(await readFolderMark(folder, name)).toMatchObject({ state: 'unmarked' });
  const id = await ensureFolderMark(folder, name);
  expect(await ensureFolderMark(folder, name)).toBe(id);
  expect(await readFolderMark(folder, name)).toEqual({ state: 'marked', id });
});

it('makes the folder for an id that is known', async () => {
  await writeFolderMark(folder, name, 'known');
  expect(await readFolderMark(folder, name)).toEqual({ state: 'marked', id: 'known' });
});

it.each(['', '\n', 'two words', '../etc', '-a', 'a'.repeat(65), 'a'.repeat(4096), 'ä'])(
  'takes no other text for an id: %j',
  async (text) => {
    await mkdir(folder);
    await writeFile(join(folder, name), text);
    expect(await readFolderMark(folder, name)).toMatchObject({ state: 'damaged' });
  },
);

it('reads no other file through a link, and waits for no pipe', async () => {
  await mkdir(folder);
  await writeFile(join(dir.path, 'secret'), 'secret');
  await symlink('../secret', join(folder, name));
  execFileSync('mkfifo', [join(folder, 'pipe')]);
  for (const mark of [name, 'pipe']) expect(await readFolderMark(folder, mark)).toMatchObject({ state: 'damaged' });
  const id = await ensureFolderMark(folder, name);
  expect(await readFolderMark(folder, name)).toEqual({ state: 'marked', id });
  expect(await readFile(join(dir.path, 'secret'), 'utf8')).toBe('secret');
});

it('gives no id to a folder that cannot be looked at', async () => {
  await writeFile(folder, 'a file');
  const below = join(folder, 'sub');
  expect(await readFolderMark(below, name)).toMatchObject({
    state: 'unreadable',
    why: expect.stringContaining('ENOTDIR'),
  });
  await expect(ensureFolderMark(below, name)).rejects.toThrow('cannot be looked at (ENOTDIR)');
});

it('tells why a folder is not the one that is known', () => {
  expect(whyNotSame('a', { state: 'marked', id: 'a' })).toBeUndefined();
  expect(whyNotSame('a', { state: 'marked', id: 'b' })).toContain('b');
  expect(whyNotSame('a', { state: 'absent', why: 'there is no such folder' })).toBe('there is no such folder');
});
