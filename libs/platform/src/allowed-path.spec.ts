import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tempDir } from '@airdock/testing/servers';
import { expect, it } from 'vitest';
import { allowedPath } from './allowed-path.js';

it('tells a file that cannot be reached from one that is not there, inside of the folders only', async () => {
  await using dir = await tempDir('allowed');
  const folder = join(dir.path, 'bundles');
  await mkdir(folder);
  await writeFile(join(folder, 'there'), '');
  // Each leads to the other.
  await symlink('b', join(folder, 'a'));
  await symlink('a', join(folder, 'b'));
  await symlink('x', join(dir.path, 'x'));
  const look = (path: string) => allowedPath([folder], path);
  expect(await look('there')).toEqual({ path: join(folder, 'there') });
  expect(await look('none')).toEqual({ refusal: 'missing' });
  expect(await look('there/below')).toEqual({ refusal: 'missing' });
  expect(await look('a')).toEqual({ refusal: 'unreadable', why: 'ELOOP' });
  expect(await look(join(dir.path, 'x'))).toEqual({ refusal: 'forbidden' });
  expect(await look('../x')).toEqual({ refusal: 'forbidden' });
});
