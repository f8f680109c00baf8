import { randomBytes } from 'node:crypto';
import { link, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errnoOf } from '@airdock/core/errno';

/**
 * The text of a file with a secret (0600), made by `make` when there is none. Safe when several processes start at
 * once: whoever comes first has made it for all, and nobody sees a part of it.
 */
export async function readOrMakeOnce(path: string, make: () => string | Promise<string>): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const fresh = `${path}.${randomBytes(4).toString('hex')}`;
  const text = await make();
  try {
    await writeFile(fresh, text, { mode: 0o600 });
    await link(fresh, path).catch((error: unknown) => {
      if (errnoOf(error) !== 'EEXIST') throw error;
    });
  } finally {
    await rm(fresh, { force: true });
  }
  return readFile(path, 'utf8');
}
