import { Logger } from '@nestjs/common';
import { Registry } from 'prom-client';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { FailedLogins } from './failed-logins.js';
import type { Metrics } from './health.controller.js';

describe('wrong tokens', () => {
  const registry = new Registry();
  const logged = vi.spyOn(Logger.prototype, 'warn').mockImplementation(() => undefined);
  let failures: FailedLogins;
  const count = (from = '10.0.0.1') => failures.count(from, 'token_invalid');
  const countMany = (times: number, from?: string) => Promise.all(Array.from({ length: times }, () => count(from)));

  beforeEach(() => {
    vi.useFakeTimers();
    registry.clear();
    logged.mockClear();
    failures = new FailedLogins({ registry } as Metrics);
  });
  afterEach(() => void vi.useRealTimers());

  it('of one address are answered ten times at once, then after a second, and others are not kept waiting', async () => {
    expect(await countMany(10)).toEqual(Array(10).fill('answer'));
    const ended = vi.fn();
    const slowed = count().then(ended);
    await vi.advanceTimersByTimeAsync(999);
    expect(ended).not.toHaveBeenCalled();
    expect(await count('10.0.0.2')).toBe('answer');
    await vi.advanceTimersByTimeAsync(1);
    await slowed;
    expect(ended).toHaveBeenCalledExactlyOnceWith('slowed');
  });

  it('get one answer back each second, and no more than ten', async () => {
    await countMany(10);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(await countMany(2)).toEqual(['answer', 'answer']);
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(await countMany(10)).toEqual(Array(10).fill('answer'));
    const further = count();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await further).toBe('slowed');
  });

  it('get no answer beyond 32 that wait, until one of them has got it', async () => {
    await countMany(10);
    const waiting = countMany(32);
    expect(await count()).toBe('drop');
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await waiting).toEqual(Array(32).fill('slowed'));
    expect(await count()).toBe('answer');
    const further = count();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await further).toBe('slowed');
  });

  it('of a flood are all counted, and logged in a few lines a minute', async () => {
    const flood = countMany(40);
    expect(logged).toHaveBeenCalledTimes(6);
    await vi.advanceTimersByTimeAsync(60_001);
    await flood;
    await count();
    expect(logged.mock.calls.map(([, text]) => text as string).slice(5)).toEqual([
      expect.stringContaining('further ones are counted'),
      '35 more logins from 10.0.0.1 failed',
      'a login from 10.0.0.1 failed: token_invalid',
    ]);
    expect(await registry.getSingleMetricAsString('airdock_failed_logins_total')).toContain(
      '{code="token_invalid"} 41',
    );
  });

  it('of a thousand other addresses make the first one forgotten', async () => {
    await countMany(10);
    for (let index = 0; index < 1_000; index++) await count(`10.1.${index >> 8}.${index & 255}`);
    expect(await count()).toBe('answer');
  });
});
