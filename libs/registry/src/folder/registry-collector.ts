/**
 * Garbage collection in the folder of a `distribution` registry that goes on serving, and may take pushes. What nothing
 * needs loses its links first, so that whoever asks is told to send it again, and is then set aside on the same file
 * system; only what a last look still does not need is removed. At every point before that all of it can be brought
 * back, whatever was killed. Why in this order: docs/adr/0011.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { mkdir, realpath, rename, rm, rmdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import type { ManifestReferences } from '@airdock/core/oci/manifest';
import { diskError, syncFolder, writeDurably } from '@airdock/disk/files/durable-file';
import { z } from 'zod';
import {
  folderNames,
  isGone,
  listFolder,
  listRepositoryFolders,
  readFileOrGone,
  registryRoot,
  statOrGone,
} from './registry-layout.js';
import { type GarbageItem, type Survey, surveyRegistry } from './registry-survey.js';

/** As long as a request that the registry had begun to answer before a link went may take. */
const settleMs = 3_000;
/** Times of files are a little coarser than the clock. */
const clockSlackMs = 100;
const largestShown = 20;

/** What was found or freed, by kind. */
export interface Garbage {
  /** Manifests, configurations and layers that nothing needs. */
  blobs: number;
  /** Of blobs and uploads. */
  bytes: number;
  /** Manifests that no tag, index or referrer leads to, in each repository. */
  revisions: number;
  /** Other links of repositories. */
  links: number;
  /** Unfinished uploads. */
  uploads: number;
  /** The most bytes first. A blob counts where it was linked first; null: it is linked nowhere. */
  repositories: { repository: string | null; bytes: number; revisions: number; links: number; uploads: number }[];
  /** The twenty largest. */
  largest: { repository: string | null; digest: string | null; bytes: number }[];
}

/** What a collection leaves alone. */
export interface CollectOptions {
  /** What was written within this time is not touched, ms. */
  protectMs: number;
  /** Uploads without a byte for this time are abandoned, ms. */
  uploadMs: number;
  /** Asks for digests that have to stay although no tag leads to them. Called before each look. */
  needed: () => Promise<ReadonlySet<Digest>>;
  signal?: AbortSignal | undefined;
}

/** What was just done: `removed` is the end. Up to `lookedAgain` all of it can be undone. */
export type SweepStep = 'looked' | 'unlinked' | 'lookedAgain' | 'setAside' | 'settled' | 'condemned' | 'removed';

/** Who collects, and where names of blobs lie elsewhere. */
export interface SweepOptions extends CollectOptions {
  /** Whose sweep it is: stands beside what was set aside, see `recover`. */
  owner: string;
  /** Awaited after each step. */
  onStep?: (step: SweepStep) => Promise<void> | void;
  onProgress?: (progress: { itemsDone: number; itemsTotal: number; bytesDone: number; bytesTotal: number }) => void;
  settleMs?: number;
}

/** A sweep that cannot be undone any more. */
export interface Sweep {
  id: string;
  owner: string;
  freed: Garbage;
}

/** A sweep that is out of the way of everybody. */
export interface SweptAside extends Sweep {
  /**
   * The disk had no room to set all of it aside: what was found beside it takes another sweep, when this has made room.
   */
  isPartial: boolean;
  remove(): Promise<void>;
}

/** Of bytes that are kept for the record of a sweep, while folders are made for what is set aside. */
const recordBytes = 64 * 1024;

/** Finds what nothing needs in the storage of a registry, sets it aside, and frees it. */
export class RegistryCollector {
  /** Beside the folders that the registry knows, on their file system. */
  readonly #aside: string;
  readonly #condemned: string;
  readonly #room: string;

  constructor(private readonly storageDir: string) {
    this.#aside = join(storageDir, 'airdock-garbage/aside');
    this.#condemned = join(storageDir, 'airdock-garbage/condemned');
    this.#room = join(this.#aside, 'room');
  }

