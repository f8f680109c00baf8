/**
 * Looks through the folder of a `distribution` registry and says what has to stay and what is garbage; changes nothing.
 * It may run while the registry serves and takes pushes: what vanishes meanwhile is skipped, and what is just being
 * written counts as young.
 */
import { realpath, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestOf, isDigest } from '@airdock/core/oci/digest';
import { type ManifestReferences, manifestReferences, maxManifestBytes } from '@airdock/core/oci/manifest';
import { openFiles } from '@airdock/oci/registry-client/upload-sessions';
import pLimit from 'p-limit';
import {
  blobPath,
  folderNames,
  historiesPath,
  historyPath,
  isGone,
  layerPath,
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

const filesAtOnce = 16;
/** distribution 2 writes links and manifests in place: what was begun this long ago is complete, or will never be. */
const writingMs = 10_000;
const writingTries = 10;

/** One thing that nothing needs. */
export interface GarbageItem {
  /**
   * `revision`: the link that makes a manifest one of a repository; `link`: that of a blob, or what a tag once led to.
   */
  kind: 'revision' | 'link' | 'blob' | 'upload';
  /** Of a blob the first one that it was linked in; null for a blob without any link. */
  repository: string | null;
  digest: Digest | null;
  /** Of its folder, see registry-layout.ts. */
  path: string;
  /** Bytes; 0 for links. */
  size: number;
}

/** What counts as needed. */
export interface SurveyOptions {
  /** What was written since then stays. */
  youngSince: Date;
  /** Uploads without a byte since then are abandoned. */
  uploadsSince: Date;
  /** Digests that stay although no tag leads to them. */
  needed: ReadonlySet<Digest>;
  /** A folder beside `registryRoot` with the same paths below it, where manifests that were set aside are read. */
  asideRoot: string;
  /** Manifests that an earlier survey has read: their bytes never change. */
  known: Map<Digest, ManifestReferences>;
  signal?: AbortSignal | undefined;
}

/** What a storage holds: what stays, and what is garbage. */
export interface Survey {
  /** `path` of everything that has to stay, whether it is in its place or was set aside. */
  kept: ReadonlySet<string>;
  garbage: GarbageItem[];
}

/**
 * Throws `registry_damaged` with all manifests that cannot be read, since nobody knows what they need; and the signal's
 * reason.
 */
export async function surveyRegistry(storageDir: string, options: SurveyOptions): Promise<Survey> {
  // The kernel tells the real paths of open files.
  return new RegistrySurvey(await realpath(storageDir), options).run();
}

class RegistrySurvey {
  readonly #kept = new Set<string>();
  readonly #garbage: GarbageItem[] = [];
  /** What is wrong with it, by digest or name. */
  readonly #damaged = new Map<string, string>();
  /** The first repository that has a link which is garbage. */
  readonly #homes = new Map<Digest, string>();
  readonly #limit = pLimit(filesAtOnce);
  private readonly root: string;

  constructor(
    private readonly storageDir: string,
    private readonly options: SurveyOptions,
  ) {
    this.root = registryRoot(storageDir);
  }

  async run(): Promise<Survey> {
    const repositories = await listRepositoryFolders(this.root);
    for (const repository of repositories) {
      this.options.signal?.throwIfAborted();
      await this.#lookAtRepository(repository);
    }
    // What is needed may have lost its links.
    for (const digest of this.options.needed) if (!this.#kept.has(blobPath(digest))) await this.#keepBlobs(digest);
    const damaged = [...this.#damaged.values()];
    if (damaged.length > 0)
      throw new AppError('registry_damaged', {
        detail: `${damaged.length} manifests, first ${damaged[0]}`,
        damaged: damaged.slice(0, 100),
      });
    await this.#lookAtBlobs();
    await this.#lookAtUploads(repositories);
    return { kept: this.#kept, garbage: this.#garbage };
  }

  async #lookAtRepository(repository: string): Promise<void> {
    const revisions = await this.#revisions(repository);
    const referrers = new Map<Digest, Digest[]>();
    await Promise.all(
      revisions.map(async (digest) => {
        const subject = (await this.#readManifest(digest, `${repository}@${digest}`))?.subject;
        if (subject) referrers.set(subject, [...(referrers.get(subject) ?? []), digest]);
      }),
    );
    /**
     * A manifest, all that it consists of, and what refers to it. Whatever a tag or an index leads to must be there.
     */
    const keep = async (root: Digest, name: string, isRequired: boolean) => {
      const waiting = [{ digest: root, isRequired }];
      for (let next = waiting.pop(); next; next = waiting.pop()) {
        const { digest } = next;
        if (this.#kept.has(revisionPath(repository, digest))) continue;
        const references = await this.#readManifest(digest, name);
        if (!references) {
          if (next.isRequired) this.#damaged.set(digest, `${name}: ${digest} is missing`);
          continue;
        }
        this.#kept.add(revisionPath(repository, digest));
        // distribution 2.1 linked manifests like blobs.
        for (const part of [digest, ...references.mentioned])
          this.#kept.add(layerPath(repository, part)).add(blobPath(part));
        waiting.push(...references.manifests.map((child) => ({ digest: child, isRequired: true })));
        waiting.push(...(referrers.get(digest) ?? []).map((referrer) => ({ digest: referrer, isRequired: false })));
      }
    };
    for (const tag of await folderNames(join(this.root, tagPath(repository, '')))) {
      const digest = await this.#tagged(repository, tag);
      if (digest) await keep(digest, `${repository}:${tag}`, true);
    }
    for (const digest of revisions) {
      if (this.#kept.has(revisionPath(repository, digest))) continue;
      const isWanted =
        this.options.needed.has(digest) || (await this.#isYoung(join(revisionPath(repository, digest), 'link')));
      if (isWanted) await keep(digest, `${repository}@${digest}`, false);
    }
    const unneeded = revisions.filter((digest) => !this.#kept.has(revisionPath(repository, digest)));
    for (const digest of unneeded)
      this.#garbage.push({ kind: 'revision', repository, digest, path: revisionPath(repository, digest), size: 0 });
    for (const digest of unneeded) if (!this.#homes.has(digest)) this.#homes.set(digest, repository);
    if (unneeded.length > 0) await this.#lookAtHistory(repository, new Set(unneeded));
    await this.#lookAtLayers(repository);
  }

  /** Links to manifests; of other algorithms than SHA-256 nothing can be said. */
  async #revisions(repository: string): Promise<Digest[]> {
    const folder = join(this.root, revisionsPath(repository));
    for (const algorithm of await folderNames(dirname(folder)))
      if (algorithm !== 'sha256')
        this.#damaged.set(
          `${repository} ${algorithm}`,
          `${repository}: manifests with ${algorithm} digests are not known here`,
        );
    return listDigests(folder);
  }

  /** Undefined for a tag that is just being made, or that went. */
  async #tagged(repository: string, tag: string): Promise<Digest | undefined> {
    const path = join(this.root, tagPath(repository, tag), 'current/link');
    const text = await this.#readWhole(path, (bytes) => isDigest(bytes.toString('utf8').trim()));
    if (text === undefined) return undefined;
    const digest = text.toString('utf8').trim();
    if (isDigest(digest)) return digest;
    this.#damaged.set(`${repository}:${tag}`, `${repository}:${tag} leads to ${JSON.stringify(digest.slice(0, 100))}`);
    return undefined;
  }

  /** What tags led to before and that goes now. */
  async #lookAtHistory(repository: string, revisions: ReadonlySet<Digest>): Promise<void> {
    for (const tag of await folderNames(join(this.root, tagPath(repository, '')))) {
      for (const digest of await listDigests(join(this.root, historiesPath(repository, tag))))
        if (revisions.has(digest))
          this.#garbage.push({ kind: 'link', repository, digest, path: historyPath(repository, tag, digest), size: 0 });
    }
  }

  async #lookAtLayers(repository: string): Promise<void> {
    const layers = await listDigests(join(this.root, layersPath(repository)));
    await Promise.all(
      layers.map(async (digest) => {
        const path = layerPath(repository, digest);
        if (this.#kept.has(path)) return;
        // A push has brought it, mounted it or found it there, and its manifest is still to come.
        if (await this.#isYoung(join(path, 'link'))) this.#kept.add(path).add(blobPath(digest));
        else {
          this.#garbage.push({ kind: 'link', repository, digest, path, size: 0 });
          if (!this.#homes.has(digest)) this.#homes.set(digest, repository);
        }
      }),
    );
  }

  async #lookAtBlobs(): Promise<void> {
    const folder = join(this.root, 'blobs/sha256');
    for (const prefix of await folderNames(folder)) {
      this.options.signal?.throwIfAborted();
      const digests = (await listDigests(join(folder, prefix))).filter((digest) => !this.#kept.has(blobPath(digest)));
      await Promise.all(
        digests.map((digest) =>
          this.#limit(async () => {
            const status = await statOrGone(join(this.root, blobPath(digest), 'data'));
            if (!status) return;
            const path = blobPath(digest);
            if (status.mtime >= this.options.youngSince) this.#kept.add(path);
            else
              this.#garbage.push({
                kind: 'blob',
                repository: this.#homes.get(digest) ?? null,
                digest,
                path,
                size: status.size,
              });
          }),
        ),
      );
    }
  }

  /** Uploads that nobody has sent a byte to for long, and nobody has open. */
  async #lookAtUploads(repositories: readonly string[]): Promise<void> {
    let open: Set<string> | undefined;
    for (const repository of repositories) {
      for (const id of await folderNames(join(this.root, uploadsPath(repository)))) {
        const path = `${uploadsPath(repository)}/${id}`;
        const files = await filesBelow(join(this.root, path));
        if (files.some(({ mtime }) => mtime >= this.options.uploadsSince)) continue;
        open ??= await openFiles();
        if (files.some((file) => open?.has(file.path))) continue;
        this.#garbage.push({
          kind: 'upload',
          repository,
          digest: null,
          path,
          size: files.reduce((sum, { size }) => sum + size, 0),
        });
      }
    }
  }

  /** Without a repository to look it up in. */
  async #keepBlobs(root: Digest): Promise<void> {
    const waiting = [root];
    for (let digest = waiting.pop(); digest; digest = waiting.pop()) {
      if (this.#kept.has(blobPath(digest))) continue;
      this.#kept.add(blobPath(digest));
      const isSmall = ((await statOrGone(join(this.root, blobPath(digest), 'data')))?.size ?? 0) <= maxManifestBytes;
      const references = isSmall ? await this.#parse(digest).catch(() => undefined) : undefined;
      // It may be a layer.
      if (!references) continue;
      waiting.push(...references.manifests);
      for (const part of references.mentioned) if (!references.manifests.includes(part)) this.#kept.add(blobPath(part));
    }
  }

  /**
   * Undefined when there is no such manifest; one that cannot be read is noted as damaged, and as one without
   * references.
   */
  async #readManifest(digest: Digest, name: string): Promise<ManifestReferences | undefined> {
    return this.#limit(async () => {
      try {
        return await this.#parse(digest);
      } catch (error) {
        if (!(error instanceof AppError)) throw error;
        this.#damaged.set(digest, `${name}: ${digest} ${error.details.detail}`);
        return { manifests: [], mentioned: [] };
      }
    });
  }

  async #parse(digest: Digest): Promise<ManifestReferences | undefined> {
    const { known } = this.options;
    const places = [join(this.root, blobPath(digest), 'data'), join(this.options.asideRoot, blobPath(digest), 'data')];
    const found = known.get(digest);
    if (found) return (await Promise.all(places.map(statOrGone))).some(Boolean) ? found : undefined;
    for (const path of places) {
      const size = (await statOrGone(path))?.size ?? 0;
      if (size > maxManifestBytes) throw new AppError('registry_damaged', { detail: `has ${size} bytes` });
      const bytes = await this.#readWhole(path, (content) => digestOf(content) === digest);
      if (!bytes) continue;
      if (digestOf(bytes) !== digest)
        throw new AppError('registry_damaged', { detail: 'has other bytes than its digest says' });
      const references = manifestReferences(bytes);
      known.set(digest, references);
      return references;
    }
    return undefined;
  }

  /** A file that may just be being written; undefined when there is none. */
  async #readWhole(path: string, isWhole: (bytes: Buffer) => boolean): Promise<Buffer | undefined> {
    for (let attempt = 1; ; attempt++) {
      try {
        const bytes = await readFileOrGone(this.storageDir, path);
        if (!bytes) return undefined;
        const isOver = attempt === writingTries || Date.now() - (await stat(path)).mtimeMs > writingMs;
        if (isOver || isWhole(bytes)) return bytes;
      } catch (error) {
        if (isGone(error)) return undefined;
        throw error;
      }
      await delay(100, undefined, { signal: this.options.signal });
    }
  }

  async #isYoung(path: string): Promise<boolean> {
    return this.#limit(async () => ((await statOrGone(join(this.root, path)))?.mtime ?? 0) >= this.options.youngSince);
  }
}

async function filesBelow(folder: string): Promise<{ path: string; size: number; mtime: Date }[]> {
  const found: { path: string; size: number; mtime: Date }[] = [];
  for (const entry of await listFolder(folder)) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) found.push(...(await filesBelow(path)));
    else {
      const status = await statOrGone(path);
      if (status) found.push({ path, size: status.size, mtime: status.mtime });
    }
  }
  return found;
}
