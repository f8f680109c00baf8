/**
 * Who works in a backup store, whichever machine: files in `locks/`. Any number of processes may write and read at a
 * time; only pruning, which removes, needs the store alone. Each first writes its own lock and then looks at the
 * others', so of two who come at once at least one sees the other and steps back. A disk without a free byte takes a
 * lock without content, since prunes make room; one that takes nothing at all is read without a lock.
 */
import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import type { BackupStorage, StoredFile } from './backup-storage.js';

/** Backups and restores share a store; a prune has it alone. */
export type LockKind = 'shared' | 'exclusive';

const renewMs = 60_000;
/** By the clock of the storage, so that a clock that is set back ends nobody's lock. */
const staleMs = 15 * 60_000;

/** After so long without having renewed it a holder stops by itself, before others may take the lock for stale. */
const trustMs = 10 * 60_000;

/** Who takes a lock, and what for. */
export interface LockOptions {
  kind: LockKind;
  /** Of the work: whoever takes it up again after a kill has its lock. */
  id: string;
  /** Reads only: where no lock can be written it goes on without one, and `missing` says so. Default false. */
  isReader?: boolean | undefined;
  /** Ms; then `backup_store_busy`. Default: as long as it takes. */
  waitMs?: number | undefined;
  pauseMs?: number | undefined;
  /**
   * How long a lock that looks stale is watched, ms: a clock that jumps makes all of them look old. Default two
   * minutes.
   */
  watchMs?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Called before each wait with the names of who is in the way. */
  onWait?: ((holders: string[]) => void) | undefined;
}

/** A lock that is held, renewed each minute until it is disposed of. */
export class StoreLock implements AsyncDisposable {
  /** Aborts with the signal that was given, and when the lock cannot be kept. */
  readonly signal: AbortSignal;
  #renewedAt = performance.now();
  readonly #lost = new AbortController();
  readonly #timer: NodeJS.Timeout;
  #renewing: Promise<void> = Promise.resolve();

  private constructor(
    private readonly storage: BackupStorage,
    private readonly name: string,
    private readonly content: Buffer,
    given: AbortSignal | undefined,
    /**
     * Why there is none, for a reader of storage that takes no writes: nobody who prunes it from elsewhere waits for
     * him.
     */
    readonly missing?: AppError,
  ) {
    this.signal = given ? AbortSignal.any([given, this.#lost.signal]) : this.#lost.signal;
    this.#timer = setInterval(() => {
      if (this.missing) return;
      // Also while a write hangs.
      if (this.#isTooOld) this.#lose();
      else this.#renewing = this.#renewing.then(() => this.#renew());
    }, renewMs / 4);
    this.#timer.unref();
  }

  get #isTooOld(): boolean {
    return !this.missing && performance.now() - this.#renewedAt > trustMs;
  }

