import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname, resolve } from 'node:path';
import { errnoOf } from '@airdock/core/errno';
import { AppError, toProblem } from '@airdock/core/errors';
import { Logger } from '@nestjs/common';

/** A secret of a megabyte is none. */
const maxSecretBytes = 64 * 1024;
const octal = (mode: number): string => (mode & 0o7777).toString(8).padStart(4, '0');
const ownUid = (): number => process.getuid?.() ?? 0;

/**
 * Throws `file_exposed`, with the command that puts it right, as sshd looks at its keys: others may neither own, read
 * nor change the file.
 */
function assertPrivate(path: string, { uid, mode }: Stats): void {
  if (uid !== ownUid() && uid !== 0)
    throw new AppError('file_exposed', { detail: `${path} belongs to user ${uid}; chown ${ownUid()} ${path}`, path });
  if ((mode & 0o077) !== 0)
    throw new AppError('file_exposed', { detail: `${path} has mode ${octal(mode)}; chmod 600 ${path}`, path });
}

/** Tells a secret file from what was there before; empty when it is not there, or cannot be looked at. */
export function secretFileStamp(path: string): string {
  try {
    const { ino, size, mtimeMs, mode, uid } = statSync(path);
    return `${ino} ${size} ${mtimeMs} ${mode} ${uid}`;
  } catch {
    return '';
  }
}

/**
 * Says why a secret file that has changed is not believed, and what to do; for each change once, or every request would
 * say it.
 */
export function warnOfSecretFile(path: string, error: unknown): void {
  const isKnown = error instanceof AppError;
  const code = isKnown ? error.code : errnoOf(error) || 'unreadable';
  const why = isKnown
    ? `${error.message}. ${toProblem(error).nextStep}`
    : `${path} cannot be read (${code}). Put it back, with mode 600, before the next start, which would make another one.`;
  new Logger('secrets').warn({ code, file: path }, `what was read last goes on to count: ${why}`);
}

/**
 * The text of a file that holds a secret, without white space around it. Throws `file_exposed`, and what the file
 * system says.
 */
export function readSecretFile(path: string): string {
  // A pipe put in its place would block for ever.
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile() || stats.size > maxSecretBytes)
      throw new AppError('file_exposed', { detail: `${path} is no file with a secret`, path });
    assertPrivate(path, stats);
    return readFileSync(fd, 'utf8').trim();
  } finally {
    closeSync(fd);
  }
}

/** Writes a complete file (0600) beside `path`, and has `place` put it there; nobody sees a part of it. */
function writeBeside(path: string, text: string, place: (fresh: string) => void): void {
  const fresh = `${path}.${process.pid}.${randomBytes(4).toString('hex')}`;
  const fd = openSync(fresh, 'wx', 0o600);
  try {
    writeSync(fd, `${text}\n`);
    fsyncSync(fd);
    place(fresh);
    const folder = openSync(dirname(path), constants.O_RDONLY);
    fsyncSync(folder);
    closeSync(folder);
  } finally {
    closeSync(fd);
    rmSync(fresh, { force: true });
  }
}

/** Replaces a secret file, at once and for good: after a power cut it holds the old text or the new one. */
export const replaceSecretFile = (path: string, text: string): void =>
  writeBeside(path, text, (fresh) => renameSync(fresh, path));

/**
 * Reads a secret file, making it (0600, with random bytes in `encoding`) if it is not there. Safe when several
 * processes start at once: all read the same content. Throws `file_exposed`.
 */
export function readOrCreateSecretFile(path: string, bytes: number, encoding: 'hex' | 'base64url'): string {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  try {
    return readSecretFile(path);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
  try {
    // A link either makes the complete file or finds another process's complete file.
    writeBeside(path, randomBytes(bytes).toString(encoding), (fresh) => linkSync(fresh, path));
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error;
  }
  return readSecretFile(path);
}

/**
 * Makes the data folder, or looks at the one that is there: nobody else may own it or go into it. What only has too
 * many rights is put right; returns what was done. Throws `file_exposed` when it is another user's, or lies where
 * others could put another one in its place.
 */
export function securePrivateFolder(path: string): string | undefined {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const { uid, mode } = lstatSync(path, { throwIfNoEntry: true }).isSymbolicLink()
    ? lstatSync(`${path}/.`)
    : lstatSync(path);
  if (uid !== ownUid() && uid !== 0)
    throw new AppError('file_exposed', { detail: `${path} belongs to user ${uid}; chown ${ownUid()} ${path}`, path });
  assertSafeParents(path);
  assertSafeParents(realpathSync(path));
  if ((mode & 0o077) === 0 || uid !== ownUid()) return undefined;
  chmodSync(path, mode & 0o700);
  return `${path} had mode ${octal(mode)}, and has ${octal(mode & 0o700)} now: it is nobody else's business`;
}

/**
 * Throws `file_exposed` when somebody else may rename a folder on the way to `path`, also where links on it lead; in a
 * folder like /tmp only owners may.
 */
export function assertSafeParents(path: string): void {
  for (let at = path; ; at = dirname(at)) {
    if (at !== path) assertSafeFolder(at, path);
    if (lstatSync(at, { throwIfNoEntry: false })?.isSymbolicLink())
      assertSafeParents(resolve(dirname(at), readlinkSync(at)));
    if (at === dirname(at)) return;
  }
}

function assertSafeFolder(folder: string, path: string): void {
  const found = statSync(folder, { throwIfNoEntry: false });
  // Whoever may make it was looked at, or is yet to be.
  if (!found) return;
  const { uid, mode } = found;
  if ((uid !== 0 && uid !== ownUid()) || ((mode & 0o022) !== 0 && (mode & 0o1000) === 0))
    throw new AppError('file_exposed', {
      detail: `${folder} (user ${uid}, mode ${octal(mode)}), in which ${path} lies, can be changed by others; chown root ${folder} && chmod go-w ${folder}`,
      path: folder,
    });
}
