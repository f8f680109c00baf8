import { randomUUID } from 'node:crypto';
import { constants, type Dirent } from 'node:fs';
import { access, lstat, mkdir, readdir, rename, rm, rmdir, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { errnoOf } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';
import { freeBytesOf, syncFolder, writeDurably } from '@airdock/disk/files/durable-file';
import { readRegularFile } from '@airdock/disk/files/regular-file';
import { BlobPlacer } from '@airdock/registry/folder/blob-placer';
import pLimit, { type LimitFunction } from 'p-limit';
import {
  type BackupStorage,
  maxStoredFiles,
  type StoredFile,
  tooManyFiles,
  type WriteOptions,
} from './backup-storage.js';

/** What a disk, an NFS server or a cable that is gone looks like. */
const awayCodes = new Set([
  'EIO',
  'ENODEV',
  'ENXIO',
  'ESTALE',
  'ENOTCONN',
  'EHOSTDOWN',
  'EHOSTUNREACH',
  'ETIMEDOUT',
  'ESHUTDOWN',
  'EREMOTEIO',
]);

/** Of writing, where reading goes on. */
const readOnlyCodes = new Set(['EROFS', 'EACCES', 'EPERM']);

/** Of files that are locks in a moment. */
const lockPrefix = 'lock.';
const sweepAgeMs = 60_000;
/** Below the store; its own are three deep. */
const maxFolders = 10;
/** Of one process at a time: each waits for the disk. */
const statsAtOnce = 64;

/**
 * A folder of this machine, on a disk that was carried in, or on NFS. Whoever wrote it may have put links, pipes and
 * devices there: nothing is read, written or removed through them, `backup_store_unsafe`.
 */
export class FolderStorage implements BackupStorage {
  readonly #placer: BlobPlacer;
  readonly #tmp: string;

  private constructor(
    readonly location: string,
    /** Device and number of the folder: when its disk is unmounted another folder is there, below the mount. */
    private readonly identity: string,
  ) {
    this.#tmp = join(location, 'tmp');
    this.#placer = new BlobPlacer(location, this.#tmp);
  }

  /** Makes the folder. */
  static async open(path: string): Promise<FolderStorage> {
    try {
      await mkdir(path, { recursive: true, mode: 0o700 });
      return new FolderStorage(path, await identify(path));
    } catch (error) {
      throw away(path, error);
    }
  }

  async *list(folder: string): AsyncIterable<StoredFile> {
    await this.#assertPlain(`${folder}/`);
    const found: StoredFile[] = [];
    await this.#list(folder, found, pLimit(statsAtOnce), 0);
    yield* found;
    await this.#assertSame();
  }

  /** Links, pipes and devices are none of a store's files. */
  async #list(folder: string, found: StoredFile[], limit: LimitFunction, depth: number): Promise<void> {
    if (depth > maxFolders) throw unsafe(folder, 'lies too deep');
    const entries = await this.#entries(folder);
    if (found.length + entries.length > maxStoredFiles) throw tooManyFiles(this.location);
    const nameOf = (entry: Dirent) => (folder === '' ? entry.name : `${folder}/${entry.name}`);
    const files = entries
      .filter((entry) => entry.isFile())
      .map((entry) => limit(async () => this.#stat(nameOf(entry))));
    for (const file of await Promise.all(files)) if (file) found.push(file);
    for (const entry of entries) if (entry.isDirectory()) await this.#list(nameOf(entry), found, limit, depth + 1);
  }

  async #entries(folder: string): Promise<Dirent[]> {
    try {
      return await readdir(join(this.location, folder), { withFileTypes: true });
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return [];
      throw away(this.location, error);
    }
  }

  async stat(name: string): Promise<StoredFile | undefined> {
    await this.#assertPlain(name);
    return this.#stat(name);
  }

  async #stat(name: string): Promise<StoredFile | undefined> {
    try {
      const status = await lstat(join(this.location, name));
      if (!status.isFile()) throw unsafe(name, 'is a link, a pipe, a device or a folder');
      return { name, size: status.size, modifiedAt: status.mtimeMs };
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return undefined;
      throw away(this.location, error);
    }
  }

  /** Every folder on the way to a name is one, as far as they are there. */
  async #assertPlain(name: string): Promise<void> {
    const folders = name.split('/').slice(0, -1).filter(Boolean);
    for (let count = 1; count <= folders.length; count++) {
      const folder = folders.slice(0, count).join('/');
      const status = await lstat(join(this.location, folder)).catch((error: unknown) => {
        if (errnoOf(error) === 'ENOENT') return undefined;
        throw away(this.location, error);
      });
      if (!status) return;
      if (!status.isDirectory()) throw unsafe(folder, 'is no folder, but something else or a link');
    }
  }

  read(name: string, { start }: { start: number } = { start: 0 }): Readable {
    const file = readRegularFile(join(this.location, name), {
      inside: this.location,
      code: 'backup_store_unsafe',
      start,
    });
    const explain = async (error: unknown) =>
      away(this.location, awayCodes.has(errnoOf(error)) || (await this.#isSame()) ? error : undefined);
    return Readable.from(
      (async function* () {
        try {
          yield* file;
        } catch (error) {
          throw await explain(error);
        }
      })(),
      { objectMode: false },
    );
  }

  write(name: string, content: Readable | Uint8Array, { signal, isLasting = true }: WriteOptions = {}): Promise<void> {
    if (!isLasting && content instanceof Uint8Array) return this.#writing(name, () => this.#replace(name, content));
    return this.#writing(name, () => writeDurably(join(this.location, name), content, { signal, tmpDir: this.#tmp }));
  }

  async #replace(name: string, content: Uint8Array): Promise<void> {
    const path = join(this.location, name);
    const fresh = join(this.#tmp, `${lockPrefix}${randomUUID()}.part`);
    for (const folder of [dirname(path), this.#tmp]) await mkdir(folder, { recursive: true });
    await writeFile(fresh, content, { mode: 0o644 });
    await rename(fresh, path);
  }

  place(
    name: string,
    ...[blob, reader, options]: DropFirst<Parameters<NonNullable<BackupStorage['place']>>>
  ): Promise<void> {
    const { limit = (work) => work() } = options;
    // Once more when its turn has come, which may be long after.
    const looking: typeof limit = (work) =>
      limit(async () => {
        await this.#assertSame();
        return work();
      });
    return this.#writing(name, async () => {
      await this.#placer.bring(join(this.location, name), blob, reader, { ...options, limit: looking });
    });
  }

  pathOf(name: string): string {
    return join(this.location, name);
  }

  move(from: string, to: string): Promise<void> {
    return this.#writing(to, async () => {
      await this.#assertPlain(from);
      await mkdir(dirname(join(this.location, to)), { recursive: true });
      await rename(join(this.location, from), join(this.location, to));
      await syncFolder(dirname(join(this.location, to)));
    });
  }

  async remove(name: string): Promise<void> {
    await this.#writing(name, () => rm(join(this.location, name), { force: true }));
  }

  async sweep(): Promise<number> {
    let bytes = 0;
    const newest = Date.now() - sweepAgeMs;
    for await (const { name, size, modifiedAt } of this.list('tmp')) {
      // Somebody writes a lock, to find out that he has to wait.
      if (modifiedAt > newest && name.startsWith(`tmp/${lockPrefix}`)) continue;
      await this.remove(name);
      bytes += size;
    }
    return bytes;
  }

  freeBytes(): Promise<number> {
    return freeBytesOf(this.location);
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** Never writes below the mount of a disk that is gone, and never takes what it wrote there for written. */
  async #writing<T>(name: string, work: () => Promise<T>): Promise<T> {
    try {
      await this.#assertSame();
      for (const each of [name, 'tmp/']) await this.#assertPlain(each);
      const result = await work();
      await this.#assertSame();
      return result;
    } catch (error) {
      if (await this.#isSame()) throw refused(this.location, await reasonOf(error, this.location));
      // What was under way has made folders there. A file might be one of another disk's.
      for (const each of [`tmp/${name}`, name])
        for (let folder = dirname(each); folder !== '.'; folder = dirname(folder))
          await rmdir(join(this.location, folder)).catch(() => undefined);
      throw away(this.location, awayCodes.has(errnoOf(error)) ? error : undefined);
    }
  }

  async #assertSame(): Promise<void> {
    if (!(await this.#isSame())) throw away(this.location);
  }

  /** What cannot be looked at is not the same. */
  #isSame(): Promise<boolean> {
    return identify(this.location).then(
      (identity) => identity === this.identity,
      () => false,
    );
  }
}

