import { randomUUID } from 'node:crypto';
import { mkdir, open, rename, rm, statfs } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { addAbortSignal, type Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { DirectFile } from './direct-file.js';

/** How a file is written before it takes its place. */
export interface DurableOptions {
  signal?: AbortSignal | undefined;
  /** Where the unfinished file lies; must be on the same file system. Default: beside the file. */
  tmpDir?: string | undefined;
}

/**
 * Writes a file so that it is either there in full, also after a power cut, or not there at all: temporary file, fsync,
 * rename, fsync of the folder. Destroys the stream. Removes the temporary file when it fails; a killed process leaves a
 * `.part` file. Throws `space_insufficient`, the signal's reason, and what the stream throws.
 */
export async function writeDurably(
  path: string,
  content: Readable | Uint8Array,
  { signal, tmpDir = dirname(path) }: DurableOptions = {},
): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await mkdir(tmpDir, { recursive: true });
  const tmp = join(tmpDir, `${basename(path)}.${randomUUID()}.part`);
  try {
    if (content instanceof Uint8Array) await writeSmall(tmp, content);
    else await writeStream(tmp, content, signal);
    await rename(tmp, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(tmp, { force: true });
    signal?.throwIfAborted();
    throw diskError(error, path);
  }
}

async function writeSmall(path: string, content: Uint8Array): Promise<void> {
  const file = await open(path, 'wx', 0o644);
  try {
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function writeStream(path: string, content: Readable, signal: AbortSignal | undefined): Promise<void> {
  // An abort before the first read would be an error that nobody hears, which ends the process; reading throws it.
  content.on('error', () => undefined);
  if (signal) addAbortSignal(signal, content);
  const file = await DirectFile.create(path);
  try {
    for await (const chunk of content) await file.append(chunk as Buffer);
    await file.finish({ sync: true });
  } finally {
    await file.close();
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

/** What may still be written to the disk of a folder, by somebody who is not root. */
export async function freeBytesOf(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
}

/** A full disk as `space_insufficient`; any other error as it is. */
export function diskError(error: unknown, path: string): unknown {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return error;
  return new AppError(
    'space_insufficient',
    { detail: `the disk of ${dirname(path)} is full`, path: dirname(path) },
    { cause: error },
  );
}

/** False for failures after which an unfinished file is of no use, or in the way: wrong content, and a full disk. */
export const isWorthKeeping = (error: unknown): boolean =>
  !(error instanceof AppError && ['digest_mismatch', 'space_insufficient'].includes(error.code));
