import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, constants, readFile, stat } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { Readable, Transform, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import { createDigest, type Digest, digestHex, isDigest } from '@airdock/core/oci/digest';
import { writeDurably } from './durable-file.js';
import type { BlobReader } from './image-source.js';

/** A layer compressed for the registry. */
export interface CompressedLayer {
  path: string;
  digest: Digest;
  /** Bytes. */
  size: number;
}

interface Engine {
  name: string;
  /** Absent for zlib, inside this process. */
  command?: readonly [string, ...string[]];
}

/** Programs to look for, fastest first; without any of them zlib is used, which is slower by far. */
export const compressionPrograms: readonly string[] = ['igzip', 'pigz'];

async function findEngine(programs: readonly string[]): Promise<Engine> {
  for (const name of programs) {
    for (const folder of (process.env.PATH ?? '').split(delimiter).filter(Boolean)) {
      const program = join(folder, name);
      const found = await access(program, constants.X_OK).then(
        () => true,
        () => false,
      );
      // Without name and time, so that one engine always gives the same bytes.
      if (found) return { name, command: [program, '-1', '-n', '-c'] };
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

/** Waits for a child; its own words become the error. */
async function exited(child: ChildProcess, name: string): Promise<void> {
  let words = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    words = (words + chunk.toString('utf8')).slice(0, 500);
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  if (code !== 0) throw new AppError('internal_error', { detail: `${name} ended with ${code ?? signal}: ${words.trim()}` });
}

/** Uncompressed layers, compressed once into a folder and found there by every later run: `<folder>/<diff ID>.tar.gz` with a `.json` beside it. */
export class LayerCache {
  readonly #running = new Map<Digest, Promise<CompressedLayer>>();

  #engine: Promise<Engine> | undefined;

  constructor(
    readonly folder: string,
    private readonly programs = compressionPrograms,
  ) {}

  /** A layer that was compressed before. */
  find(diffId: Digest): Promise<CompressedLayer | undefined> {
    return readRecord(join(this.folder, `${digestHex(diffId)}.tar.gz`));
  }

  /**
   * Compresses a layer, or finds it. The same layer asked for twice at a time is compressed once. Throws `digest_mismatch` naming `member` when the
   * bytes are not those of `diffId`, `space_insufficient`, and the signal's reason. `onBytes` counts uncompressed bytes.
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
    const work = this.#findOrCompress(diffId, member, reader, options).finally(() => this.#running.delete(diffId));
    this.#running.set(diffId, work);
    return work;
  }

  async #findOrCompress(
    diffId: Digest,
    member: string,
    reader: BlobReader,
    options: { signal?: AbortSignal | undefined; onBytes?: (count: number) => void },
  ): Promise<CompressedLayer> {
    const path = join(this.folder, `${digestHex(diffId)}.tar.gz`);
    const known = await readRecord(path);
    if (known) {
      options.onBytes?.(reader.size);
      return known;
    }
    this.#engine ??= findEngine(this.programs);
    const engine = await this.#engine;
    const plain = hashing(options.onBytes);
    const compressed = hashing();
    const check = () => {
      const actual = plain.digest();
      if (actual !== diffId)
        throw new AppError('digest_mismatch', { detail: `${member} has the digest ${actual}, its image says ${diffId}`, member, expected: diffId, actual });
    };
    const output = Readable.from(compress(engine, reader.open(), plain.through, check), { objectMode: false });
    const counted = output.compose(compressed.through) as Readable;
    // It may fail before anyone reads it, which ends the process; who reads it then still hears of it.
    counted.once('error', () => undefined);
    await writeDurably(path, counted, { signal: options.signal });
    const layer = { path, digest: compressed.digest(), size: compressed.size() };
    await writeDurably(`${path}.json`, Buffer.from(JSON.stringify({ digest: layer.digest, size: layer.size, engine: engine.name })), {});
    return layer;
  }
}

/** The compressed bytes; fails instead of ending when the input was not what `check` wants, so nothing wrong is ever kept. */
async function* compress(engine: Engine, input: Readable, plain: Transform, check: () => void): AsyncGenerator<Buffer> {
  const [program, ...args] = engine.command ?? [];
  const child = program === undefined ? undefined : spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  const ended = child ? exited(child, engine.name) : Promise.resolve();
  const zlib = child ? undefined : createGzip({ level: 1 });
  const fed = zlib ? pipeline(input, plain, zlib) : pipeline(input, plain, child?.stdin as Writable);
  // Looked at below, after the output; until then a failure shows as an output that ends.
  const both = Promise.allSettled([ended, fed]);
  try {
    yield* (zlib ?? child?.stdout) as Readable;
    for (const result of await both) if (result.status === 'rejected') throw result.reason;
    check();
  } finally {
    input.destroy();
    child?.kill('SIGKILL');
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
