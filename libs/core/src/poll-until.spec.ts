import { getEventListeners } from 'node:events';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { pollUntil } from './poll-until.js';

describe('looking until there is something', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    const left = vi.getTimerCount();
    vi.useRealTimers();
    if (left > 0) throw new Error(`${left} timers go on`);
  });

  it('ends with the first look when that finds something, also a zero or an empty text', async () => {
    const look = vi.fn(() => true);
    expect(await pollUntil({ everyMs: 100, timeoutMs: 0 }, look)).toBe(true);
    expect(look).toHaveBeenCalledTimes(1);
    expect(await pollUntil<number | string>({ everyMs: 100 }, async () => 0)).toBe(0);
    expect(await pollUntil<string>({ everyMs: 100 }, () => '')).toBe('');
  });

  it('pauses between two looks, and not before the first or after the last', async () => {
    const started = performance.now();
    const at: number[] = [];
    const found = pollUntil({ everyMs: 100, timeoutMs: 1_000 }, () => {
      at.push(performance.now() - started);
      return at.length === 3 && 'third';
    });
    await vi.advanceTimersByTimeAsync(250);
    expect(await found).toBe('third');
    expect(at).toEqual([0, 100, 200]);
  });

  it('has nothing after the time, at whose end it looks once more', async () => {
    const started = performance.now();
    const at: number[] = [];
    const found = pollUntil({ everyMs: 100, timeoutMs: 250 }, async () => {
      at.push(performance.now() - started);
      return undefined;
    });
    await vi.advanceTimersByTimeAsync(250);
    expect(await found).toBeUndefined();
    expect(at).toEqual([0, 100, 200, 250]);
  });

  it('does not look when it was aborted before', async () => {
    const look = vi.fn(() => true);
    await expect(pollUntil({ everyMs: 100, signal: AbortSignal.abort('no more') }, look)).rejects.toBe('no more');
    expect(look).not.toHaveBeenCalled();
  });

  it('is aborted in a pause at once, and leaves no listener behind', async () => {
    const controller = new AbortController();
    const look = vi.fn(() => false);
    const found = pollUntil({ everyMs: 60_000, signal: controller.signal }, look).catch((reason: unknown) => reason);
    await vi.advanceTimersByTimeAsync(10);
    controller.abort('no more');
    expect(await found).toBe('no more');
    expect(look).toHaveBeenCalledTimes(1);
    expect(getEventListeners(controller.signal, 'abort')).toHaveLength(0);
  });

  it('is aborted by a look too, without a pause', async () => {
    const controller = new AbortController();
    const found = pollUntil({ everyMs: 60_000, signal: controller.signal }, () => {
      controller.abort('no more');
      return undefined;
    });
    await expect(found).rejects.toBe('no more');
  });

  it('leaves no listener behind after many pauses', async () => {
    const { signal } = new AbortController();
    let looks = 0;
    const found = pollUntil({ everyMs: 1, signal }, () => ++looks > 20);
    await vi.advanceTimersByTimeAsync(50);
    await found;
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });

  it('ends with what a look throws', async () => {
    const look = vi.fn(async () => {
      if (look.mock.calls.length === 2) throw new Error('cannot look');
      return undefined;
    });
    const found = pollUntil({ everyMs: 10, timeoutMs: 1_000 }, look).catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(100);
    expect(await found).toEqual(new Error('cannot look'));
    expect(look).toHaveBeenCalledTimes(2);
  });
});
