import { setTimeout as delay } from 'node:timers/promises';

/** So much may pass at once after a pause. */
const burstMs = 100;

/** Milliseconds, and waiting for them; tests have their own. */
export interface Clock {
  now(): number;
  delay(ms: number, signal?: AbortSignal): Promise<unknown>;
}

const realClock: Clock = { now: () => performance.now(), delay: (ms, signal) => delay(ms, undefined, { signal }) };

/** A bound on bytes per second for all that takes from it. */
export class RateLimit {
  /** When everything that was promised will have passed. */
  private busyUntil = 0;

  constructor(
    readonly bytesPerSecond: number,
    private readonly clock = realClock,
  ) {}

  /** Resolves when so many bytes may pass; first come, first served. Rejects with the signal's reason. */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const at = this.clock.now();
    this.busyUntil = Math.max(this.busyUntil, at - burstMs) + (bytes / this.bytesPerSecond) * 1000;
    const waitMs = this.busyUntil - at;
    if (waitMs <= 0) return;
    await this.clock.delay(waitMs, signal).catch((error: unknown) => {
      signal?.throwIfAborted();
      throw error;
    });
  }
}

/** The bytes of a stream, not faster than all of the limits allow. */
export async function* limited(
  source: AsyncIterable<Uint8Array>,
  limits: readonly RateLimit[],
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of source) {
    for (const limit of limits) await limit.take(chunk.byteLength, signal);
    yield chunk;
  }
}
