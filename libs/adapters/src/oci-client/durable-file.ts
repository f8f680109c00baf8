import { randomUUID } from 'node:crypto';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { addAbortSignal, type Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';

export interface DurableOptions {
  signal?: AbortSignal | undefined;
  /** Where the unfinished file lies; must be on the same file system. Default: beside the file. */
  tmpDir?: string | undefined;
}

/**
 * Writes a file so that it is either there in full, also after a power cut, or not there at all: temporary file, fsync, rename, fsync of the
 * folder. Destroys the stream. Removes the temporary file when it fails; a killed process leaves a `.part` file. Throws `space_insufficient`,
 * the signal's reason, and what the stream throws.
 */
export async function writeDurably(path: string, content: Readable | Uint8Array, { signal, tmpDir = dirname(path) }: DurableOptions = {}): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await mkdir(tmpDir, { recursive: true });
  const tmp = join(tmpDir, `${basename(path)}.${randomUUID()}.part`);
  try {
    const file = await open(tmp, 'wx', 0o644);
    try {
      if (!(content instanceof Uint8Array) && signal) addAbortSignal(signal, content);
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(tmp, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(tmp, { force: true });
    signal?.throwIfAborted();
    throw diskError(error, path);
  }
}

/** Makes renames and removals in a folder survive a power cut. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** A full disk as `space_insufficient`; any other error as it is. */
export function diskError(error: unknown, path: string): unknown {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return error;
  return new AppError('space_insufficient', { detail: `the disk of ${dirname(path)} is full`, path: dirname(path) }, { cause: error });
}
