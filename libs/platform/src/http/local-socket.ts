import { chmodSync, chownSync, lstatSync, mkdirSync, readFileSync, rmSync, type Stats } from 'node:fs';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { errnoOf } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';
import { assertSafeParents } from '../secret-file.js';

/** sun_path of unix(7) has 108 bytes, with its closing zero. */
const maxPathBytes = 107;

/** A Unix socket, and who may open it. */
export interface LocalSocket {
  path: string;
  /** Name or id; default: the group of the process. */
  group?: string | undefined;
}

/**
 * Listens on a Unix socket that its owner and one group can open (0660). What an ended process has left is replaced, as
 * long as it is ours and nobody answers there. Throws `api_socket_refused`, `file_exposed`.
 */
export async function listenLocally(server: Server, { path, group }: LocalSocket): Promise<void> {
  if (Buffer.byteLength(path) > maxPathBytes)
    throw new AppError('api_socket_refused', {
      detail: `${path} has ${Buffer.byteLength(path)} bytes, and a socket may have ${maxPathBytes}; choose a shorter path`,
    });
  const gid = group === undefined ? undefined : groupId(group);
  makeFolder(dirname(path), gid, group);
  assertSafeParents(path);
  await removeStale(path);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject).once('listening', resolve);
      // From the first moment on nobody else can open it: the socket is made before `listen` returns.
      const umask = process.umask(0o177);
      server.listen(path);
      process.umask(umask);
    });
  } catch (cause) {
    throw new AppError('api_socket_refused', { detail: `${path}: ${errnoOf(cause) || 'failed'}` }, { cause });
  }
  const uid = process.getuid?.() ?? 0;
  try {
    if (gid !== undefined) chownSync(path, uid, gid);
    chmodSync(path, 0o660);
  } catch (cause) {
    server.close();
    throw new AppError(
      'api_socket_refused',
      { detail: `${path} cannot be given to group ${group ?? 'of the process'}` },
      { cause },
    );
  }
}

/**
 * Folders that are made for the socket let its group in, whatever the umask; those that are there are somebody's who
 * knows why they are as they are.
 */
function makeFolder(folder: string, gid: number | undefined, group: string | undefined): void {
  const top = mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (top === undefined) return;
  try {
    for (let made = folder; made.length >= top.length; made = dirname(made)) {
      if (gid !== undefined) chownSync(made, process.getuid?.() ?? 0, gid);
      chmodSync(made, 0o750);
    }
  } catch (cause) {
    throw new AppError(
      'api_socket_refused',
      { detail: `${folder} cannot be given to group ${group ?? 'of the process'}` },
      { cause },
    );
  }
}

async function removeStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (!found) return;
  if (!found.isSocket())
    throw new AppError('api_socket_refused', { detail: `${path} is no socket; remove it, if nobody needs it` });
  if (found.uid !== process.getuid?.())
    throw new AppError('api_socket_refused', {
      detail: `${path} belongs to user ${found.uid}; find out who made it, and remove it`,
    });
  if (await isAnswering(path))
    throw new AppError('api_socket_refused', { detail: `another process listens on ${path}; stop it` });
  // Nobody but us can have put another one there meanwhile: it is ours, and so is the folder.
  if (isSame(found, lstatSync(path, { throwIfNoEntry: false }))) rmSync(path);
}

const isSame = (one: Stats, other: Stats | undefined): boolean =>
  other !== undefined && one.ino === other.ino && one.dev === other.dev;

/** Whether somebody listens on a Unix socket, if only to take no more connections. */
export function isAnswering(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.once('connect', () => end(true));
    // EAGAIN: the queue of connections that wait is full.
    socket.once('error', (error: NodeJS.ErrnoException) => end(error.code === 'EAGAIN'));
    // Somebody is there who does not accept.
    socket.setTimeout(2_000, () => end(true));
  });
}

/** Throws `api_socket_refused`. */
function groupId(group: string): number {
  if (/^\d+$/.test(group)) return Number(group);
  const line = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith(`${group}:`));
  const id = Number(line?.split(':')[2]);
  if (!line || !Number.isInteger(id))
    throw new AppError('api_socket_refused', {
      detail: `there is no group ${group}; make it, e.g. groupadd --system ${group}`,
    });
  return id;
}
