import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { readOrMakeOnce } from './made-once.js';

let dir: TempDir;
let folder: string;
let path: string;
beforeEach(async () => {
  dir = await tempDir('made-once');
  folder = join(dir.path, 'keys');
  path = join(folder, 'token');
});
afterEach(() => dir.remove());

it('makes a file that only its owner reads, and the folder, once', async () => {
  expect(await readOrMakeOnce(path, () => 'one')).toBe('one');
  expect(await readOrMakeOnce(path, () => 'two')).toBe('one');
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  expect((await stat(folder)).mode & 0o777).toBe(0o700);
  expect(await readdir(folder)).toEqual(['token']);
});

it('makes nothing where there is a file', async () => {
  await mkdir(folder);
  await writeFile(path, 'given');
  const make = () => expect.unreachable() as never;
  expect(await readOrMakeOnce(path, make)).toBe('given');
});

it('gives all who come at once what the first one has made', async () => {
  // Nobody writes before all have looked and begun to make one.
  let begun = 0;
  let go = (): void => undefined;
  const all = new Promise<void>((resolve) => {
    go = resolve;
  });
  const made = Array.from({ length: 10 }, (_, index) =>
    readOrMakeOnce(path, async () => {
      if (++begun === 10) go();
      await all;
      return `${index}`;
    }),
  );
  const seen = new Set(await Promise.all(made));
  expect([...seen]).toEqual([await readFile(path, 'utf8')]);
  expect(await readdir(folder)).toEqual(['token']);
});

it('leaves nothing behind when it cannot be made, and makes it the next time', async () => {
  const failed = new Error('no entropy');
  await expect(readOrMakeOnce(path, () => Promise.reject(failed))).rejects.toBe(failed);
  expect(await readdir(folder)).toEqual([]);
  expect(await readOrMakeOnce(path, () => 'one')).toBe('one');
});