type DropFirst<T extends unknown[]> = T extends [unknown, ...infer Rest] ? Rest : never;

const unsafe = (name: string, what: string) =>
  new AppError('backup_store_unsafe', { detail: `${name.slice(0, 200)} ${what}` });

async function identify(path: string): Promise<string> {
  const { dev, ino } = await stat(path);
  return `${dev}:${ino}`;
}

/**
 * A folder that cannot be made on a disk that is mounted read-only is missing for Node.js, see
 * https://github.com/nodejs/node/issues/47098.
 */
async function reasonOf(error: unknown, location: string): Promise<unknown> {
  if (errnoOf(error) !== 'ENOENT' || (error as NodeJS.ErrnoException).syscall !== 'mkdir') return error;
  return access(location, constants.W_OK).then(
    () => error,
    (reason: unknown) => reason,
  );
}

/** Why storage that is there was not written to. */
function refused(location: string, error: unknown): unknown {
  const code = errnoOf(error);
  if (readOnlyCodes.has(code))
    return new AppError('backup_target_read_only', { detail: `${location}: ${code}` }, { cause: error });
  const isFull =
    code === 'ENOSPC' || code === 'EDQUOT' || (error instanceof AppError && error.code === 'space_insufficient');
  if (!isFull) return away(location, error);
  const detail = `the disk of ${location} is full: delete backups and prune, which needs no room, or make room on it otherwise`;
  return new AppError(
    'space_insufficient',
    { ...(error instanceof AppError && error.details), detail, path: location },
    { cause: error },
  );
}

function away(location: string, cause?: unknown): unknown {
  const code = errnoOf(cause);
  if (
    cause !== undefined &&
    !awayCodes.has(code) &&
    !(code === 'ENOENT' && (cause as NodeJS.ErrnoException).path === location)
  )
    return cause;
  const detail = `${location}: ${code || 'another folder is there now: its disk is not mounted any more'}`;
  return new AppError('backup_target_unavailable', { detail }, { cause });
}
