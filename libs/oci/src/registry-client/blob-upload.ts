import type { Readable } from 'node:stream';
import { AppError, isTransient } from '@airdock/core/errors';
import type { Descriptor } from '@airdock/core/oci/manifest';
import { createPooledDigest, hashPieces, type PooledDigest } from '@airdock/disk/files/hash-pool';
import { PieceStream } from '@airdock/disk/files/read-pieces';
import type { BlobReader } from '../image/image-source.js';
import type { RegistryHttp } from './registry-http.js';
import type { SessionSlot, UploadSession } from './upload-sessions.js';

/** What an interrupted upload loses at most. */
const pieceBytes = 64 * 1024 * 1024;
/** Cleaning up an upload is a courtesy; the registry purges what is left. It must not hold up a cancel. */
const cancelTimeoutMs = 500;

/** How a blob is uploaded, and who hears of it. */
export interface UploadOptions {
  signal?: AbortSignal | undefined;
  /**
   * Called with the number of bytes that were just handed to the connection, or that an earlier upload has already
   * brought.
   */
  onBytes?: ((count: number) => void) | undefined;
  /** Remembers an upload of more than one piece (64 MiB), so that another run goes on with it. */
  session?: SessionSlot | undefined;
}

/** One upload of a blob into a repository. See `RegistryClient.uploadBlob`. */
export class BlobUpload {
  constructor(
    private readonly http: RegistryHttp,
    private readonly repository: string,
    private readonly descriptor: Descriptor,
    private readonly reader: BlobReader,
    private readonly options: UploadOptions,
  ) {}

  async run(): Promise<void> {
    const { descriptor, reader, options } = this;
    if (reader.size !== descriptor.size)
      throw this.#mismatch(`the source has ${reader.size} bytes instead of ${descriptor.size}`);
    const slot = descriptor.size > pieceBytes ? options.session : undefined;
    const earlier = await slot?.load();
    const resumed = earlier && (await this.#resume(earlier));
    const upload = resumed ?? { location: await this.#start(), offset: 0 };
    const content = new VerifiedContent(reader, descriptor, (detail) => this.#mismatch(detail));
    try {
      await this.#send(upload, content, slot);
      await slot?.clear();
    } catch (error) {
      const goesOn = slot && upload.offset > 0 && (options.signal?.aborted || isTransient(error));
      if (goesOn) throw error;
      await cancelUpload(this.http, upload.location);
      await options.session?.discard(upload.location);
      // The registry knows nothing of the upload any more: the next try begins anew.
      const isForgotten =
        resumed && error instanceof AppError && String(error.details.registryCode).startsWith('BLOB_UPLOAD');
      throw isForgotten ? new AppError('registry_unavailable', error.details, { cause: error }) : error;
    } finally {
      await content.close();
    }
  }

  async #start(): Promise<string> {
    const path = `/v2/${this.repository}/blobs/uploads/`;
    const started = await this.http.send({
      method: 'POST',
      path,
      headers: { 'content-length': '0' },
      signal: this.options.signal,
    });
    await started.discard();
    const location = started.header('location');
    if (!location) throw new AppError('registry_rejected', { detail: 'the registry gave no upload location' });
    return location;
  }

  /** Where an earlier upload goes on; undefined when the registry has given it up. */
  async #resume({ location }: UploadSession): Promise<UploadSession | undefined> {
    const answer = await this.http.send(
      { method: 'GET', path: location, signal: this.options.signal },
      (status) => status < 500,
    );
    await answer.discard();
    const [, last] = /^(?:bytes=)?0-(\d+)$/.exec(answer.header('range') ?? '') ?? [];
    const offset = Number(last) + 1;
    if (answer.status >= 300 || !(offset > 1) || offset > this.descriptor.size) return undefined;
    return { location: answer.header('location') ?? location, offset };
  }

  /**
   * Whole pieces, each acknowledged by the registry, and the rest with the digest. Keeps `upload` at what has been
   * acknowledged.
   */
  async #send(upload: UploadSession, content: VerifiedContent, slot: SessionSlot | undefined): Promise<void> {
    const { http, descriptor } = this;
    const { signal, onBytes } = this.options;
    // What the registry has is read and hashed, and not sent.
    for await (const chunk of content.take(upload.offset)) onBytes?.(chunk.byteLength);
    const headers = { 'content-type': 'application/octet-stream' };
    while (slot && descriptor.size - upload.offset > pieceBytes) {
      const end = upload.offset + pieceBytes;
      const answer = await http.send({
        method: 'PATCH',
        path: upload.location,
        headers: { ...headers, 'content-length': String(pieceBytes), 'content-range': `${upload.offset}-${end - 1}` },
        body: counted(content.take(pieceBytes), onBytes),
        signal,
      });
      await answer.discard();
      Object.assign(upload, { location: answer.header('location') ?? upload.location, offset: end });
      await slot.save(upload);
    }
    const left = descriptor.size - upload.offset;
    const target = http.resolve(upload.location);
    target.searchParams.set('digest', descriptor.digest);
    const finished = await http.send({
      method: 'PUT',
      path: target.href,
      headers: { ...headers, 'content-length': String(left) },
      body: left === 0 ? Buffer.alloc(0) : counted(content.rest(), onBytes),
      signal,
    });
    await finished.discard();
  }

