/** How often to look, and for how long. */
export interface PollOptions {
  /** The pause between two looks, ms. */
  everyMs: number;
  /** After this time there is one last look, ms. Without it there is no end but an abort. */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** What a look has found; undefined or false when it is to be repeated. */
export type Found<T> = T | false | undefined;

/**
 * Looks at once, and again after a pause, until there is something: that is the value. It is undefined when there is
 * nothing after `timeoutMs`. Rejects with what a look throws, and with the reason of the signal, which also ends a
 * pause.
 *
 * @example
 * ```ts
 * if (!(await pollUntil({ everyMs: 50, timeoutMs: 5_000, signal }, () => isAnswering()))) throw new AppError('…');
 * ```
 */
export async function pollUntil<T>(
  options: PollOptions & { timeoutMs?: undefined },
  look: () => Found<T> | Promise<Found<T>>,
): Promise<T>;
export async function pollUntil<T>(
  options: PollOptions,
  look: () => Found<T> | Promise<Found<T>>,
): Promise<T | undefined>;
export async function pollUntil<T>(
  { everyMs, timeoutMs = Number.POSITIVE_INFINITY, signal }: PollOptions,
  look: () => Found<T> | Promise<Found<T>>,
): Promise<T | undefined> {
  // A clock that is set back must not prolong it.
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    signal?.throwIfAborted();
    const found = await look();
    if (found !== undefined && found !== false) return found;
    const leftMs = deadline - performance.now();
    if (leftMs <= 0) return undefined;
    await pause(Math.min(everyMs, leftMs), signal);
  }
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    if (signal?.aborted) end();
    else signal?.addEventListener('abort', end);
  });
}
