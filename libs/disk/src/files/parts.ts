/**
 * Unfinished files and folders, `<subject>.<owner>.<id>.part`, that outlive the process which made them, so that the
 * next one goes on from there. The owner is a process of this boot and PID namespace, by its number and start time:
 * numbers are used again. Another machine's or container's is never taken over, since nobody here can tell whether it
 * still writes.
 */

import { randomUUID } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { lstat, readdir, rename, rm, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '@airdock/core/errno';

const abandonedMs = 60 * 60 * 1000;
/** Stands for an owner that gave its part up. */
const nobody = 'free';

/** State, start time and threads of a process; see proc_pid_stat(5). */
function readStatus(pid: number): { state: string; started: string; threads: number } {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The name before it may hold anything.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0] ?? '', threads: Number(fields[17]), started: fields[19] ?? '' };
}

/** Of this process; undefined where /proc does not tell. */
function findOwner(): { place: string; name: string } | undefined {
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').slice(0, 8);
    const namespace = /\d+/.exec(readlinkSync('/proc/self/ns/pid'))?.[0];
    const place = `${boot}-${namespace}`;
    return { place, name: `${place}-${process.pid}-${readStatus(process.pid).started}` };
  } catch {
    return undefined;
  }
}

const owner = findOwner();

/** `unknown`: of another boot, machine or container, or named in a way that we do not know. */
function ownerState(name: string): 'alive' | 'dead' | 'unknown' {
  if (name === nobody) return 'dead';
  if (name === owner?.name) return 'alive';
  const [, place, pid, started] = /^([0-9a-f]+-\d+)-(\d+)-(\d+)$/.exec(name) ?? [];
  if (!owner || place !== owner.place) return 'unknown';
  try {
    process.kill(Number(pid), 0);
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return 'dead';
  }
  try {
    const status = readStatus(Number(pid));
    // A killed process may still have a thread that waits for the disk to take its last write.
    return status.started !== started || ('ZX'.includes(status.state) && status.threads <= 1) ? 'dead' : 'alive';
  } catch {
    // Gone since, or not for us to see: the next one will know.
    return 'alive';
  }
}

function parsePart(name: string): { subject: string; owner: string; id: string } | undefined {
  const [, subject, of, id] = /^(.+)\.([^.]+)\.([^.]+)\.part$/.exec(name) ?? [];
  return subject !== undefined && of !== undefined && id !== undefined ? { subject, owner: of, id } : undefined;
}

const partPath = (folder: string, subject: string, of: string, id: string): string =>
  join(folder, `${subject}.${of}.${id}.part`);

/** A path for a part of this process. */
export const newPart = (folder: string, subject: string): string =>
  partPath(folder, subject, owner?.name ?? 'unknown', randomUUID());

/**
 * Takes over a part of `subject` that was given up, or whose process is dead. Of several who try, one gets it.
 * Undefined when there is none.
 */
export async function takePart(folder: string, subject: string): Promise<string | undefined> {
  if (!owner) return undefined;
  for (const name of await readdir(folder).catch(() => [])) {
    const part = parsePart(name);
    if (part?.subject !== subject || ownerState(part.owner) !== 'dead') continue;
    // Of a folder that others can write to: a link would be written through.
    const status = await lstat(join(folder, name)).catch(() => undefined);
    if (!status || status.isSymbolicLink()) continue;
    const path = partPath(folder, subject, owner.name, part.id);
    try {
      await rename(join(folder, name), path);
      // So that no sweep takes it before the first byte is added.
      await utimes(path, new Date(), new Date());
      return path;
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
    }
  }
  return undefined;
}

/** Gives a part up, for whoever wants to go on with it within the hour. */
export async function releasePart(path: string): Promise<void> {
  const folder = join(path, '..');
  const part = parsePart(path.slice(folder.length + 1));
  if (!part) throw new TypeError(`${path} is no part`);
  // Where owners are not known nobody would ever take it.
  if (!owner) await rm(path, { recursive: true, force: true });
  else await rename(path, partPath(folder, part.subject, nobody, part.id)).catch(() => undefined);
}

/** Removes parts that nobody owned or touched for an hour. */
export async function sweepParts(folder: string): Promise<void> {
  // What a link leads to are the parts of somebody else.
  if (!(await lstat(folder).catch(() => undefined))?.isDirectory()) return;
  for (const name of await readdir(folder).catch(() => [])) {
    if (!name.endsWith('.part') || ownerState(parsePart(name)?.owner ?? '') === 'alive') continue;
    const path = join(folder, name);
    // Of a second name for an old file too this is the time when it was made.
    const status = await stat(path).catch(() => undefined);
    if (status && Date.now() - status.ctimeMs > abandonedMs) await rm(path, { recursive: true, force: true });
  }
}
