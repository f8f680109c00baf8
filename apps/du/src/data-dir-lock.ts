import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';

/**
 * When a process started, in clock ticks since boot: field 22 of proc_pid_stat(5). With the process id it names one
 * process for good.
 */
function startTicks(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

/**
 * Lets one DU at a time use a data folder: two would end each other's registry. The lock of a process that was killed
 * is taken over. Returns what gives it back. Throws `data_dir_in_use`.
 */
export function lockDataDir(dataDir: string): () => void {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const path = join(dataDir, 'du.lock');
  const own = `${path}.${process.pid}`;
  const text = `${process.pid} ${startTicks(process.pid)}\n`;
  writeFileSync(own, text, { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < 10; attempt++) {
      try {
        // Makes the complete file or fails.
        linkSync(own, path);
        return () => rmSync(path, { force: true });
      } catch (error) {
        if (errnoOf(error) !== 'EEXIST') throw error;
      }
      const holder = read(path);
      const [pid = '', ticks] = holder.trim().split(' ');
      if (pid && startTicks(Number(pid)) === ticks)
        throw new AppError('data_dir_in_use', { detail: `${dataDir} by process ${pid}`, pid: Number(pid) });
      breakLock(path, holder);
    }
    throw new AppError('data_dir_in_use', { detail: `${dataDir}: many processes start at once` });
  } finally {
    rmSync(own, { force: true });
  }
}

/**
 * The text of a lock; empty when its holder gave it back meanwhile. One that cannot be read may be held:
 * `data_dir_in_use`.
 */
function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    const code = errnoOf(cause);
    if (code === 'ENOENT') return '';
    throw new AppError(
      'data_dir_in_use',
      { detail: `whether it is in use cannot be told: ${path}: ${code}` },
      { cause },
    );
  }
}

/**
 * Moves the lock of a dead process away. If another one was faster, and what moved is its new lock, that is put back.
 */
function breakLock(path: string, stale: string): void {
  const moved = `${path}.stale.${process.pid}`;
  try {
    renameSync(path, moved);
    if (read(moved) !== stale) linkSync(moved, path);
  } catch (error) {
    if (!['ENOENT', 'EEXIST'].includes(errnoOf(error))) throw error;
  } finally {
    rmSync(moved, { force: true });
  }
}
