import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';

const folder = join(import.meta.dirname, '../../../patches');

it('the patch of ssh2 is its parts, one for each purpose', async () => {
  const name = (await readdir(folder)).find((entry) => /^ssh2@.*\.patch$/.test(entry)) ?? '';
  const parts = join(folder, name.replace(/\.patch$/, ''));
  const texts = await Promise.all((await readdir(parts)).sort().map((part) => readFile(join(parts, part), 'utf8')));
  expect(texts.length).toBeGreaterThan(1);
  expect(await readFile(join(folder, name), 'utf8')).toBe(texts.join(''));
});
