import { rm, rmdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { maxManifestBytes } from '@airdock/core/oci/manifest';
import { replaceBelow } from '@airdock/disk/files/own-folder';
import pLimit from 'p-limit';
import {
  blobPath,
  folderNames,
  historiesPath,
  historyPath,
  isGone,
  layersPath,
  listDigests,
  listFolder,
  listRepositoryFolders,
  readFileOrGone,
  registryRoot,
  revisionPath,
  revisionsPath,
  statOrGone,
  tagPath,
  uploadsPath,
} from './registry-layout.js';
import { setBlobAside } from './registry-storage.js';

const filesAtOnce = 16;
const tagsAtOnce = 8;
/**
 * A manifest that was cut short is among the newest blobs, or is dated in the future by a clock that was set back
 * since.
 */
const lastWritesMs = 600_000;
const emptyDigest = digestOf(Buffer.alloc(0));

/** What a repair did. */
export interface Repair {
  /** Paths below `registryRoot`. */
  changed: string[];
  /** Path and reason: the registry goes on answering 500 there. */
  failed: string[];
}

/**
 * Ends what a registry was writing when it was killed, or when its disk was full. distribution 2 writes links and
 * manifests in place, so that it leaves a file without content, answers 500 for it, and takes the bytes of a manifest
 * for complete when they are pushed again. What a link says follows from where it lies: it is written as the registry
 * would have, or removed when its blob is not there; a tag goes on to what it was just given. Manifests that were cut
 * short are set aside, for the next push to bring them. Call it while no registry writes to the folder; placing blobs
 * may go on. Idempotent. Throws the signal's reason only.
 */
export async function repairRegistry(storageDir: string, signal?: AbortSignal): Promise<Repair> {
  const repair = new RegistryRepair(storageDir, signal);
  await repair.run();
  return { changed: repair.changed, failed: repair.failed };
}

class RegistryRepair {
  readonly changed: string[] = [];
  readonly failed: string[] = [];
  readonly #root: string;
  readonly #files = pLimit(filesAtOnce);
  readonly #tags = pLimit(tagsAtOnce);

  constructor(
    private readonly storageDir: string,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.#root = registryRoot(storageDir);
  }

  async run(): Promise<void> {
    await this.#attempt('blobs', () => this.#blobs());
    const repositories: string[] = [];
    await this.#attempt(
      'repositories',
      async () => void repositories.push(...(await listRepositoryFolders(this.#root))),
    );
    for (const repository of repositories) await this.#attempt(repository, () => this.#repository(repository));
  }

  /** One thing that cannot be repaired is no reason to leave the others, or the registry, down. */
  async #attempt(path: string, work: () => Promise<void>): Promise<void> {
    this.signal?.throwIfAborted();
    try {
      await work();
    } catch (error) {
      this.signal?.throwIfAborted();
      if (!isGone(error)) this.failed.push(`${path}: ${(error as Error).message}`);
    }
  }

  async #blobs(): Promise<void> {
    const folder = join(this.#root, 'blobs/sha256');
    const small: { digest: Digest; size: number; mtimeMs: number }[] = [];
    const now = Date.now();
    let newest = 0;
    for (const prefix of await folderNames(folder)) {
      await this.#each(await listDigests(join(folder, prefix)), dataOf, async (digest) => {
        const status = await this.#status(dataOf(digest));
        if (!status) return;
        const { size, mtimeMs } = status;
        if (mtimeMs <= now) newest = Math.max(newest, mtimeMs);
        if (size <= maxManifestBytes) small.push({ digest, size, mtimeMs });
      });
    }
    const suspects = small
      .filter(({ size, mtimeMs }) => size === 0 || mtimeMs >= newest - lastWritesMs)
      .map(({ digest }) => digest);
    await this.#each(suspects, dataOf, async (digest) => {
      const bytes = await readFileOrGone(this.storageDir, join(this.#root, dataOf(digest))).catch((error: unknown) => {
        // A link or a pipe is no blob either.
        if (error instanceof AppError) return Buffer.alloc(0);
        throw error;
      });
      if (!bytes || digestOf(bytes) === digest) return;
      await setBlobAside(this.storageDir, digest);
      this.changed.push(dataOf(digest));
    });
  }

  async #repository(repository: string): Promise<void> {
    await this.#links(layersPath(repository));
    await this.#links(revisionsPath(repository));
    const tags = await folderNames(join(this.#root, tagPath(repository, '')));
    await Promise.all(
      tags.map((tag) => this.#tags(() => this.#attempt(tagPath(repository, tag), () => this.#tag(repository, tag)))),
    );
    for (const id of await folderNames(join(this.#root, uploadsPath(repository))))
      await this.#attempt(`${uploadsPath(repository)}/${id}`, () => this.#upload(`${uploadsPath(repository)}/${id}`));
  }

  /** Each link below a folder is for the digest that its own folder is named after. Returns the digests. */
  async #links(folder: string): Promise<Digest[]> {
    const pathOf = (digest: Digest) => join(folder, digestHex(digest));
    const digests = await listDigests(join(this.#root, folder));
    await this.#each(digests, pathOf, async (digest) => {
      const link = join(pathOf(digest), 'link');
      if ((await this.#status(link))?.size !== 0) return;
      if (await this.#hasBlob(digest)) return this.#write(link, digest);
      // Whoever places the blob just now has a folder to put its link into, or makes one.
      await rm(join(this.#root, link));
      await rmdir(dirname(join(this.#root, link))).catch(() => undefined);
      this.changed.push(link);
    });
    return digests;
  }

  /** A tag gets its entry in the history first, and then its link: that is not there yet, or empty. */
  async #tag(repository: string, tag: string): Promise<void> {
    const digests = await this.#links(historiesPath(repository, tag));
    const link = join(tagPath(repository, tag), 'current/link');
    const current = await this.#status(link);
    if (current && current.size > 0) return;
    const entries = await Promise.all(
      digests.map(async (digest) => {
        const [entry, revision, hasBlob] = await Promise.all([
          this.#status(join(historyPath(repository, tag, digest), 'link')),
          this.#status(join(revisionPath(repository, digest), 'link')),
          this.#hasBlob(digest),
        ]);
        // The one that was written with the link, whatever the clock has said at other times.
        return {
          digest,
          age: current && entry ? Math.abs(current.mtimeMs - entry.mtimeMs) : -(entry?.mtimeMs ?? 0),
          isWhole: entry && revision && hasBlob,
        };
      }),
    );
    const [last] = entries.filter(({ isWhole }) => isWhole).sort((a, b) => a.age - b.age);
    if (last) await this.#write(link, last.digest);
    // Without a link it would still be listed.
    else await this.#remove(tagPath(repository, tag));
  }

  /**
   * States of the hash that were not written go: the registry then reads the bytes again. An upload that was not
   * announced yet goes as a whole.
   */
  async #upload(folder: string): Promise<void> {
    if ((await this.#status(`${folder}/startedat`))?.size === 0) await this.#remove(folder);
    for (const { name } of await listFolder(join(this.#root, folder, 'hashstates/sha256'))) {
      const path = `${folder}/hashstates/sha256/${name}`;
      if ((await this.#status(path))?.size === 0) await this.#remove(path);
    }
  }

  async #hasBlob(digest: Digest): Promise<boolean> {
    const status = await this.#status(dataOf(digest));
    return status !== undefined && (status.size > 0 || digest === emptyDigest);
  }

  async #write(link: string, digest: Digest): Promise<void> {
    // A tag may not have got the folder of its link.
    await replaceBelow(this.storageDir, join(this.#root, link), digest);
    this.changed.push(link);
  }

  async #remove(path: string): Promise<void> {
    await rm(join(this.#root, path), { recursive: true, force: true });
    this.changed.push(path);
  }

  /** Of a file; what is none has nothing in it. */
  async #status(path: string): Promise<{ size: number; mtimeMs: number } | undefined> {
    const status = await statOrGone(join(this.#root, path));
    return status && { size: status.isFile() ? status.size : 0, mtimeMs: status.mtimeMs };
  }

  async #each(
    digests: readonly Digest[],
    pathOf: (digest: Digest) => string,
    work: (digest: Digest) => Promise<void>,
  ): Promise<void> {
    await Promise.all(digests.map((digest) => this.#files(() => this.#attempt(pathOf(digest), () => work(digest)))));
  }
}

const dataOf = (digest: Digest): string => join(blobPath(digest), 'data');
