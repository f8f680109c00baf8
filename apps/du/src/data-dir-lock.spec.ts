import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { tempDir } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { lockDataDir } from './data-dir-lock.js';

const holder = (dataDir: string) =>
  spawn(
    process.execPath,
    [
      '-e',
      `import('${join(import.meta.dirname, '../dist/data-dir-lock.js')}').then(({ lockDataDir }) => { lockDataDir('${dataDir}'); console.log('held'); setInterval(() => {}, 1000); })`,
    ],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );

describe('lockDataDir', () => {
  it('lets one process at a time in, and the next one after it was killed', async () => {
    const folder = await tempDir('lock');
    const other = holder(folder.path);
    await once(other.stdout, 'data');
    expect(() => lockDataDir(folder.path)).toThrowError(AppError);
    other.kill('SIGKILL');
    await once(other, 'exit');
    const giveBack = lockDataDir(folder.path);
    expect(await readdir(folder.path)).toEqual(['du.lock']);
    giveBack();
    expect(await readdir(folder.path)).toEqual([]);
    await folder.remove();
  });

  it('takes no lock that cannot be read for one that was given back', async () => {
    await using folder = await tempDir('lock');
    await mkdir(join(folder.path, 'du.lock'));
    expect(() => lockDataDir(folder.path)).toThrow(/cannot be told.*EISDIR/);
    expect(await readdir(folder.path)).toEqual(['du.lock']);
  });
});