  /** Whether a sweep was cut short. */
  async hasLeftovers(): Promise<boolean> {
    await this.#removeLinks();
    return (await listFolder(dirname(this.#aside))).length > 0;
  }

  /**
   * Ends what a sweep that was cut short has left: brings everything back that was only set aside, and removes what was
   * condemned, after `onSwept` got to know of it, perhaps not for the first time. Idempotent. Call it when no sweep
   * runs.
   */
  async recover(onSwept: (sweep: Sweep) => Promise<void>): Promise<void> {
    await this.#removeLinks();
    const sweep = await this.#readSweep();
    if (sweep) await onSwept(sweep);
    await rm(this.#condemned, { recursive: true, force: true });
    if (sweep)
      await this.#removeEmptyRepositories(new Set(sweep.freed.repositories.map(({ repository }) => repository)));
    for (const path of await this.#listAside()) await this.#bringBack(path);
    await this.#removeAside();
  }

  /**
   * A registry that was taken over could have us tidy up anywhere. What it makes of them later is seen where folders
   * are listed.
   */
  async #removeLinks(): Promise<void> {
    for (const folder of [dirname(this.#aside), this.#aside, this.#condemned])
      if ((await statOrGone(folder))?.isDirectory() === false) await rm(folder);
  }

  /** Undefined when there is none, or it is not one of ours: the registry can write here too. */
  async #readSweep(): Promise<Sweep | undefined> {
    try {
      const record = await readFileOrGone(this.storageDir, join(this.#condemned, 'sweep.json'));
      return record && sweepSchema.parse(JSON.parse(record.toString('utf8')));
    } catch (error) {
      if (error instanceof AppError || error instanceof SyntaxError || error instanceof z.ZodError) return undefined;
      throw error;
    }
  }

  /** What a sweep would free now. Changes nothing. Throws as `surveyRegistry` and `needed`. */
  async estimate(options: CollectOptions): Promise<Garbage> {
    return summarize((await this.#survey(options, youngSince(options), new Map())).garbage);
  }

  /**
   * Frees what nothing needs. Resolves when it is out of the way of everybody; `remove` then gives the space back.
   * Before that an abort or a failure brings back all that was set aside. Call `recover` first, and only one sweep at a
   * time. Setting aside takes folders: on a full disk as much is set aside as there is room for. Throws as
   * `surveyRegistry`, `needed`, the signal's reason, and `space_insufficient` where there is room for nothing.
   */
  async sweep(options: SweepOptions): Promise<SweptAside> {
    const { signal, owner, onStep = () => undefined } = options;
    await this.#removeLinks();
    const since = youngSince(options);
    const known = new Map<Digest, ManifestReferences>();
    const { garbage } = await this.#survey(options, since, known);
    await onStep('looked');
    const total = { itemsTotal: garbage.length, bytesTotal: garbage.reduce((sum, { size }) => sum + size, 0) };
    let aside: GarbageItem[] = [];
    let full: AppError | undefined;
    const setAside = async (items: readonly GarbageItem[]) => {
      for (const item of items) {
        signal?.throwIfAborted();
        // What comes after it may be needed by it.
        if (full) return;
        try {
          if (await this.#setAside(item, since)) aside.push(item);
        } catch (error) {
          if (!(error instanceof AppError && error.code === 'space_insufficient')) throw error;
          full = error;
        }
        options.onProgress?.({ ...total, itemsDone: aside.length, bytesDone: 0 });
      }
    };
    try {
      if (garbage.length > 0) await this.#keepRoom();
      // Manifests first: what cannot be found any more may lose its parts.
      await setAside(garbage.filter(({ kind }) => kind === 'revision'));
      await setAside(garbage.filter(({ kind }) => kind === 'link'));
      await onStep('unlinked');
      const second = await this.#survey(options, since, known);
      aside = await this.#bringBackKept(aside, second);
      await onStep('lookedAgain');
      // What has become garbage since then still has its links.
      const still = new Set(second.garbage.map(({ path }) => path));
      await setAside(garbage.filter(({ kind, path }) => (kind === 'blob' || kind === 'upload') && still.has(path)));
      await onStep('setAside');
      await delay(options.settleMs ?? settleMs, undefined, { signal });
      aside = await this.#bringBackKept(aside, await this.#survey(options, since, known));
      await onStep('settled');
      signal?.throwIfAborted();
      if (full && aside.length === 0) throw full;
      await rm(this.#room, { force: true });
      const sweep: Sweep = { id: randomUUID(), owner, freed: summarize(aside) };
      await writeDurably(join(this.#aside, 'sweep.json'), Buffer.from(JSON.stringify(sweep)));
      await rename(this.#aside, this.#condemned);
      await syncFolder(dirname(this.#condemned));
      await onStep('condemned');
      return { ...sweep, isPartial: full !== undefined, remove: () => this.#remove(aside, options) };
    } catch (error) {
      if (await statOrGone(this.#aside)) {
        for (const path of await this.#listAside()) await this.#bringBack(path);
        await this.#removeAside();
      }
      signal?.throwIfAborted();
      throw error;
    }
  }

  /** Without a record nothing could be freed of what was set aside. Throws `space_insufficient`. */
  async #keepRoom(): Promise<void> {
    try {
      await mkdir(this.#aside, { recursive: true });
      await writeFile(this.#room, randomBytes(recordBytes));
    } catch (error) {
      throw diskError(error, this.#room);
    }
  }

  async #survey(
    { needed, uploadMs, signal }: CollectOptions,
    since: Date,
    known: Map<Digest, ManifestReferences>,
  ): Promise<Survey> {
    await mkdir(this.storageDir, { recursive: true });
    return surveyRegistry(this.storageDir, {
      youngSince: since,
      uploadsSince: new Date(Date.now() - uploadMs),
      needed: await needed(),
      asideRoot: this.#aside,
      known,
      signal,
    });
  }

  /**
   * False when it has gone by itself, or was written since the survey: then it stays. Throws `space_insufficient` with
   * nothing moved.
   */
  async #setAside({ path }: GarbageItem, since: Date): Promise<boolean> {
    const to = join(this.#aside, path);
    try {
      await mkdir(dirname(to), { recursive: true });
      await rename(join(registryRoot(this.storageDir), path), to);
    } catch (error) {
      if (isGone(error)) return false;
      throw diskError(error, to);
    }
    if (((await statOrGone(join(to, contentOf(path))))?.mtime ?? 0) < since) return true;
    await this.#bringBack(path);
    return false;
  }

  /** Brings back what has to stay. Returns the others. */
  async #bringBackKept(aside: readonly GarbageItem[], { kept }: Survey): Promise<GarbageItem[]> {
    const isKept = ({ path }: GarbageItem) => kept.has(path);
    // A manifest that is seen again must have its parts.
    for (const { path } of aside.filter(isKept).toReversed()) await this.#bringBack(path);
    return aside.filter((item) => !isKept(item));
  }

  /** When the registry has it anew, that stays, unless it is not complete. */
  async #bringBack(path: string): Promise<void> {
    const [from, to] = [join(this.#aside, path), join(registryRoot(this.storageDir), path)];
    await mkdir(dirname(to), { recursive: true });
    try {
      await rename(from, to);
    } catch (error) {
      if (isGone(error) && !(await statOrGone(from))) return;
      if (!isTaken(error)) throw error;
      const content = contentOf(path);
      const [ours, theirs] = await Promise.all([from, to].map((folder) => statOrGone(join(folder, content))));
      if (ours && ours.size !== theirs?.size) await rename(join(from, content), join(to, content));
      await rm(from, { recursive: true });
    }
  }

  /** Paths of everything that is set aside, in the order to bring it back: parts before what refers to them. */
  async #listAside(): Promise<string[]> {
    const found: string[] = [];
    const visit = async (path: string): Promise<void> => {
      if (
        /^blobs\/sha256\/..\/.|\/_uploads\/.|\/_layers\/sha256\/.|\/_manifests\/(?:revisions|tags\/[^/]+\/index)\/sha256\/./.test(
          path,
        )
      )
        found.push(path);
      else for (const name of await folderNames(join(this.#aside, path))) await visit(path ? `${path}/${name}` : name);
    };
    await visit('');
    const order = [/^blobs\//, /\/_uploads\//, /\/_layers\//, /\/_manifests\/tags\//, /\/_manifests\/revisions\//];
    const rank = (path: string) => order.findIndex((pattern) => pattern.test(path));
    return found.sort((a, b) => rank(a) - rank(b));
  }

  /** Whatever is still in there stays: nobody may lose it. */
  async #removeAside(): Promise<void> {
    // Of a sweep that was almost condemned: its record, whole or in part.
    for (const entry of await listFolder(this.#aside))
      if (!entry.isDirectory()) await rm(join(this.#aside, entry.name), { force: true });
    await removeEmptyFolders(this.#aside);
    await removeEmptyFolders(dirname(this.#aside));
  }

  async #remove(items: readonly GarbageItem[], { onProgress, onStep }: SweepOptions): Promise<void> {
    const total = { itemsTotal: items.length, bytesTotal: items.reduce((sum, { size }) => sum + size, 0) };
    let bytesDone = 0;
    for (const { path, size } of items) {
      await rm(join(this.#condemned, path), { recursive: true, force: true });
      bytesDone += size;
      onProgress?.({ ...total, itemsDone: items.length, bytesDone });
    }
    await rm(this.#condemned, { recursive: true, force: true });
    await removeEmptyFolders(dirname(this.#condemned));
    await this.#removeEmptyRepositories(new Set(items.map(({ repository }) => repository)));
    await onStep?.('removed');
  }

  /** The catalogue lists repositories also when nothing is in them. */
  async #removeEmptyRepositories(candidates: ReadonlySet<string | null>): Promise<void> {
    const root = registryRoot(await realpath(this.storageDir));
    for (const repository of await listRepositoryFolders(root)) {
      if (!candidates.has(repository)) continue;
      const folder = join(root, 'repositories', repository);
      if (await hasFiles(folder)) continue;
      await removeEmptyFolders(folder);
      for (let parent = dirname(folder); parent !== join(root, 'repositories'); parent = dirname(parent))
        if (!(await removeFolder(parent))) break;
    }
  }
}

const count = z.number().int().nonnegative();
const name = z.string().max(1_000).nullable();
const freedOf = { bytes: count, revisions: count, links: count, uploads: count };
const sweepSchema = z.object({
  id: z.uuid(),
  owner: z.string().max(100),
  freed: z.object({
    ...{ ...freedOf, blobs: count },
    repositories: z.array(z.object({ repository: name, ...freedOf })),
    largest: z.array(z.object({ repository: name, digest: name, bytes: count })).max(largestShown),
  }),
});

const youngSince = ({ protectMs }: CollectOptions): Date => new Date(Date.now() - protectMs - clockSlackMs);

/** The file in a folder that is renamed as a whole. */
const contentOf = (path: string): string => (/^blobs\/|\/_uploads\//.test(path) ? 'data' : 'link');

/** Of a folder that has something in it already. */
const isTaken = (error: unknown): boolean =>
  ['ENOTEMPTY', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? '');

async function hasFiles(folder: string): Promise<boolean> {
  for (const entry of await listFolder(folder))
    if (!entry.isDirectory() || (await hasFiles(join(folder, entry.name)))) return true;
  return false;
}

/** Stays out of the way of whoever puts something there at the same time. */
async function removeEmptyFolders(folder: string): Promise<void> {
  for (const name of await folderNames(folder)) await removeEmptyFolders(join(folder, name));
  await removeFolder(folder);
}

/** False when something is in it. */
async function removeFolder(path: string): Promise<boolean> {
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    if (isGone(error)) return true;
    if (isTaken(error)) return false;
    throw error;
  }
}

function summarize(items: readonly GarbageItem[]): Garbage {
  const count = (kind: GarbageItem['kind'], list = items) => list.filter((item) => item.kind === kind).length;
  const bytesOf = (list: readonly GarbageItem[]) => list.reduce((sum, { size }) => sum + size, 0);
  const names = [...new Set(items.map(({ repository }) => repository))];
  const repositories = names
    .map((repository) => ({ repository, own: items.filter((item) => item.repository === repository) }))
    .map(({ repository, own }) => ({
      repository,
      bytes: bytesOf(own),
      revisions: count('revision', own),
      links: count('link', own),
      uploads: count('upload', own),
    }))
    .sort((a, b) => b.bytes - a.bytes || String(a.repository).localeCompare(String(b.repository)));
  const largest = items
    .filter(({ size }) => size > 0)
    .sort((a, b) => b.size - a.size || a.path.localeCompare(b.path))
    .slice(0, largestShown)
    .map(({ repository, digest, size }) => ({ repository, digest, bytes: size }));
  return {
    blobs: count('blob'),
    bytes: bytesOf(items),
    revisions: count('revision'),
    links: count('link'),
    uploads: count('upload'),
    repositories: repositories.slice(0, 1000),
    largest,
  };
}
