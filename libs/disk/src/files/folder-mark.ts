/**
 * Whether the folder that is there is the one that was there before. A disk that is not mounted leaves an empty folder,
 * and another disk may be mounted in its place: so each folder with state has a file with an id, and whoever keeps the
 * state knows the id. Empty is never taken for new where an id is known.
 */

import { randomUUID } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';
import { writeDurably } from './durable-file.js';
import { openRegularFile } from './regular-file.js';

/**
 * absent: no such folder; unmarked: no such file in it; damaged: the file holds no id; unreadable: neither could be
 * told.
 */
export type FolderMark =
  | { state: 'marked'; id: string }
  | { state: 'absent' | 'unmarked' | 'damaged' | 'unreadable'; why: string };

const idPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const maxMarkBytes = 128;

/**
 * Never throws. Whoever else may write to the folder cannot have another file of this machine read: see
 * `openRegularFile`.
 */
export async function readFolderMark(folder: string, name: string): Promise<FolderMark> {
  try {
    await stat(folder);
  } catch (error) {
    return errnoOf(error) === 'ENOENT' ? { state: 'absent', why: 'there is no such folder' } : unreadable(error);
  }
  try {
    const { handle } = await openRegularFile(join(folder, name), { inside: folder });
    try {
      const { buffer, bytesRead } = await handle.read({ buffer: Buffer.alloc(maxMarkBytes), position: 0 });
      const id = buffer.toString('latin1', 0, bytesRead).trim();
      return idPattern.test(id) ? { state: 'marked', id } : { state: 'damaged', why: `its file ${name} holds no id` };
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return { state: 'unmarked', why: `it has no file ${name}` };
    if (error instanceof AppError) return { state: 'damaged', why: `its file ${name} is no plain file` };
    return unreadable(error);
  }
}

const unreadable = (error: unknown): FolderMark => ({
  state: 'unreadable',
  why: `it cannot be looked at (${errnoOf(error) || 'unknown error'})`,
});

/** Why a folder is not the one with the id; undefined when it is. */
export function whyNotSame(id: string, mark: FolderMark): string | undefined {
  if (mark.state !== 'marked') return mark.why;
  return mark.id === id ? undefined : `it has the id ${mark.id}`;
}

/** Makes the folder, and gives it the id. Throws `space_insufficient`, and what the disk throws. */
export async function writeFolderMark(folder: string, name: string, id: string): Promise<void> {
  await writeDurably(join(folder, name), Buffer.from(`${id}\n`));
}

/**
 * The id of a folder of which none is known yet: its own, or one that it gets now. Throws what the disk throws, also
 * when it could not be told.
 */
export async function ensureFolderMark(folder: string, name: string): Promise<string> {
  const mark = await readFolderMark(folder, name);
  if (mark.state === 'marked') return mark.id;
  if (mark.state === 'unreadable') throw new Error(`${folder}: ${mark.why}`);
  const id = randomUUID();
  await writeFolderMark(folder, name, id);
  return id;
}