  #mismatch(detail: string): AppError {
    const { digest } = this.descriptor;
    return new AppError('digest_mismatch', { detail: `${digest}: ${detail}`, digest });
  }
}

/**
 * Removes an unfinished upload, as far as the registry can: distribution 2 refuses for one that broke off in the
 * middle, because its state no longer matches the location, and removes it with its own purge of old uploads.
 */
export async function cancelUpload(http: RegistryHttp, location: string): Promise<void> {
  const cancelled = http.send({ method: 'DELETE', path: location, timeoutMs: cancelTimeoutMs }, () => true);
  await cancelled.then(
    (response) => response.discard(),
    () => undefined,
  );
}

async function* counted(
  chunks: AsyncIterable<Uint8Array>,
  onBytes?: (count: number) => void,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    onBytes?.(chunk.byteLength);
    yield chunk;
  }
}

interface Chunks {
  next(): Promise<Uint8Array | undefined>;
  close(): Promise<void>;
}

/**
 * The bytes of a blob, hashed as they are taken; the last of them only when size and digest are right, so that a
 * registry never gets the end of wrong bytes. A chunk may be overwritten when the one after the next is asked for.
 */
class VerifiedContent {
  readonly #digest = createPooledDigest();
  readonly #chunks: Chunks;
  #left: Uint8Array = new Uint8Array();
  #size = 0;

  constructor(
    reader: BlobReader,
    private readonly descriptor: Descriptor,
    private readonly mismatch: (detail: string) => AppError,
  ) {
    const { file, size } = reader;
    this.#chunks = file
      ? new PieceStream({ ...file, size }, hashPieces(this.#digest))
      : hashedStream(reader.open(), this.#digest);
  }

  /** The next `count` bytes. */
  async *take(count: number): AsyncGenerator<Uint8Array> {
    for (let missing = count; missing > 0; ) {
      const chunk = await this.#next();
      if (!chunk) throw this.mismatch(`the content has only ${this.#size} bytes instead of ${this.descriptor.size}`);
      const part = chunk.subarray(0, missing);
      this.#left = chunk.subarray(part.byteLength);
      missing -= part.byteLength;
      yield part;
    }
  }

  /** Everything that was not taken yet, one chunk late. */
  async *rest(): AsyncGenerator<Uint8Array> {
    const { size, digest } = this.descriptor;
    let held: Uint8Array | undefined;
    for (let chunk = await this.#next(); chunk; chunk = await this.#next()) {
      this.#left = new Uint8Array();
      if (this.#size > size) break;
      if (held) yield held;
      held = chunk;
    }
    if (this.#size !== size)
      throw this.mismatch(
        `the content has ${this.#size < size ? 'only ' : 'at least '}${this.#size} bytes instead of ${size}`,
      );
    const actual = await this.#digest.value();
    if (actual !== digest) throw this.mismatch(`the content has the digest ${actual}`);
    if (held) yield held;
  }

  /** Ends reading. Nothing looks at the memory of its chunks any more when it resolves. */
  async close(): Promise<void> {
    await this.#chunks.close();
  }

  async #next(): Promise<Uint8Array | undefined> {
    if (this.#left.byteLength > 0) return this.#left;
    const chunk = await this.#chunks.next();
    this.#size += chunk?.byteLength ?? 0;
    return chunk;
  }
}

function hashedStream(content: Readable, digest: PooledDigest): Chunks {
  const chunks = content[Symbol.asyncIterator]() as AsyncIterator<Uint8Array, undefined>;
  return {
    async next() {
      const { value } = await chunks.next();
      if (value) await digest.update(value);
      return value;
    },
    async close() {
      content.destroy();
    },
  };
}
