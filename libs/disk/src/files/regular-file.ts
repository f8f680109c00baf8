/**
 * Opens files that others have written: bundles on a stick, backup stores, packages. What is opened is a regular file
 * that lies where its path says, or it is not opened: a link would lead to any file of this machine, a pipe would hold
 * one of the few threads that Node.js has for files, and a device may do anything.
 */
import type { Stats } from 'node:fs';
import { constants } from 'node:fs';
import { type FileHandle, lstat, open, readlink, realpath } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import type { Readable } from 'node:stream';
import { AppError, type ErrorCode } from '@airdock/core/errors';

/** What a file must be to be opened, and which error says that it is not. */
export interface RegularFileOptions {
  /** The folder that it must lie in, however deep. Default: the one that `path` names. */
  inside?: string | undefined;
  /** What is thrown for all else. Default `bundle_unsafe`. */
  code?: ErrorCode | undefined;
  /** Further flags of open(2), such as `O_DIRECT`. */
  flags?: number | undefined;
  /** Of an earlier `identityOf`: another file that has its name now is refused. */
  identity?: string | undefined;
}

/** Of open(2), for what may be anything: no link at its end, no pipe that is waited for, no terminal. */
export const onlyPlain = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY;

/** Tells files apart, whatever they are called. */
export const identityOf = ({ dev, ino }: Pick<Stats, 'dev' | 'ino'>): string => `${dev}:${ino}`;

/**
 * Opens a regular file for reading; the caller closes it. Links are followed at no level below `inside`. Throws
 * `bundle_unsafe`, or the given code, for whatever is no such file, and what open(2) fails with, e.g. `ENOENT`.
 */
export async function openRegularFile(
  path: string,
  { inside, code = 'bundle_unsafe', flags = 0, identity }: RegularFileOptions = {},
): Promise<{ handle: FileHandle; status: Stats }> {
  const refuse = (what: string, cause?: unknown) =>
    new AppError(code, { detail: `${basename(path)} ${what}` }, { cause });
  // The folder may be reached through links of the site's own; from there on there are none.
  const folder = await realpath(inside ?? dirname(path));
  // Opening a device may already do something.
  if (!(await lstat(path)).isFile()) throw refuse('is a link, a pipe, a device or a folder');
  const handle = await open(path, onlyPlain | flags).catch((error: NodeJS.ErrnoException) => {
    throw error.code === 'ELOOP' || error.code === 'ENXIO' ? refuse('is a link or a pipe', error) : error;
  });
  try {
    const status = await handle.stat();
    if (!status.isFile()) throw refuse('is no regular file');
    // What was opened, not what has the name now.
    const real = await readlink(`/proc/self/fd/${handle.fd}`);
    const isThere = inside === undefined ? real === join(folder, basename(path)) : real.startsWith(folder + sep);
    if (!isThere) throw refuse('lies outside of its folder');
    if (identity !== undefined && identity !== identityOf(status)) throw refuse('is another file than before');
    return { handle, status };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** As `lstat`, for what must be a regular file: throws as `openRegularFile`, and does not open it. */
export async function statRegularFile(path: string, code: ErrorCode = 'bundle_unsafe'): Promise<Stats> {
  const status = await lstat(path);
  if (!status.isFile())
    throw new AppError(code, { detail: `${basename(path)} is a link, a pipe, a device or a folder` });
  return status;
}

/**
 * The bytes of a regular file from `start` to `end` (not with it), opened when they are asked for. What goes wrong ends
 * the iteration; a stream is made of it with `Readable.from`.
 */
export async function* readRegularFile(
  path: string,
  { start = 0, end, ...options }: RegularFileOptions & { start?: number; end?: number | undefined } = {},
): AsyncGenerator<Buffer> {
  if (end !== undefined && end <= start) return;
  const { handle } = await openRegularFile(path, options);
  // Closes the handle at its end.
  const content: Readable = handle.createReadStream({
    start,
    ...(end !== undefined && { end: end - 1 }),
    highWaterMark: 1024 * 1024,
  });
  yield* content as AsyncIterable<Buffer>;
}
