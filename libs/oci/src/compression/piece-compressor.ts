/**
 * gzip of a layer by several processors: pieces of the input become members of one gzip file (RFC 1952, 2.2), which
 * every reader takes as one stream. Where a piece ends is part of the format: the same engine gives the same bytes on
 * any machine.
 */
import { randomUUID } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { appendFile, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { DirectFile } from '@airdock/disk/files/direct-file';
import { freeBytesOf } from '@airdock/disk/files/durable-file';
import { createPooledDigest, hashPieces } from '@airdock/disk/files/hash-pool';
import { type OnPiece, readPieces } from '@airdock/disk/files/read-pieces';
import { runProgram } from '@airdock/disk/programs/helper-shell';
import pLimit from 'p-limit';
import type { BlobReader } from '../image/image-source.js';

/** Bytes of the layer in one gzip member. */
const memberBytes = 32 * 1024 * 1024;
const lanes = Math.min(availableParallelism(), 4);
/** Bounds what runs for all layers together. */
const limit = pLimit(lanes);

/** What compresses gzip: a program, or zlib. */
export interface Engine {
  name: string;
  /** Compresses its input to its output. Absent for zlib, in the threads of this process. */
  command?: readonly [string, ...string[]];
}

/** How a layer is compressed, and who hears of it. */
export interface CompressOptions {
  signal?: AbortSignal | undefined;
  /** Counts bytes of the layer, also those that an earlier process has compressed. */
  onBytes?: ((count: number) => void) | undefined;
}

/**
 * Written after each member: what has been done up to its end. Digests of a beginning tell whether it is still the
 * same.
 */
interface Mark {
  engine: string;
  plainBytes: number;
  plain: Digest;
  size: number;
  compressed: Digest;
}

/** The compressed layer in its folder, whole once the journal says so. */
export const layerFile = (folder: string): string => join(folder, 'layer');
const journalFile = (folder: string): string => join(folder, 'journal');

/** Hands the next bytes to `onPiece`, `size` of them or up to the end, and returns how many. */
type Feed = (size: number, onPiece: OnPiece) => Promise<number>;

function feedOf(reader: BlobReader): { feed: Feed; close(): void } {
  const { file } = reader;
  if (file) {
    let position = 0;
    const feed: Feed = async (size, onPiece) => {
      const span = { path: file.path, offset: file.offset + position, size: Math.min(size, reader.size - position) };
      // A bundle was often just written or looked through.
      const count = await readPieces({ ...span, isCached: true }, onPiece);
      position += count;
      return count;
    };
    return { feed, close: () => undefined };
  }
  const stream = reader.open();
  const chunks = stream[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  let rest = Buffer.alloc(0);
  const feed: Feed = async (size, onPiece) => {
    let done = 0;
    while (done < size) {
      if (rest.byteLength === 0) {
        const next = await chunks.next();
        if (next.done) break;
        rest = next.value as Buffer<ArrayBuffer>;
      }
      const bytes = rest.subarray(0, size - done);
      rest = rest.subarray(bytes.byteLength);
      await onPiece(bytes);
      done += bytes.byteLength;
    }
    return done;
  };
  return { feed, close: () => stream.destroy() };
}

/**
 * Compresses a layer into `layerFile(folder)`, on disk when it resolves. `folder` must exist; what a stopped run left
 * in it is continued when it still fits, and the result has the same bytes. Returns the digests of both, which the
 * caller checks. Throws the signal's reason, `space_insufficient`, and what reading and writing throw.
 */
export async function compressInPieces(
  reader: BlobReader,
  folder: string,
  engine: Engine,
  options: CompressOptions,
): Promise<{ plain: Digest; digest: Digest; size: number }> {
  for (const name of await readdir(folder))
    if (/[.](plain|gz)$/.test(name)) await rm(join(folder, name), { force: true });
  const run =
    (await LayerRun.resume(reader, folder, engine, options)) ?? (await LayerRun.start(reader, folder, engine, options));
  return run.finish();
}

class LayerRun {
  /** In the names of files: a program that outlived the process which started it may still write to its own. */
  private readonly id = randomUUID();
  /** While one waits for its turn to be appended the next is compressed already. */
  private readonly busy: Promise<void>[] = Array.from({ length: lanes + 1 }, () => Promise.resolve());
  private appended: Promise<void> = Promise.resolve();

  private constructor(
    private readonly folder: string,
    private readonly engine: Engine,
    private readonly options: CompressOptions,
    private readonly input: ReturnType<typeof feedOf>,
    private readonly output: DirectFile,
    private readonly plain = createPooledDigest(),
    private readonly compressed = createPooledDigest(),
    private plainBytes = 0,
    private size = 0,
  ) {}

  static async start(reader: BlobReader, folder: string, engine: Engine, options: CompressOptions): Promise<LayerRun> {
    await rm(layerFile(folder), { force: true });
    await writeFile(journalFile(folder), '');
    return new LayerRun(folder, engine, options, feedOf(reader), await DirectFile.create(layerFile(folder)));
  }

  /** Undefined when there is nothing, or nothing that is of this layer and engine. */
  static async resume(
    reader: BlobReader,
    folder: string,
    engine: Engine,
    { signal, onBytes }: CompressOptions,
  ): Promise<LayerRun | undefined> {
    const mark = await lastMark(folder, engine);
    if (!mark) return undefined;
    const [plain, compressed] = [createPooledDigest(), createPooledDigest()];
    await readPieces({ path: layerFile(folder), offset: 0, size: mark.size }, hashPieces(compressed, { signal }));
    if ((await compressed.prefix()) !== mark.compressed) return undefined;
    const input = feedOf(reader);
    try {
      await input.feed(mark.plainBytes, hashPieces(plain, { signal }));
      if ((await plain.prefix()) !== mark.plain) {
        input.close();
        return undefined;
      }
      onBytes?.(mark.plainBytes);
      const output = await DirectFile.reopen(layerFile(folder), mark.size);
      return new LayerRun(
        folder,
        engine,
        { signal, onBytes },
        input,
        output,
        plain,
        compressed,
        mark.plainBytes,
        mark.size,
      );
    } catch (error) {
      input.close();
      throw error;
    }
  }

  async finish(): Promise<{ plain: Digest; digest: Digest; size: number }> {
    try {
      for (let index = 0; ; index = (index + 1) % this.busy.length) {
        await this.busy[index];
        this.options.signal?.throwIfAborted();
        const paths = {
          input: join(this.folder, `${this.id}-${index}.plain`),
          output: join(this.folder, `${this.id}-${index}.gz`),
        };
        const count = await this.spool(paths.input);
        if (count === 0 && this.plainBytes > 0) break;
        this.plainBytes += count;
        this.compressNext(index, paths, { count, plainBytes: this.plainBytes, plain: await this.plain.prefix() });
        if (count < memberBytes) break;
      }
      await this.appended;
      const size = await this.output.finish({ sync: true });
      return { plain: await this.plain.value(), digest: await this.compressed.value(), size };
    } finally {
      this.input.close();
      await Promise.allSettled(this.busy);
      await this.output.close();
    }
  }

  /**
   * Into a file, which takes less processor time than a pipe. It is used again for later members, and mostly gone
   * before it would reach the disk.
   */
  private async spool(path: string): Promise<number> {
    const { signal, onBytes } = this.options;
    const look = hashPieces(this.plain, { signal, onBytes });
    const file = await open(path, 'a').then(async (created) => {
      await created.close();
      return open(path, 'r+');
    });
    try {
      let end = 0;
      const count = await this.input.feed(memberBytes, (bytes) => {
        const position = end;
        end += bytes.byteLength;
        return Promise.all([look(bytes), writeAll(file, bytes, position)]);
      });
      await file.truncate(count);
      return count;
    } finally {
      await file.close();
    }
  }

  private compressNext(
    index: number,
    paths: { input: string; output: string },
    done: { count: number; plainBytes: number; plain: Digest },
  ): void {
    const compressed = limit(() => compressFile(this.engine, paths))
      .then(() => checkMember(paths.output, done.count))
      .catch(async (error: unknown) => {
        throw await orDiskFull(error, this.folder);
      });
    const before = this.appended;
    this.appended = compressed.then(async (size) => {
      await before;
      await this.output.appendFrom(
        { path: paths.output, offset: 0, size, isCached: true },
        hashPieces(this.compressed),
      );
      this.size += size;
      const { plainBytes, plain } = done;
      const mark: Mark = {
        engine: this.engine.name,
        plainBytes,
        plain,
        size: this.size,
        compressed: await this.compressed.prefix(),
      };
      await appendFile(journalFile(this.folder), `${JSON.stringify(mark)}\n`);
    });
    this.busy[index] = this.appended;
    // Thrown where it is waited for.
    compressed.catch(() => undefined);
    this.appended.catch(() => undefined);
  }
}

/** The last member that is in the file as a whole: the end of a file may still have been in memory. */
async function lastMark(folder: string, engine: Engine): Promise<Mark | undefined> {
  try {
    const { size } = await stat(layerFile(folder));
    const lines = (await readFile(journalFile(folder), 'utf8')).split('\n').slice(0, -1);
    const kept = lines
      .map((line) => JSON.parse(line) as Mark)
      .filter((mark) => mark.engine === engine.name && mark.size <= size);
    await writeFile(journalFile(folder), kept.map((mark) => `${JSON.stringify(mark)}\n`).join(''));
    return kept.at(-1);
  } catch {
    // Not there, or damaged by a power cut: it is made again.
    return undefined;
  }
}

async function compressFile(
  { command, name }: Engine,
  { input, output }: { input: string; output: string },
): Promise<void> {
  if (!command)
    return pipeline(
      createReadStream(input, { highWaterMark: 1024 * 1024 }),
      createGzip({ level: 1 }),
      createWriteStream(output),
    );
  const [program, ...args] = command;
  await runProgram(program, args, { input, output }).catch((cause: unknown) => {
    throw new AppError('internal_error', { detail: `${name} failed` }, { cause });
  });
}

/** Not every program says that the disk is full. Returns the size of the member. */
async function checkMember(path: string, plainBytes: number): Promise<number> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const { buffer } = await file.read(Buffer.alloc(4), 0, 4, Math.max(0, size - 4));
    if (size < 18 || buffer.readUInt32LE(0) !== plainBytes)
      throw new AppError('internal_error', { detail: 'the compressed piece is not complete' });
    return size;
  } finally {
    await file.close();
  }
}

/** A program says in its own words that the disk is full, if at all. */
async function orDiskFull(error: unknown, folder: string): Promise<unknown> {
  if ((await freeBytesOf(folder)) >= memberBytes) return error;
  return new AppError(
    'space_insufficient',
    { detail: `the disk of ${folder} is full`, path: folder },
    { cause: error },
  );
}

async function writeAll(file: Awaited<ReturnType<typeof open>>, bytes: Buffer, position: number): Promise<void> {
  for (let at = 0; at < bytes.byteLength; )
    at += (await file.write(bytes, at, bytes.byteLength - at, position + at)).bytesWritten;
}