  #lose(cause?: unknown): void {
    this.#lost.abort(
      new AppError('backup_target_unavailable', { detail: 'the lock of the store could not be renewed' }, { cause }),
    );
  }

  /**
   * Throws `backup_store_busy`, `backup_target_read_only`, `space_insufficient`, what the storage throws, and the
   * signal's reason.
   */
  static async acquire(
    storage: BackupStorage,
    {
      kind,
      id,
      isReader = false,
      waitMs = Number.POSITIVE_INFINITY,
      pauseMs = 1_000,
      watchMs = 2 * renewMs,
      signal,
      onWait,
    }: LockOptions,
  ): Promise<StoreLock> {
    const holder = randomUUID();
    let name = `locks/${kind}-${id}.json`;
    let content = Buffer.from(
      `${JSON.stringify({ kind, id, holder: `${hostname()}/${process.pid}/${holder}`, since: new Date().toISOString() })}\n`,
    );
    const started = performance.now();
    const seen: Sightings = new Map();
    for (;;) {
      signal?.throwIfAborted();
      let missing: AppError | undefined;
      try {
        await storage.write(name, content, { isLasting: false });
      } catch (error) {
        if (!takesNothing(error)) throw error;
        if (error.code === 'space_insufficient' && content.byteLength > 0) {
          // The name says whose it is.
          [name, content] = [`locks/${kind}-${id}.${holder}.json`, Buffer.alloc(0)];
          continue;
        }
        if (!isReader) throw error;
        missing = error;
      }
      const others = await findOthers(storage, { name, kind, id }, { seen, watchMs, isReader });
      if (others.length === 0) return new StoreLock(storage, name, content, signal, missing);
      if (!missing) await storage.remove(name);
      const holders = others.map((other) => other.slice('locks/'.length, -'.json'.length));
      onWait?.(holders);
      if (performance.now() - started > waitMs)
        throw new AppError('backup_store_busy', { detail: `in the way: ${holders.slice(0, 5).join(', ')}` });
      await delay(pauseMs * (0.5 + Math.random()), undefined, signal ? { signal } : {}).catch(() =>
        signal?.throwIfAborted(),
      );
    }
  }

  /**
   * Throws when the lock may be another's by now: for a process that was frozen, before it removes or promises
   * anything.
   */
  assertHeld(): void {
    if (this.#isTooOld) this.#lose();
    this.#lost.signal.throwIfAborted();
  }

  async #renew(): Promise<void> {
    const askedAt = performance.now();
    if (askedAt - this.#renewedAt < renewMs) return;
    try {
      // Whoever took the work over has the lock now.
      if (!(await this.#isOurs())) return this.#lose();
      await this.storage.write(this.name, this.content, { isLasting: false });
      // A write that hung for so long tells nothing: others may have come and gone.
      if (this.#isTooOld) this.#lose();
      else this.#renewedAt = askedAt;
    } catch (error) {
      if (this.#isTooOld) this.#lose(error);
    }
  }

  async #isOurs(): Promise<boolean> {
    // Whatever is longer is another's; how long that is is nobody's business.
    if ((await this.storage.stat(this.name))?.size !== this.content.byteLength) return false;
    const chunks: Buffer[] = [];
    let left = this.content.byteLength;
    for await (const chunk of this.storage.read(this.name)) {
      left -= (chunk as Buffer).byteLength;
      if (left < 0) return false;
      chunks.push(chunk as Buffer);
    }
    return Buffer.concat(chunks).equals(this.content);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    if (this.#lost.signal.aborted || this.missing) return;
    await this.#renewing;
    try {
      if (await this.#isOurs()) await this.storage.remove(this.name);
    } catch {
      // A storage that is gone lets the lock become stale; what the work itself failed with matters more.
    }
  }
}

/**
 * When locks were seen first with the time that they have: only what does not move is stale, whatever the clocks say.
 */
type Sightings = Map<string, { modifiedAt: number; since: number }>;

/** Locks that are in the way; stale ones are removed. Our own was just written: its time is the storage's now. */
async function findOthers(
  storage: BackupStorage,
  { name: own, kind, id }: { name: string; kind: LockKind; id: string },
  { seen, watchMs, isReader }: { seen: Sightings; watchMs: number; isReader: boolean },
): Promise<string[]> {
  const remove = (name: string) =>
    storage.remove(name).catch((error: unknown) => {
      // Nobody renews it there, so it is in nobody's way.
      if (!isReader || !takesNothing(error)) throw error;
    });
  const locks: StoredFile[] = [];
  for await (const file of storage.list('locks')) locks.push(file);
  const now = locks.find(({ name }) => name === own)?.modifiedAt ?? Date.now();
  const others: string[] = [];
  for (const { name, modifiedAt } of locks) {
    if (name === own || !name.endsWith('.json')) continue;
    // Of the same work, before it was taken up again.
    if (name.startsWith(`locks/${kind}-${id}.`)) {
      await remove(name);
      continue;
    }
    const sighting = seen.get(name);
    if (sighting?.modifiedAt !== modifiedAt) seen.set(name, { modifiedAt, since: performance.now() });
    const isUnmoved = sighting?.modifiedAt === modifiedAt && performance.now() - sighting.since > watchMs;
    // From the future: of a clock that was wrong, or of somebody who wants everybody to wait.
    if (Math.abs(now - modifiedAt) > staleMs && isUnmoved) await remove(name);
    else if (kind === 'exclusive' || name.startsWith('locks/exclusive-')) others.push(name);
  }
  return others;
}

const takesNothing = (error: unknown): error is AppError =>
  error instanceof AppError && ['space_insufficient', 'backup_target_read_only'].includes(error.code);
