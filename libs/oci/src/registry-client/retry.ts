import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, isTransient } from '@airdock/core/errors';

/** How often, how fast and what is tried again. */
export interface RetryOptions {
  /** How often something is tried in all. Default 5. */
  attempts?: number | undefined;
  /** The longest pause before the second attempt, ms; it doubles with each further one. Default 250. */
  delayMs?: number | undefined;
  /** No pause is longer, ms. Default 10 000. */
  maxDelayMs?: number | undefined;
}

/**
 * Tries again what failed for a reason that may vanish by waiting. Pauses are random up to their limit, so that many
 * waiting for one registry do not return all at once. Ends at once, with the signal's reason, when the signal aborts.
 */
export async function withRetry<T>(
  work: () => Promise<T>,
  signal: AbortSignal | undefined,
  options: RetryOptions = {},
): Promise<T> {
  const { attempts = 5, delayMs = 250, maxDelayMs = 10_000 } = options;
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      signal?.throwIfAborted();
      if (attempt >= attempts || !isTransient(error)) throw error;
      const limit = Math.min(maxDelayMs, delayMs * 2 ** (attempt - 1));
      await sleep(limit * (0.5 + Math.random() / 2), undefined, signal ? { signal } : {}).catch(() =>
        signal?.throwIfAborted(),
      );
    }
  }
}

/** `withRetry` or `lookUp`. */
export type Ask = typeof lookUp;

/** How often a registry is asked for what it cannot read itself. */
const unreadableTries = 2;

/**
 * Asks a registry, as `withRetry`, for something that is written anew when it is missing. What the registry itself
 * cannot read counts as missing: distribution 2 writes its links in place, and when it was killed in between answers
 * 500 for an empty one until it is written again. A registry that is ill in another way refuses what is written then.
 */
export async function lookUp<T>(
  look: () => Promise<T | undefined>,
  signal: AbortSignal | undefined,
  options: RetryOptions = {},
): Promise<T | undefined> {
  const lookAgain = async (tries: number): Promise<T | undefined> => {
    try {
      return await look();
    } catch (error) {
      if (!(error instanceof AppError) || error.details.registryStatus !== 500) throw error;
      return tries === unreadableTries ? undefined : lookAgain(tries + 1);
    }
  };
  return withRetry(() => lookAgain(1), signal, options);
}
