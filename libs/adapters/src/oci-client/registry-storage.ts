/**
 * Puts blobs into the folder of a `distribution` registry on this machine, past its HTTP interface, which hashes everything twice. Only what the registry
 * itself never changes again is written: blob files, and the links that make them part of a repository. Manifests and tags go through the registry, which
 * then checks that every blob is there. Layout: storage paths v2 of distribution, registry/storage/paths.go; see docs/adr/0009.
 */
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { access, link, mkdir, readFile, rename, rm, rmdir, stat, utimes, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf, isDigest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { DirectFile } from './direct-file.js';
import { diskError, isWorthKeeping, writeDurably } from './durable-file.js';
import { createPooledDigest, digestOfFile, hashPieces } from './hash-pool.js';
import { runProgram, startHelperShell } from './helper-shell.js';
import type { BlobReader } from './image-source.js';
import { newPart, releasePart, sweepParts, takePart } from './parts.js';
import { pieceBytes } from './piece-memory.js';
import { readPieces } from './read-pieces.js';
import type { RegistryClient } from './registry-client.js';
import { blobPath, isGone, layerPath, registryRoot, revisionPath, tagPath } from './registry-layout.js';

/** Written by registry-svc into the storage folder: proof that a folder seen here is the one that the registry uses. */
export const storageMarker = 'airdock-storage-id';

/** Blobs up to this size are written in one piece. */
const smallBytes = 256 * 1024;
const gatherMs = 5;

export interface PlaceOptions {
  signal?: AbortSignal | undefined;
  /** Called with the number of bytes that were just placed. */
  onBytes?: ((count: number) => void) | undefined;
  /** Bounds how many copies run at a time; waiting for the disk is not bounded by it. */
  limit?: <T>(work: () => Promise<T>) => Promise<T>;
  /** Whether the bytes are on disk before they get their name. Default true. */
  isLasting?: boolean;
}

export class RegistryStorage {
  #lastFlush: Promise<void> = Promise.resolve();
  #nextFlush: Promise<void> | undefined;

  private constructor(private readonly root: string) {}

  /**
   * Marks a storage folder, and asks the registry that uses it whether a blob that was placed there is really there for it. Returns the folder's id, or
   * undefined when this registry keeps its blobs in another way than we know: then nobody may place any. Called by whoever runs the registry, after each start.
   */
  static async enable(folder: string, registry: RegistryClient): Promise<string | undefined> {
    const marker = join(folder, storageMarker);
    const id = (await readFile(marker, 'utf8').catch(() => '')).trim() || randomUUID();
    await writeDurably(marker, Buffer.from(`${id}\n`));
    const storage = new RegistryStorage(folder);
    const content = Buffer.from(`layout check of ${id}`);
    const probe = { mediaType: 'application/octet-stream', digest: digestOf(content), size: content.byteLength };
    const repository = 'airdock/layout-check';
    try {
      // It is gone at once, so no disk that is busy with others has to be waited for.
      await storage.place(repository, probe, async () => ({ size: probe.size, open: () => Readable.from([content]) }), { isLasting: false });
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

  /** The storage in `folder` if it can be written from here and carries the id; else undefined, and blobs have to go over HTTP. */
  static async open({ folder, id }: { folder: string; id: string }): Promise<RegistryStorage | undefined> {
    try {
      if ((await readFile(join(folder, storageMarker), 'utf8')).trim() !== id) return undefined;
      await access(folder, constants.W_OK);
      const storage = new RegistryStorage(folder);
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

  /** True when some repository has the blob, with its size. */
  async hasBlob({ digest, size }: Pick<Descriptor, 'digest' | 'size'>): Promise<boolean> {
    return (await stat(this.blobFile(digest)).catch(() => undefined))?.size === size;
  }

  /** True when the repository has the blob, with its size. */
  async has(repository: string, { digest, size }: Descriptor): Promise<boolean> {
    const [blob, linked] = await Promise.all([
      stat(this.blobFile(digest)).catch(() => undefined),
      readFile(this.linkFile(repository, digest), 'utf8').catch(() => ''),
    ]);
    return blob?.size === size && linked === digest;
  }

  /**
   * As `has`, and makes the link new: what a push relies on is not collected as garbage before its manifest comes. The blob itself is left as it is, since its
   * file may have a second name in the cache of compressed layers, whose age counts there.
   */
  async keep(repository: string, descriptor: Descriptor): Promise<boolean> {
    if (!(await this.has(repository, descriptor))) return false;
    try {
      await utimes(this.linkFile(repository, descriptor.digest), new Date(), new Date());
      return true;
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  /** The digest that the bytes of a blob really have; undefined when it is not there. `onBytes` gets what was just read. */
  async digestOf(digest: Digest, { signal, onBytes }: Pick<PlaceOptions, 'signal' | 'onBytes'> = {}): Promise<Digest | undefined> {
    if (!(await stat(this.blobFile(digest)).catch(() => undefined))) return undefined;
    return digestOfFile(this.blobFile(digest), { signal, onBytes });
  }

  /** Takes a damaged blob out of the registry, so that the next push brings it again; the bytes stay in `airdock-damaged/` to be looked at. */
  async setAside({ digest }: Pick<Descriptor, 'digest' | 'size'>): Promise<void> {
    const folder = join(this.root, 'airdock-damaged');
    await mkdir(folder, { recursive: true });
    await rename(this.blobFile(digest), join(folder, digestHex(digest)));
  }

  /**
   * What a tag or the digest of a manifest leads to in a repository, as the registry would answer: the manifest is known there, and its bytes lie in the
   * folder. Undefined when it is not so, or not seen here: then the registry has to be asked.
   */
  async resolve(repository: string, reference: string): Promise<Digest | undefined> {
    const link = async (path: string) => (await readFile(join(registryRoot(this.root), path), 'utf8').catch(() => '')).trim();
    const digest = isDigest(reference) ? reference : await link(join(tagPath(repository, reference), 'current/link'));
    if (!isDigest(digest)) return undefined;
    const [revision, blob] = await Promise.all([link(join(revisionPath(repository, digest), 'link')), stat(this.blobFile(digest)).catch(() => undefined)]);
    return revision === digest && blob ? digest : undefined;
  }

  /**
   * Makes a blob part of a repository. Content that is not in the storage is copied and hashed on the way, flushed to disk and only then given its name:
   * nothing wrong or half is ever visible. The link is on disk after the next `flush`. Idempotent, safe beside others that place the same blob. A copy that was
   * killed, aborted or failed for a reason that may pass leaves its part, which the next one continues, and which goes after an hour without one. Throws
   * `digest_mismatch`, `space_insufficient`, and the signal's reason.
   */
  async place(repository: string, descriptor: Descriptor, reader: () => Promise<BlobReader>, options: PlaceOptions = {}): Promise<void> {
    const path = this.blobFile(descriptor.digest);
    if ((await stat(path).catch(() => undefined))?.size !== descriptor.size) await this.#bring(path, descriptor, reader, options);
    const linkFile = this.linkFile(repository, descriptor.digest);
    await mkdir(dirname(linkFile), { recursive: true });
    const fresh = `${linkFile}.${randomUUID()}`;
    await writeFile(fresh, descriptor.digest);
    await rename(fresh, linkFile);
  }

  /** Resolves when everything that was placed before the call is on disk. Calls that come while a flush runs share the next one. */
  flush(): Promise<void> {
    this.#nextFlush ??= this.#lastFlush.then(async () => {
      // A moment for others to join: a flush costs about as much for one blob as for a hundred.
      await delay(gatherMs);
      this.#nextFlush = undefined;
      const flushed = runProgram('sync', ['--file-system', this.root]);
      this.#lastFlush = flushed.catch(() => undefined);
      return flushed;
    });
    return this.#nextFlush;
  }

  async #bring(
    path: string,
    descriptor: Descriptor,
    reader: () => Promise<BlobReader>,
    { signal, onBytes, limit = (work) => work(), isLasting = true }: PlaceOptions,
  ): Promise<void> {
    let part = newPart(this.incoming, digestHex(descriptor.digest));
    try {
      await limit(async () => {
        signal?.throwIfAborted();
        await mkdir(this.incoming, { recursive: true });
        const source = await reader();
        const isOurs = source.file?.verified === descriptor.digest && (await linkOrFalse(source.file.path, part));
        if (isOurs) onBytes?.(descriptor.size);
        else if (descriptor.size <= smallBytes) await copySmall(source, part, descriptor, onBytes);
        else {
          part = (await takePart(this.incoming, digestHex(descriptor.digest))) ?? part;
          await copyVerified(source, part, descriptor, { signal, onBytes });
        }
      });
      // One flush serves all blobs that arrive meanwhile: a sync for each would cost more than the copy of small ones.
      if (isLasting) await this.flush();
      await mkdir(dirname(path), { recursive: true });
      await rename(part, path);
    } catch (error) {
      const failure = diskError(error, path);
      const { size, nlink } = (await stat(part).catch(() => undefined)) ?? { size: 0, nlink: 0 };
      if (isWorthKeeping(failure) && size >= pieceBytes && nlink === 1) await releasePart(part);
      else await rm(part, { force: true });
      signal?.throwIfAborted();
      throw failure;
    }
  }
}

/** A second name for a file that is ours and never changes costs nothing; across file systems it is not possible. */
async function linkOrFalse(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch {
    return false;
  }
}

/**
 * Copies a large blob into `path`. What is there already was left by another process: it is hashed and continued, and when the whole turns out wrong the blob is
 * copied once more from its beginning.
 */
async function copyVerified(
  reader: BlobReader,
  path: string,
  expected: Pick<Descriptor, 'digest' | 'size'>,
  options: Pick<PlaceOptions, 'signal' | 'onBytes'>,
): Promise<void> {
  const found = Math.min((await stat(path).catch(() => undefined))?.size ?? 0, expected.size);
  // The last piece may be there in part.
  const start = found - (found % pieceBytes);
  if (start > 0) {
    try {
      return await copyFrom(start, reader, path, expected, options);
    } catch (error) {
      if (!(error instanceof AppError && error.code === 'digest_mismatch')) throw error;
    }
  }
  await rm(path, { force: true });
  return copyFrom(0, reader, path, expected, start > 0 ? { signal: options.signal } : options);
}

async function copyFrom(
  start: number,
  reader: BlobReader,
  path: string,
  { digest, size }: Pick<Descriptor, 'digest' | 'size'>,
  options: Pick<PlaceOptions, 'signal' | 'onBytes'>,
): Promise<void> {
  const digested = createPooledDigest();
  const look = hashPieces(digested, options);
  if (start > 0) await readPieces({ path, offset: 0, size: start }, look);
  const output = start > 0 ? await DirectFile.reopen(path, start) : await DirectFile.create(path);
  try {
    if (reader.file) await output.appendFrom({ path: reader.file.path, offset: reader.file.offset + start, size: size - start }, look);
    else for await (const chunk of reader.open({ start })) await Promise.all([look(chunk as Buffer), output.append(chunk as Buffer)]);
    expectContent(await digested.value(), await output.finish(), { digest, size });
  } finally {
    await output.close();
  }
}

async function copySmall(reader: BlobReader, path: string, expected: Pick<Descriptor, 'digest' | 'size'>, onBytes?: (count: number) => void): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const chunk of reader.open()) chunks.push(chunk as Buffer);
  const bytes = Buffer.concat(chunks);
  expectContent(digestOf(bytes), bytes.byteLength, expected);
  await writeFile(path, bytes, { flag: 'wx' });
  onBytes?.(bytes.byteLength);
}

function expectContent(actual: Digest, written: number, { digest, size }: Pick<Descriptor, 'digest' | 'size'>): void {
  if (actual === digest && written === size) return;
  throw new AppError('digest_mismatch', {
    detail: `a blob has ${written} bytes and the digest ${actual}, not ${size} and ${digest}`,
    expected: digest,
    actual,
  });
}
