/**
 * Copies blobs of any source to files of a folder, verified, so that nothing wrong or half ever has its name: for a
 * registry's storage and for backup stores.
 */
import { link, lstat, mkdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { DirectFile } from '@airdock/disk/files/direct-file';
import { diskError, isWorthKeeping } from '@airdock/disk/files/durable-file';
import { createPooledDigest, hashPieces } from '@airdock/disk/files/hash-pool';
import { writeBelow } from '@airdock/disk/files/own-folder';
import { newPart, releasePart, takePart } from '@airdock/disk/files/parts';
import { pieceBytes } from '@airdock/disk/files/piece-memory';
import { readPieces } from '@airdock/disk/files/read-pieces';
import { runProgram } from '@airdock/disk/programs/helper-shell';
import type { BlobReader } from '@airdock/oci/image/image-source';

/** Blobs up to this size are written in one piece. */
const smallBytes = 256 * 1024;
const gatherMs = 5;

/** How a blob is placed, and who hears of it. */
export interface PlaceOptions {
  signal?: AbortSignal | undefined;
  /** Called with the number of bytes that were just placed. */
  onBytes?: ((count: number) => void) | undefined;
  /** Bounds how many copies run at a time; waiting for the disk is not bounded by it. */
  limit?: <T>(work: () => Promise<T>) => Promise<T>;
  /** Whether the bytes are on disk before they get their name. Default true. */
  isLasting?: boolean;
}

type Blob = Pick<Descriptor, 'digest' | 'size'>;

/** Places blobs in a folder: written apart, hashed on the way, flushed, then renamed. Several share one flush. */
export class BlobPlacer {
  #lastFlush: Promise<void> = Promise.resolve();
  #nextFlush: Promise<void> | undefined;

  constructor(
    private readonly root: string,
    /** Folder of unfinished copies, on the same file system as `root`. */
    private readonly incoming: string,
  ) {}

  /**
   * Copies a blob to `path`: hashed on the way, flushed to disk and only then given its name. Idempotent, safe beside
   * others that bring the same blob. A copy that was killed, aborted or failed for a reason that may pass leaves its
   * part, which the next one continues, and which goes after an hour without one. Throws `digest_mismatch`,
   * `space_insufficient`, what reading throws, and the signal's reason.
   */
  async bring(
    path: string,
    descriptor: Blob,
    reader: () => Promise<BlobReader>,
    { signal, onBytes, limit = (work) => work(), isLasting = true }: PlaceOptions,
  ): Promise<void> {
    let part = newPart(this.incoming, digestHex(descriptor.digest));
    try {
      await limit(async () => {
        signal?.throwIfAborted();
        await mkdir(this.incoming, { recursive: true });
        if (!(await lstat(this.incoming)).isDirectory()) throw new Error(`${this.incoming} is a link`);
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
      await writeBelow(this.root, path, (to) => rename(part, to));
    } catch (error) {
      const failure = diskError(error, path);
      const { size, nlink } = (await stat(part).catch(() => undefined)) ?? { size: 0, nlink: 0 };
      if (isWorthKeeping(failure) && size >= pieceBytes && nlink === 1) await releasePart(part);
      else await rm(part, { force: true });
      signal?.throwIfAborted();
      throw failure;
    }
  }

  /**
   * Resolves when everything that was placed before the call is on disk. Calls that come while a flush runs share the
   * next one.
   */
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
 * Copies a large blob into `path`. What is there already was left by another process: it is hashed and continued, and
 * when the whole turns out wrong the blob is copied once more from its beginning.
 */
async function copyVerified(
  reader: BlobReader,
  path: string,
  expected: Blob,
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
  { digest, size }: Blob,
  options: Pick<PlaceOptions, 'signal' | 'onBytes'>,
): Promise<void> {
  const digested = createPooledDigest();
  const look = hashPieces(digested, options);
  if (start > 0) await readPieces({ path, offset: 0, size: start }, look);
  const output = start > 0 ? await DirectFile.reopen(path, start) : await DirectFile.create(path);
  try {
    if (reader.file)
      await output.appendFrom({ path: reader.file.path, offset: reader.file.offset + start, size: size - start }, look);
    else {
      let count = start;
      for await (const chunk of reader.open({ start })) {
        count += (chunk as Buffer).byteLength;
        // It may go on without end.
        if (count > size) throw tooMany(count, { digest, size });
        await Promise.all([look(chunk as Buffer), output.append(chunk as Buffer)]);
      }
    }
    expectContent(await digested.value(), await output.finish(), { digest, size });
  } finally {
    await output.close();
  }
}

async function copySmall(
  reader: BlobReader,
  path: string,
  expected: Blob,
  onBytes?: (count: number) => void,
): Promise<void> {
  const chunks: Buffer[] = [];
  let count = 0;
  for await (const chunk of reader.open()) {
    count += (chunk as Buffer).byteLength;
    if (count > expected.size) throw tooMany(count, expected);
    chunks.push(chunk as Buffer);
  }
  const bytes = Buffer.concat(chunks);
  expectContent(digestOf(bytes), bytes.byteLength, expected);
  await writeFile(path, bytes, { flag: 'wx' });
  onBytes?.(bytes.byteLength);
}

const tooMany = (count: number, { digest, size }: Blob) =>
  new AppError('digest_mismatch', {
    detail: `a blob has ${count} bytes at least, not ${size} as ${digest}`,
    expected: digest,
  });

function expectContent(actual: Digest, written: number, { digest, size }: Blob): void {
  if (actual === digest && written === size) return;
  throw new AppError('digest_mismatch', {
    detail: `a blob has ${written} bytes and the digest ${actual}, not ${size} and ${digest}`,
    expected: digest,
    actual,
  });
}
