/** sha256 in threads beside the one that answers the API, which must not stand still for a second per gigabyte. */
import { createHash } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import type { HashAnswer, HashRequest } from './hash-worker.js';
import { type OnPiece, readPieces } from './read-pieces.js';

/** Up to here handing bytes over costs more than hashing them. */
const inlineBytes = 256 * 1024;
const maxThreads = 4;

/** A running digest; its calls are worked off in their order. */
export interface PooledDigest {
  /**
   * Resolves when the bytes are hashed: until then their memory must stay as it is. Bytes in a `SharedArrayBuffer` are
   * not copied. A caller may go on without waiting.
   */
  update(chunk: Uint8Array): Promise<void>;
  /** Of everything until here; more may follow. */
  prefix(): Promise<Digest>;
  /** May be called once, last. */
  value(): Promise<Digest>;
}

interface Waiting {
  resolve(answer: HashAnswer): void;
  reject(reason: unknown): void;
}

/** One thread. It keeps the process alive only while somebody waits for it. */
class HashThread {
  /** Running digests, which stay in their thread. */
  digests = 0;
  #call = 0;
  #gone: AppError | undefined;
  readonly #waiting = new Map<number, Waiting>();
  // From source the file is TypeScript, which Node.js takes as it is.
  readonly #worker = new Worker(
    new URL(import.meta.url.endsWith('.ts') ? './hash-worker.ts' : './hash-worker.js', import.meta.url),
    { execArgv: [] },
  );

  constructor() {
    this.#worker.unref();
    const gone = (cause: unknown) => {
      this.#gone ??= new AppError('internal_error', { detail: 'a hashing thread ended' }, { cause });
      threads.delete(this);
      for (const { reject } of this.#waiting.values()) reject(this.#gone);
      this.#waiting.clear();
    };
    this.#worker.on('error', gone).on('exit', gone);
    this.#worker.on('message', (answer: HashAnswer) => {
      this.#waiting.get(answer.call)?.resolve(answer);
      this.#waiting.delete(answer.call);
      if (this.#waiting.size === 0) this.#worker.unref();
    });
  }

  ask(request: Omit<HashRequest, 'call'>): Promise<HashAnswer> {
    if (this.#gone) return Promise.reject(this.#gone);
    const call = this.#call++;
    const { bytes } = request;
    // A view would take all of the memory below it along.
    const copy = bytes && !(bytes.buffer instanceof SharedArrayBuffer) ? new Uint8Array(bytes) : undefined;
    const answer = new Promise<HashAnswer>((resolve, reject) => {
      if (this.#waiting.size === 0) this.#worker.ref();
      this.#waiting.set(call, { resolve, reject });
      this.#worker.postMessage(
        { ...request, call, ...(copy && { bytes: copy }) } satisfies HashRequest,
        copy ? [copy.buffer] : [],
      );
    });
    // Whoever does not wait hears of it by the next call.
    answer.catch(() => undefined);
    return answer;
  }
}

const threads = new Set<HashThread>();

/** A new thread while there may be more, unless one is idle; else the least busy. */
function findThread(): HashThread {
  const [best] = [...threads].sort((a, b) => a.digests - b.digests);
  if (best && (best.digests === 0 || threads.size >= Math.min(availableParallelism(), maxThreads))) return best;
  const thread = new HashThread();
  threads.add(thread);
  return thread;
}

interface RemoteHash {
  thread: HashThread;
  hash: number;
}

let lastHash = 0;

function endRemote({ thread, hash }: RemoteHash, ask: 'end' | 'drop'): Promise<HashAnswer> {
  thread.digests -= 1;
  return thread.ask({ hash, ask });
}

/** A digest that nobody ends, since the work around it failed, is forgotten in its thread too. */
const abandoned = new FinalizationRegistry((remote: RemoteHash) => void endRemote(remote, 'drop'));

const toDigest = (hex = ''): Digest => `sha256:${hex}`;

/** What is small as a whole is hashed at once, anything else in a thread of the pool. */
export function createPooledDigest(): PooledDigest {
  const inline = createHash('sha256');
  let start: Uint8Array[] = [];
  let startBytes = 0;
  let remote: RemoteHash | undefined;
  const digest: PooledDigest = {
    async update(chunk) {
      if (!remote && startBytes + chunk.byteLength <= inlineBytes) {
        startBytes += chunk.byteLength;
        start.push(new Uint8Array(chunk));
        inline.update(chunk);
        return;
      }
      if (!remote) {
        remote = { thread: findThread(), hash: lastHash++ };
        remote.thread.digests += 1;
        abandoned.register(digest, remote, digest);
        for (const bytes of start) void remote.thread.ask({ hash: remote.hash, bytes });
        start = [];
      }
      await remote.thread.ask({ hash: remote.hash, bytes: chunk });
    },
    async prefix() {
      return toDigest(
        remote ? (await remote.thread.ask({ hash: remote.hash, ask: 'prefix' })).hex : inline.copy().digest('hex'),
      );
    },
    async value() {
      abandoned.unregister(digest);
      return toDigest(remote ? (await endRemote(remote, 'end')).hex : inline.digest('hex'));
    },
  };
  return digest;
}

/** Hands pieces to a digest, and their sizes to `onBytes`; stops with the signal's reason. */
export const hashPieces =
  (
    digest: PooledDigest,
    { signal, onBytes }: { signal?: AbortSignal | undefined; onBytes?: ((count: number) => void) | undefined } = {},
  ): OnPiece =>
  (bytes) => {
    signal?.throwIfAborted();
    const hashed = digest.update(bytes);
    onBytes?.(bytes.byteLength);
    return hashed;
  };

/** Which part of a file is hashed, and who hears of it. */
export interface DigestFileOptions {
  signal?: AbortSignal | undefined;
  /** Called with the number of bytes just read. */
  onBytes?: ((count: number) => void) | undefined;
  /** Bytes. Default 0. */
  offset?: number;
  /** Bytes. Default: to the end of the file. */
  size?: number;
}

/**
 * The digest of a file, or of that part of it which is there. Throws what opening and reading throw, and the signal's
 * reason.
 */
export async function digestOfFile(
  path: string,
  { offset = 0, size = Number.POSITIVE_INFINITY, ...options }: DigestFileOptions = {},
): Promise<Digest> {
  const digest = createPooledDigest();
  await readPieces({ path, offset, size }, hashPieces(digest, options));
  return digest.value();
}
