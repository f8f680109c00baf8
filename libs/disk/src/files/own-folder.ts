/**
 * Writing to folders that others can write to as well, such as the storage of a registry that somebody may have taken
 * over, or a backup store on a stick.
 */
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, open, readlink, realpath, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';

/**
 * Makes the folder of `path`, and calls `write` with a path that leads there whatever becomes of the folder's name.
 * Throws where a link below `root` leads to it: whoever made that could have us write, or replace files, anywhere.
 */
export async function writeBelow<T>(root: string, path: string, write: (path: string) => Promise<T>): Promise<T> {
  const folder = dirname(path);
  await mkdir(folder, { recursive: true });
  const handle = await open(folder, constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    const opened = `/proc/self/fd/${handle.fd}`;
    if ((await readlink(opened)) !== join(await realpath(root), relative(root, folder)))
      throw new Error(`${folder} is reached through a link`);
    return await write(join(opened, basename(path)));
  } finally {
    await handle.close();
  }
}

/**
 * Writes a small file as `writeBelow` does. It takes the place of whatever is there in one step, and follows no link.
 */
export const replaceBelow = (root: string, path: string, content: string): Promise<void> =>
  writeBelow(root, path, async (to) => {
    const fresh = `${to}.${randomUUID()}`;
    try {
      await writeFile(fresh, content, { flag: 'wx' });
      await rename(fresh, to);
    } catch (error) {
      // On a full disk each further try would take more of it. What failed first is what is told.
      await rm(fresh, { force: true }).catch(() => undefined);
      throw error;
    }
  });
