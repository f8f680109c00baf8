import type { Stats } from 'node:fs';
import { type FileHandle, realpath } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { openRegularFile } from '@airdock/disk/files/regular-file';

/**
 * Opens a file of a package repository; the caller closes it. Links may lead to other files of the folder, as those of
 * mirrors do, but not out of it: what was opened is looked at, so that one that is changed meanwhile leads nowhere
 * else. Undefined for what is no such file, or cannot be read. `realPath` is below the folder.
 */
export async function openPackageFile(
  folder: string,
  path: string,
): Promise<{ handle: FileHandle; status: Stats; realPath: string } | undefined> {
  if (path.includes('\0')) return undefined;
  try {
    const root = await realpath(folder);
    const file = await realpath(join(root, path));
    return { ...(await openRegularFile(file, { inside: root })), realPath: relative(root, file) };
  } catch {
    return undefined;
  }
}

/** What `openPackageFile` opens, if it has no more than so many bytes. */
export async function readPackageFile(
  folder: string,
  path: string,
  maxBytes: number,
): Promise<{ content: Buffer; status: Stats } | undefined> {
  const file = await openPackageFile(folder, path);
  if (!file) return undefined;
  try {
    if (file.status.size > maxBytes) return undefined;
    // One that grows meanwhile is not followed.
    const content = Buffer.alloc(file.status.size);
    let length = 0;
    while (length < content.length) {
      const { bytesRead } = await file.handle.read(content, length, content.length - length, length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return { content: content.subarray(0, length), status: file.status };
  } finally {
    await file.handle.close();
  }
}
