import { readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { maxManifestBytes } from '@airdock/core/oci/manifest';
import pLimit from 'p-limit';
import {
  blobPath,
  folderNames,
  isGone,
  layerPath,
  listDigests,
  listFolder,
  listRepositoryFolders,
  registryRoot,
  revisionPath,
  statOrGone,
  tagPath,
  uploadsPath,
} from './registry-layout.js';
import { setBlobAside } from './registry-storage.js';

const filesAtOnce = 16;
/** A manifest that was cut short is among the newest blobs, by the clock of the files themselves. */
const lastWritesMs = 600_000;
const emptyDigest = digestOf(Buffer.alloc(0));

/**
 * Ends what a registry was writing when it was killed. distribution 2 writes links and manifests in place, so that it leaves a file without content, answers 500
 * for it, and takes the bytes of a manifest for complete when they are pushed again. What a link says follows from where it lies: it is written as the registry
 * would have, or removed when its manifest is not there; a tag goes on to what it was just given. Manifests that were cut short are set aside, for the next push to bring
 * them. Call it while no registry writes to the folder; placing blobs may go on. Idempotent. Returns the paths below the storage folder that were changed.
 */
export async function repairRegistry(storageDir: string): Promise<string[]> {
  const repair = new RegistryRepair(storageDir);
  await repair.run();
  return repair.changed;
}

class RegistryRepair {
  readonly changed: string[] = [];
  readonly #root: string;
  readonly #limit = pLimit(filesAtOnce);

  constructor(private readonly storageDir: string) {
    this.#root = registryRoot(storageDir);
  }

  async run(): Promise<void> {
    await this.#blobs();
    for (const repository of await listRepositoryFolders(this.#root)) {
      const manifests = `repositories/${repository}/_manifests`;
      const [layers, revisions] = await Promise.all(
        [`repositories/${repository}/_layers/sha256`, `${manifests}/revisions/sha256`].map((path) => listDigests(join(this.#root, path))),
      );
      await this.#links(layers ?? [], (digest) => layerPath(repository, digest));
      await this.#links(revisions ?? [], (digest) => revisionPath(repository, digest));
      for (const tag of await folderNames(join(this.#root, tagPath(repository, '')))) await this.#tag(repository, tag);
      await this.#uploads(repository);
    }
  }

  async #blobs(): Promise<void> {
    const folder = join(this.#root, 'blobs/sha256');
    const small: { digest: Digest; size: number; mtimeMs: number }[] = [];
    let newest = 0;
    for (const prefix of await folderNames(folder)) {
      const digests = await listDigests(join(folder, prefix));
      await this.#each(digests, async (digest) => {
        const status = await this.#status(join(blobPath(digest), 'data'));
        if (!status) return;
        newest = Math.max(newest, status.mtimeMs);
        if (status.size <= maxManifestBytes) small.push({ digest, size: status.size, mtimeMs: status.mtimeMs });
      });
    }
    const suspects = small.filter(({ size, mtimeMs }) => size === 0 || mtimeMs >= newest - lastWritesMs);
    await this.#each(suspects, async ({ digest }) => {
      const path = join(blobPath(digest), 'data');
      const bytes = await readFile(join(this.#root, path)).catch((error: unknown) => {
        if (!isGone(error)) throw error;
      });
      if (!bytes || digestOf(bytes) === digest) return;
      await setBlobAside(this.storageDir, digest);
      this.changed.push(path);
    });
  }

  /** Each link is for the digest that its folder is named after. */
  async #links(digests: readonly Digest[], folderOf: (digest: Digest) => string): Promise<void> {
    await this.#each(digests, async (digest) => {
      const link = join(folderOf(digest), 'link');
      if ((await this.#status(link))?.size !== 0) return;
      const isThere = digest === emptyDigest || ((await this.#status(join(blobPath(digest), 'data')))?.size ?? 0) > 0;
      await this.#write(link, isThere ? digest : undefined);
    });
  }

  /** A tag gets its entry in the history first, and then its link. */
  async #tag(repository: string, tag: string): Promise<void> {
    const history = `${tagPath(repository, tag)}/index/sha256`;
    const digests = await listDigests(join(this.#root, history));
    await this.#links(digests, (digest) => `${history}/${digest.slice('sha256:'.length)}`);
    const link = join(tagPath(repository, tag), 'current/link');
    if ((await this.#status(link))?.size !== 0) return;
    const entries = await Promise.all(
      digests.map(async (digest) => ({
        digest,
        since: (await this.#status(`${history}/${digest.slice('sha256:'.length)}/link`))?.mtimeMs,
        isManifest: (await this.#status(join(revisionPath(repository, digest), 'link'))) !== undefined,
      })),
    );
    const [last] = entries.filter(({ since, isManifest }) => since !== undefined && isManifest).sort((a, b) => Number(b.since) - Number(a.since));
    // A tag without a link would still be listed.
    if (last) await this.#write(link, last.digest);
    else await this.#remove(tagPath(repository, tag));
  }

  /** States of the hash that were not written go: the registry then reads the bytes again. An upload that was not announced yet goes as a whole. */
  async #uploads(repository: string): Promise<void> {
    for (const id of await folderNames(join(this.#root, uploadsPath(repository)))) {
      const folder = `${uploadsPath(repository)}/${id}`;
      if ((await this.#status(`${folder}/startedat`))?.size === 0) await this.#remove(folder);
      for (const { name } of await listFolder(join(this.#root, folder, 'hashstates/sha256'))) {
        const path = `${folder}/hashstates/sha256/${name}`;
        if ((await this.#status(path))?.size === 0) await this.#remove(path);
      }
    }
  }

  async #write(link: string, digest: Digest | undefined): Promise<void> {
    if (!digest) return this.#remove(dirname(link));
    await writeFile(join(this.#root, link), digest);
    this.changed.push(link);
  }

  async #remove(path: string): Promise<void> {
    await rm(join(this.#root, path), { recursive: true, force: true });
    this.changed.push(path);
  }

  #status(path: string): ReturnType<typeof statOrGone> {
    return statOrGone(join(this.#root, path));
  }

  async #each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
    await Promise.all(items.map((item) => this.#limit(() => work(item))));
  }
}
