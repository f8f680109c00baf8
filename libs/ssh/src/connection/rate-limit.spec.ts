import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { describe, expect, it } from 'vitest';
import { limited, RateLimit } from './rate-limit.js';

const bytes = 1_000_000;
const source = () => Readable.from(Array.from({ length: 100 }, () => Buffer.alloc(bytes / 100)));

/** Time that passes only while somebody waits. */
function virtualClock() {
  let ms = 0;
  return {
    now: () => ms,
    delay: async (wait: number) => {
      const until = ms + wait;
      await new Promise(setImmediate);
      ms = Math.max(ms, until);
    },
  };
}

async function drain(...streams: AsyncIterable<Uint8Array>[]): Promise<void> {
  for (const drained of await Promise.all(streams.map((stream) => buffer(stream)))) expect(drained).toHaveLength(bytes);
}

describe('limited', () => {
  it('is as fast as the smallest limit', async () => {
    const clock = virtualClock();
    await drain(limited(source(), [new RateLimit(20_000_000, clock), new RateLimit(2_000_000, clock)]));
    expect(clock.now()).toBeCloseTo(500, -1);
  });

  it('shares a limit between streams', async () => {
    const clock = virtualClock();
    const total = new RateLimit(4_000_000, clock);
    await drain(limited(source(), [total]), limited(source(), [total]));
    expect(clock.now()).toBeCloseTo(500, -1);
  });

  it('ends with the reason of the signal while it waits', async () => {
    const limit = new RateLimit(1000);
    const stop = new AbortController();
    const waiting = limit.take(bytes, stop.signal);
    stop.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
    await expect(limit.take(1, stop.signal)).rejects.toThrow('enough');
  });
});
