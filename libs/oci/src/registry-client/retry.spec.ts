import { AppError } from '@airdock/core/errors';
import { describe, expect, it } from 'vitest';
import { lookUp, withRetry } from './retry.js';

const away = () => new AppError('registry_unavailable', { detail: 'it is away' });
const broken = () => new AppError('registry_unavailable', { registryStatus: 500 });

/** Fails with these errors, one after the other, and answers from then on. */
function failing(...errors: unknown[]) {
  const work = async () => {
    work.calls += 1;
    if (work.calls <= errors.length) throw errors[work.calls - 1];
    return 'answer';
  };
  work.calls = 0;
  return work;
}

describe('withRetry', () => {
  it('tries again what may vanish by waiting, as often as it was told to', async () => {
    const work = failing(away(), away());
    expect(await withRetry(work, undefined, { attempts: 3, delayMs: 0 })).toBe('answer');
    expect(work.calls).toBe(3);

    const [last, hopeless] = [away(), failing(away(), away())];
    const lasting = failing(away(), last, away());
    await expect(withRetry(lasting, undefined, { attempts: 2, delayMs: 0 })).rejects.toBe(last);
    expect(lasting.calls).toBe(2);
    await expect(withRetry(hopeless, undefined, { attempts: 1, delayMs: 60_000 })).rejects.toMatchObject({
      code: 'registry_unavailable',
    });
    expect(hopeless.calls).toBe(1);
  });

  it('throws at once what waiting does not change', async () => {
    for (const error of [new AppError('request_invalid'), new Error('a bug')]) {
      const work = failing(error);
      await expect(withRetry(work, undefined, { delayMs: 60_000 })).rejects.toBe(error);
      expect(work.calls).toBe(1);
    }
  });

  it('waits no longer than the longest pause', async () => {
    // The third pause would be an hour.
    const work = failing(away(), away(), away());
    expect(await withRetry(work, undefined, { delayMs: 900_000, maxDelayMs: 1 })).toBe('answer');
  });

  it('ends with the reason of the signal, in a pause and after a failure', async () => {
    const reason = new AppError('job_cancelled');
    const inPause = new AbortController();
    const waiting = withRetry(failing(away()), inPause.signal, { delayMs: 3_600_000, maxDelayMs: 3_600_000 });
    // The first attempt has failed by the next turn of the event loop, and the pause has begun.
    setImmediate(() => inPause.abort(reason));
    await expect(waiting).rejects.toBe(reason);

    const atWork = new AbortController();
    const work = async () => {
      atWork.abort(reason);
      throw new Error('the connection was closed');
    };
    await expect(withRetry(work, atWork.signal)).rejects.toBe(reason);
  });
});

describe('lookUp', () => {
  it('takes for missing what the registry cannot read twice, but not once', async () => {
    const once = failing(broken());
    expect(await lookUp(once, undefined, { delayMs: 60_000 })).toBe('answer');
    expect(once.calls).toBe(2);
    const twice = failing(broken(), broken());
    expect(await lookUp(twice, undefined, { delayMs: 60_000 })).toBeUndefined();
    expect(twice.calls).toBe(2);
  });

  it('takes nothing else for missing', async () => {
    const unavailable = new AppError('registry_unavailable', { registryStatus: 503 });
    const work = failing(...Array.from({ length: 3 }, () => unavailable));
    await expect(lookUp(work, undefined, { attempts: 3, delayMs: 0 })).rejects.toBe(unavailable);
    expect(work.calls).toBe(3);
    const bug = new Error('a bug');
    await expect(lookUp(failing(bug), undefined)).rejects.toBe(bug);
  });
});
