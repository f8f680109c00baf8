/**
 * Puts blobs into the folder of a `distribution` registry on this machine, past its HTTP interface, which hashes
 * everything twice. Only what the registry itself never changes again is written: blob files, and the links that make
 * them part of a repository. Manifests and tags go through the registry, which then checks that every blob is there.
 * Layout: storage paths v2 of distribution, registry/storage/paths.go; see docs/adr/0009.
 */
import { constants } from 'node:fs';
import { access, lutimes, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf, isDigest } from '@airdock/core/oci/digest';
import { type Descriptor, maxManifestBytes } from '@airdock/core/oci/manifest';
import { ensureFolderMark, readFolderMark, whyNotSame } from '@airdock/disk/files/folder-mark';
import { digestOfFile } from '@airdock/disk/files/hash-pool';
import { replaceBelow, writeBelow } from '@airdock/disk/files/own-folder';
import { sweepParts } from '@airdock/disk/files/parts';
import { identityOf } from '@airdock/disk/files/regular-file';
import { startHelperShell } from '@airdock/disk/programs/helper-shell';
import type { BlobReader } from '@airdock/oci/image/image-source';
import type { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { BlobPlacer, type PlaceOptions } from './blob-placer.js';
import {
  blobPath,
  folderNames,
  isGone,
  layerPath,
  listRepositoryFolders,
  readSmall,
  registryRoot,
  revisionPath,
  statOrGone,
  tagPath,
} from './registry-layout.js';

/** Written by registry-svc into the storage folder: proof that a folder seen here is the one that the registry uses. */
export const storageMarker = 'airdock-storage-id';

/**
 * Up to this size a blob is there when its bytes are: reading them costs as much as looking for the file. Of larger
 * ones the size has to do, and verifications read them.
 */
const readBytes = 64 * 1024;

/** The storage of Airdock’s own registry, on this machine: reads, places and mends what is in it. */
export class RegistryStorage {
  private readonly placer: BlobPlacer;

  private constructor(
    private readonly root: string,
    /** Of the folder: when its disk is unmounted another one is there, below the mount. */
    private readonly identity: string,
  ) {
    this.placer = new BlobPlacer(root, this.incoming);
  }

  /**
   * Asks the registry that uses a storage folder whether a blob that was placed there is really there for it. Returns
   * the folder's id, or undefined when this registry keeps its blobs in another way than we know: then nobody may place
   * any. Called by whoever runs the registry, after each start, with the id that the folder must have; without one it
   * is marked if need be. Throws `registry_storage_changed`.
   */
  static async enable(folder: string, registry: RegistryClient, expectedId?: string): Promise<string | undefined> {
    const id = expectedId ?? (await ensureFolderMark(folder, storageMarker));
    const storage = new RegistryStorage(folder, identityOf(await stat(folder)));
    const why = whyNotSame(id, await readFolderMark(folder, storageMarker));
    if (why !== undefined) throw storageChanged(folder, why);
    const content = Buffer.from(`layout check of ${id}`);
    const probe = { mediaType: 'application/octet-stream', digest: digestOf(content), size: content.byteLength };
    const repository = 'airdock/layout-check';
    try {
      // It is gone at once, so no disk that is busy with others has to be waited for.
      await storage.place(repository, probe, async () => ({ size: probe.size, open: () => Readable.from([content]) }), {
        isLasting: false,
      });
      const found = await registry.headBlob(repository, probe.digest);
      return found?.size === probe.size ? id : undefined;
    } finally {
      // No trace of it in the catalogue.
      await rm(join(folder, 'docker/registry/v2/repositories/airdock/layout-check'), { recursive: true, force: true });
      await rmdir(join(folder, 'docker/registry/v2/repositories/airdock')).catch(() => undefined);
      await rm(dirname(storage.blobFile(probe.digest)), { recursive: true, force: true });
      await sweepParts(storage.incoming);
    }
  }

  /**
   * The storage in `folder` if it can be written from here and carries the id; else undefined, and blobs have to go
   * over HTTP.
   */
  static async open({ folder, id }: { folder: string; id: string }): Promise<RegistryStorage | undefined> {
    try {
      const identity = identityOf(await stat(folder));
      if (whyNotSame(id, await readFolderMark(folder, storageMarker)) !== undefined) return undefined;
      await access(folder, constants.W_OK);
      const storage = new RegistryStorage(folder, identity);
      startHelperShell();
      await sweepParts(storage.incoming);
      return storage;
    } catch {
      // Another machine's folder, or another user's.
      return undefined;
    }
  }

  private get incoming(): string {
    return join(this.root, 'airdock-incoming');
  }

  /** Where the bytes of a blob lie, when they are there. */
  blobFile(digest: Digest): string {
    return join(registryRoot(this.root), blobPath(digest), 'data');
  }

  private linkFile(repository: string, digest: Digest): string {
    return join(registryRoot(this.root), layerPath(repository, digest), 'link');
  }

  /** True when the repository has a link to the blob, whether that is there or not. */
  async isLinked(repository: string, digest: Digest): Promise<boolean> {
    // It says the digest that its folder is named after: its length tells one that was not written to its end.
    return (await statOrGone(this.linkFile(repository, digest)))?.size === digest.length;
  }

  /** True when some repository has the blob, with its size, and a small one with its bytes. */
  async hasBlob({ digest, size }: Pick<Descriptor, 'digest' | 'size'>): Promise<boolean> {
    return this.isWhole({ digest, size }, readBytes);
  }

  /** True when other bytes lie in its place, as far as `hasBlob` can tell. */
  async isDamaged({ digest, size }: Pick<Descriptor, 'digest' | 'size'>): Promise<boolean> {
    return !(await this.hasBlob({ digest, size })) && (await statOrGone(this.blobFile(digest))) !== undefined;
  }

  private async isWhole({ digest, size }: Pick<Descriptor, 'digest' | 'size'>, maxReadBytes: number): Promise<boolean> {
    if (size <= maxReadBytes) return isOf(digest, await readSmall(this.blobFile(digest), size));
    const status = await statOrGone(this.blobFile(digest));
    return status?.isFile() === true && status.size === size;
  }

  /** True when the repository has the blob, with its size. */
  async has(repository: string, { digest, size }: Descriptor): Promise<boolean> {
    const both = await Promise.all([this.hasBlob({ digest, size }), this.isLinked(repository, digest)]);
    return both.every(Boolean);
  }

  /**
   * As `has`, and makes the link new: what a push relies on is not collected as garbage before its manifest comes. The
   * blob itself is left as it is, since its file may have a second name in the cache of compressed layers, whose age
   * counts there.
   */
  async keep(repository: string, descriptor: Descriptor): Promise<boolean> {
    await this.assertSame();
    if (!(await this.has(repository, descriptor))) return false;
    try {
      await lutimes(this.linkFile(repository, descriptor.digest), new Date(), new Date());
      return true;
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  /**
   * The digest that the bytes of a blob really have; undefined when it is not there. `onBytes` gets what was just read.
   */
  async digestOf(
    digest: Digest,
    { signal, onBytes }: Pick<PlaceOptions, 'signal' | 'onBytes'> = {},
  ): Promise<Digest | undefined> {
    if (!(await statOrGone(this.blobFile(digest)))) return undefined;
    return digestOfFile(this.blobFile(digest), { signal, onBytes });
  }

  /**
   * Takes a damaged blob out of the registry, so that the next push brings it again; the bytes stay in
   * `airdock-damaged/` to be looked at.
   */
  async setAside({ digest }: Pick<Descriptor, 'digest' | 'size'>): Promise<void> {
    await setBlobAside(this.root, digest);
  }

  /**
   * As `setAside`, when other bytes lie there than those of the digest: distribution takes a file that is there for the
   * blob, whatever is in it, so that nothing pushed by HTTP mends it. Source: `blobStore.Put` and `blobWriter.moveBlob`
   * in registry/storage. True when there were.
   */
  async setAsideDamaged(descriptor: Pick<Descriptor, 'digest' | 'size'>): Promise<boolean> {
    if (!(await statOrGone(this.blobFile(descriptor.digest))) || (await this.isWhole(descriptor, maxManifestBytes)))
      return false;
    await this.assertSame();
    await this.setAside(descriptor);
    return true;
  }

  /** All tags, as the registry would list them. */
  async listNames(): Promise<{ repository: string; tag: string }[]> {
    const root = registryRoot(this.root);
    const names = await Promise.all(
      (await listRepositoryFolders(root)).map(async (repository) =>
        (await folderNames(join(root, tagPath(repository, '')))).map((tag) => ({ repository, tag })),
      ),
    );
    return names.flat();
  }

  /**
   * What a tag or the digest of a manifest leads to in a repository, as the registry would answer: the manifest is
   * known there, and its bytes, which are read, lie in the folder. Undefined when it is not so, or not seen here: then
   * the registry has to be asked.
   */
  async resolve(repository: string, reference: string): Promise<Digest | undefined> {
    const root = registryRoot(this.root);
    const digest = isDigest(reference)
      ? reference
      : (await readSmall(join(root, tagPath(repository, reference), 'current/link'), maxLinkBytes))?.toString().trim();
    if (digest === undefined || !isDigest(digest)) return undefined;
    const [link, manifest] = await Promise.all([
      readSmall(join(root, revisionPath(repository, digest), 'link'), maxLinkBytes),
      readSmall(this.blobFile(digest), maxManifestBytes),
    ]);
    return link?.toString() === digest && isOf(digest, manifest) ? digest : undefined;
  }

  /**
   * Makes a blob part of a repository. Content that is not in the storage is copied and hashed on the way, flushed to
   * disk and only then given its name: nothing wrong or half is ever visible. The link is on disk after the next
   * `flush`. Idempotent, safe beside others that place the same blob. A copy that was killed, aborted or failed for a
   * reason that may pass leaves its part, which the next one continues, and which goes after an hour without one.
   * Throws `digest_mismatch`, `space_insufficient`, and the signal's reason.
   */
  async place(
    repository: string,
    descriptor: Descriptor,
    reader: () => Promise<BlobReader>,
    options: PlaceOptions = {},
  ): Promise<void> {
    await this.assertSame();
    const path = this.blobFile(descriptor.digest);
    if (!(await this.hasBlob(descriptor))) await this.placer.bring(path, descriptor, reader, options);
    await replaceBelow(this.root, this.linkFile(repository, descriptor.digest), descriptor.digest);
    await this.assertSame();
  }

  /** Nothing is written below the mount of a disk that is gone, nor is what was written there taken for written. */
  private async assertSame(): Promise<void> {
    const identity = await stat(this.root).then(identityOf, (error: NodeJS.ErrnoException) => error.code);
    if (identity !== this.identity)
      throw storageChanged(this.root, 'another folder is there now: its disk is not mounted any more');
  }

  /**
   * Resolves when everything that was placed before the call is on disk. Calls that come while a flush runs share the
   * next one.
   */
  flush(): Promise<void> {
    return this.placer.flush();
  }
}

/** `registry_storage_changed`. */
export const storageChanged = (folder: string, why: string, details: Record<string, unknown> = {}) =>
  new AppError('registry_storage_changed', { detail: `${folder}: ${why}`, ...details });

/** See `RegistryStorage.setAside`. */
export async function setBlobAside(storageDir: string, digest: Digest): Promise<void> {
  const from = join(registryRoot(storageDir), blobPath(digest), 'data');
  await writeBelow(storageDir, join(storageDir, 'airdock-damaged', digestHex(digest)), (to) => rename(from, to));
}

const isOf = (digest: Digest, bytes: Uint8Array | undefined): boolean =>
  bytes !== undefined && digestOf(bytes) === digest;

/** A digest, and perhaps a line end. */
const maxLinkBytes = 256;
