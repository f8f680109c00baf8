import { access, constants, mkdir, readdir, readFile, rename, rm, rmdir, stat } from 'node:fs/promises';
import { basename, delimiter, join } from 'node:path';
import { Transform } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { createDigest, type Digest, digestHex, isDigest } from '@airdock/core/oci/digest';
import { diskError, isWorthKeeping, syncFolder, writeDurably } from '@airdock/disk/files/durable-file';
import { newPart, releasePart, sweepParts, takePart } from '@airdock/disk/files/parts';
import { startHelperShell } from '@airdock/disk/programs/helper-shell';
import pLimit from 'p-limit';
import type { BlobReader } from '../image/image-source.js';
import { compressInPieces, type Engine, layerFile } from './piece-compressor.js';

/** A layer compressed for the registry. */
export interface CompressedLayer {
  path: string;
  digest: Digest;
  /** Bytes. */
  size: number;
}

/**
 * Each has its buffers. Small layers take more waiting for the disk than processor time, which a large one beside them
 * has a use for.
 */
const layersAtOnce = 4;

/** Programs to look for, fastest first; without any of them zlib is used, which is slower by far. */
export const compressionPrograms: readonly string[] = ['igzip', 'pigz'];

/** Members run beside each other already, and what pigz writes depends on how many threads it has. */
const threads: Partial<Record<string, readonly string[]>> = { pigz: ['-p', '1'] };

async function findEngine(programs: readonly string[]): Promise<Engine> {
  for (const name of programs) {
    for (const folder of (process.env.PATH ?? '').split(delimiter).filter(Boolean)) {
      const program = join(folder, name);
      const found = await access(program, constants.X_OK).then(
        () => true,
        () => false,
      );
      // Without name and time, so that one engine always gives the same bytes.
      if (found) return { name, command: [program, '-1', '-n', '-c', ...(threads[name] ?? [])] };
    }
  }
  return { name: 'zlib' };
}

/** Passes bytes on, hashed and counted. */
export function hashing(onBytes?: (count: number) => void): { through: Transform; digest(): Digest; size(): number } {
  const digest = createDigest();
  let size = 0;
  const through = new Transform({
    highWaterMark: 1024 * 1024,
    transform(chunk: Buffer, _encoding, done) {
      digest.update(chunk);
      size += chunk.byteLength;
      onBytes?.(chunk.byteLength);
      done(null, chunk);
    },
  });
  return { through, digest: () => digest.value(), size: () => size };
}

/**
 * Uncompressed layers, compressed once into a folder and found there by every later run: `<folder>/<diff ID>.tar.gz`
 * with a `.json` beside it.
 */
export class LayerCache {
  readonly #running = new Map<Digest, Promise<CompressedLayer>>();

  #engine: Promise<Engine> | undefined;
  readonly #limit = pLimit(layersAtOnce);

  constructor(
    readonly folder: string,
    private readonly programs = compressionPrograms,
  ) {}

  /** A layer that was compressed before. */
  find(diffId: Digest): Promise<CompressedLayer | undefined> {
    return readRecord(join(this.folder, `${digestHex(diffId)}.tar.gz`));
  }

  /**
   * Compresses a layer, or finds it. The same layer asked for twice at a time is compressed once. Throws
   * `digest_mismatch` naming `member` when the bytes are not those of `diffId`, `space_insufficient`, and the signal's
   * reason. `onBytes` counts uncompressed bytes. A run that was killed or aborted leaves a `.part` folder, which the
   * next one for this layer continues, and which goes after an hour without one.
   */
  get(
    diffId: Digest,
    member: string,
    reader: BlobReader,
    options: { signal?: AbortSignal | undefined; onBytes?: (count: number) => void } = {},
  ): Promise<CompressedLayer> {
    const running = this.#running.get(diffId);
    if (running) {
      return running.then((layer) => {
        options.onBytes?.(reader.size);
        return layer;
      });
    }
    const work = this.#limit(() => this.#findOrCompress(diffId, member, reader, options)).finally(() =>
      this.#running.delete(diffId),
    );
    this.#running.set(diffId, work);
    return work;
  }

  /**
   * Removes the layers whose compressed blobs are gone elsewhere, as `isGone` says, so that the space of files with
   * second names there is given back; they are made again when they are needed. While somebody uses the cache one that
   * was just found may be removed: the caller sees that nobody does. Returns how many.
   */
  async forget(isGone: (blob: Pick<CompressedLayer, 'digest' | 'size'>) => Promise<boolean>): Promise<number> {
    let removed = 0;
    for (const name of await readdir(this.folder).catch(() => [])) {
      const path = join(this.folder, name);
      const layer = name.endsWith('.tar.gz') ? await readRecord(path) : undefined;
      if (!layer || !(await isGone(layer))) continue;
      await rm(`${path}.json`, { force: true });
      await rm(path, { force: true });
      removed += 1;
    }
    return removed;
  }

  async #prepare(): Promise<Engine> {
    startHelperShell();
    await sweepParts(this.folder);
    return findEngine(this.programs);
  }

  async #findOrCompress(
    diffId: Digest,
    member: string,
    reader: BlobReader,
    options: { signal?: AbortSignal | undefined; onBytes?: (count: number) => void },
  ): Promise<CompressedLayer> {
    options.signal?.throwIfAborted();
    const path = join(this.folder, `${digestHex(diffId)}.tar.gz`);
    const known = await readRecord(path);
    if (known) {
      options.onBytes?.(reader.size);
      return known;
    }
    this.#engine ??= this.#prepare();
    const engine = await this.#engine;
    await mkdir(this.folder, { recursive: true });
    const subject = basename(path);
    const part = (await takePart(this.folder, subject)) ?? newPart(this.folder, subject);
    try {
      await mkdir(part, { recursive: true });
      const { plain, digest, size } = await compressInPieces(reader, part, engine, options);
      if (plain !== diffId) {
        const detail = `${member} has the digest ${plain}, its image says ${diffId}`;
        throw new AppError('digest_mismatch', { detail, member, expected: diffId, actual: plain });
      }
      await rename(layerFile(part), path);
      await syncFolder(this.folder);
      await rm(part, { recursive: true, force: true });
      await writeDurably(`${path}.json`, Buffer.from(JSON.stringify({ digest, size, engine: engine.name })), {});
      return { path, digest, size };
    } catch (error) {
      const failure = diskError(error, path);
      if (isWorthKeeping(failure)) await releasePart(part);
      else {
        await rm(part, { recursive: true, force: true });
        // Unless there are other layers.
        await rmdir(this.folder).catch(() => undefined);
      }
      options.signal?.throwIfAborted();
      throw failure;
    }
  }
}

async function readRecord(path: string): Promise<CompressedLayer | undefined> {
  try {
    const { digest, size } = JSON.parse(await readFile(`${path}.json`, 'utf8')) as { digest?: unknown; size?: unknown };
    if (!isDigest(digest) || (await stat(path)).size !== size) return undefined;
    return { path, digest, size };
  } catch {
    // Not there, or not readable: it is made again.
    return undefined;
  }
}
