import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { JobWatch } from './job-watch.js';
import type { JobsService } from './jobs.service.js';

describe('a watch of jobs', () => {
  const changed = new Set<(id: string) => void>();
  const jobs = { claims: { changed } } as unknown as JobsService;
  const change = (id: string) => changed.forEach((listener) => listener(id));
  const { signal } = new AbortController();
  /** Whether it is over without any time passing. */
  const isOver = async (waiting: Promise<void>): Promise<boolean> => {
    let over = false;
    void waiting.then(() => (over = true));
    await vi.advanceTimersByTimeAsync(0);
    return over;
  };

  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it('wakes up for its own jobs only, also for what happened between two looks, and then waits again', async () => {
    using watch = new JobWatch(jobs, new Set(['a']));
    const waiting = watch.wait(signal);
    change('b');
    expect(await isOver(waiting)).toBe(false);
    change('a');
    expect(await isOver(waiting)).toBe(true);
    change('a');
    expect(await isOver(watch.wait(signal))).toBe(true);
    expect(await isOver(watch.wait(signal))).toBe(false);
  });

  it('lets look after a second, for what another process has changed', async () => {
    using watch = new JobWatch(jobs, new Set(['a']));
    const waiting = watch.wait(signal);
    await vi.advanceTimersByTimeAsync(999);
    expect(await isOver(waiting)).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(await isOver(waiting)).toBe(true);
  });

  it('ends with its signal, before and while it waits', async () => {
    using watch = new JobWatch(jobs, new Set(['a']));
    const controller = new AbortController();
    const waiting = watch.wait(controller.signal);
    controller.abort();
    expect(await isOver(waiting)).toBe(true);
    expect(await isOver(watch.wait(controller.signal))).toBe(true);
  });

  it('leaves nothing behind', async () => {
    const watch = new JobWatch(jobs, new Set(['a']));
    const waiting = watch.wait(signal);
    change('a');
    await waiting;
    watch[Symbol.dispose]();
    expect([changed.size, vi.getTimerCount()]).toEqual([0, 0]);
  });
});
