/**
 * Puts blobs into the folder of a `distribution` registry on this machine, past its HTTP interface, which hashes everything twice. Only what the registry
 * itself never changes again is written: blob files, and the links that make them part of a repository. Manifests and tags go through the registry, which
 * then checks that every blob is there. Layout: storage paths v2 of distribution, registry/storage/paths.go; see docs/adr/0009.
 */
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { access, type FileHandle, link, mkdir, open, readdir, readFile, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { createDigest, type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { diskError, syncFolder, writeDurably } from './durable-file.js';
import type { BlobReader } from './image-source.js';
import type { RegistryClient } from './registry-client.js';

/** Written by registry-svc into the storage folder: proof that a folder seen here is the one that the registry uses. */
export const storageMarker = 'airdock-storage-id';

const chunkBytes = 4 * 1024 * 1024;
const abandonedMs = 60 * 60 * 1000;

export interface PlaceOptions {
  signal?: AbortSignal | undefined;
  /** Called with the number of bytes that were just placed. */
  onBytes?: ((count: number) => void) | undefined;
}

export class RegistryStorage {
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
      await storage.place(repository, probe, async () => ({ size: probe.size, open: () => Readable.from([content]) }));
      const found = await registry.headBlob(repository, probe.digest);
      return found?.size === probe.size ? id : undefined;
    } finally {
      // No trace of it in the catalogue.
      await rm(join(folder, 'docker/registry/v2/repositories/airdock/layout-check'), { recursive: true, force: true });
      await rmdir(join(folder, 'docker/registry/v2/repositories/airdock')).catch(() => undefined);
      await rm(dirname(storage.blobFile(probe.digest)), { recursive: true, force: true });
      await sweepParts(join(folder, 'airdock-incoming'));
    }
  }

  /** The storage in `folder` if it can be written from here and carries the id; else undefined, and blobs have to go over HTTP. */
  static async open({ folder, id }: { folder: string; id: string }): Promise<RegistryStorage | undefined> {
    try {
      if ((await readFile(join(folder, storageMarker), 'utf8')).trim() !== id) return undefined;
      await access(folder, constants.W_OK);
      return new RegistryStorage(folder);
    } catch {
      // Another machine's folder, or another user's.
      return undefined;
    }
  }

  private blobFile(digest: Digest): string {
    const hex = digestHex(digest);
    return join(this.root, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data');
  }

  private linkFile(repository: string, digest: Digest): string {
    return join(this.root, 'docker/registry/v2/repositories', repository, '_layers/sha256', digestHex(digest), 'link');
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
   * Makes a blob part of a repository. Content that is not in the storage is copied and hashed on the way, synced to disk and only then given its name:
   * nothing wrong or half is ever visible. Idempotent, safe beside others that place the same blob. Throws `digest_mismatch`, `space_insufficient`, and
   * the signal's reason.
   */
  async place(repository: string, descriptor: Descriptor, reader: () => Promise<BlobReader>, options: PlaceOptions = {}): Promise<void> {
    const path = this.blobFile(descriptor.digest);
    if ((await stat(path).catch(() => undefined))?.size !== descriptor.size) await this.#bring(path, descriptor, await reader(), options);
    await writeDurably(this.linkFile(repository, descriptor.digest), Buffer.from(descriptor.digest));
  }

  async #bring(path: string, descriptor: Descriptor, reader: BlobReader, { signal, onBytes }: PlaceOptions): Promise<void> {
    signal?.throwIfAborted();
    const incoming = join(this.root, 'airdock-incoming');
    await mkdir(incoming, { recursive: true });
    await mkdir(dirname(path), { recursive: true });
    const part = join(incoming, `${digestHex(descriptor.digest)}.${randomUUID()}.part`);
    try {
      const { file } = reader;
      const isOurs = file?.verified === descriptor.digest && (await linkOrFalse(file.path, part));
      if (isOurs) onBytes?.(descriptor.size);
      else await copyVerified(reader, part, descriptor, signal, onBytes);
      await rename(part, path);
      await syncFolder(dirname(path));
    } catch (error) {
      await rm(part, { force: true });
      signal?.throwIfAborted();
      throw diskError(error, path);
    }
  }
}

/** Removes what processes that were killed have left; a running copy touches its part all the time. */
async function sweepParts(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    const path = join(folder, name);
    const status = await stat(path).catch(() => undefined);
    if (status && Date.now() - status.mtimeMs > abandonedMs) await rm(path, { force: true });
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

async function copyVerified(
  reader: BlobReader,
  path: string,
  { digest, size }: Descriptor,
  signal?: AbortSignal,
  onBytes?: (count: number) => void,
): Promise<void> {
  const hash = createDigest();
  let written = 0;
  const output = await open(path, 'wx', 0o644);
  try {
    for await (const chunk of chunksOf(reader)) {
      signal?.throwIfAborted();
      // The disk writes while this thread hashes.
      const writing = output.write(chunk, 0, chunk.byteLength, written);
      hash.update(chunk);
      await writing;
      written += chunk.byteLength;
      onBytes?.(chunk.byteLength);
    }
    const actual = hash.value();
    if (actual !== digest || written !== size)
      throw new AppError('digest_mismatch', {
        detail: `a blob has ${written} bytes and the digest ${actual}, not ${size} and ${digest}`,
        expected: digest,
        actual,
      });
    await output.sync();
  } finally {
    await output.close();
  }
}

/** The bytes of a blob in large pieces; each is only good until the next is asked for. Read ahead by one piece where they lie in a file. */
async function* chunksOf({ size, file, open: openStream }: BlobReader): AsyncGenerator<Buffer> {
  if (!file) {
    yield* openStream() as AsyncIterable<Buffer>;
    return;
  }
  const input = await open(file.path, constants.O_RDONLY | constants.O_NOFOLLOW);
  const length = Math.min(chunkBytes, Math.max(size, 1));
  const buffers = [Buffer.allocUnsafe(length), Buffer.allocUnsafe(size > length ? length : 0)];
  try {
    let offset = 0;
    let pending = read(input, buffers[0] as Buffer, file.offset, size);
    for (let index = 0; offset < size; index++) {
      const bytesRead = await pending;
      if (bytesRead === 0) return;
      const chunk = (buffers[index % 2] as Buffer).subarray(0, bytesRead);
      offset += bytesRead;
      if (offset < size) pending = read(input, buffers[(index + 1) % 2] as Buffer, file.offset + offset, size - offset);
      yield chunk;
    }
  } finally {
    await input.close();
  }
}

const read = async (input: FileHandle, buffer: Buffer, position: number, atMost: number): Promise<number> =>
  (await input.read(buffer, 0, Math.min(buffer.byteLength, atMost), position)).bytesRead;
