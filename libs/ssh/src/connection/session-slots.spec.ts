import { describe, expect, it } from 'vitest';
import { SessionSlots } from './session-slots.js';

/** Whether a promise has settled by the next turn of the event loop. */
const isSettled = async (promise: Promise<unknown>): Promise<boolean> => {
  let settled = false;
  promise.then(
    () => (settled = true),
    () => (settled = true),
  );
  await new Promise((resolve) => setImmediate(resolve));
  return settled;
};

describe('SessionSlots', () => {
  it('let as many in as come, until the host refuses one', async () => {
    const slots = new SessionSlots();
    for (let index = 0; index < 20; index++) await slots.take(undefined);
    expect(slots.limit).toBe(Number.POSITIVE_INFINITY);
  });

  it('let no more in than the host took, and the next when one ends', async () => {
    const slots = new SessionSlots();
    for (let index = 0; index < 3; index++) await slots.take(undefined);
    expect(slots.refuse()).toBe(2);
    expect(slots.limit).toBe(2);
    const third = slots.take(undefined);
    expect(await isSettled(third)).toBe(false);
    slots.give();
    await third;
  });

  it('keep one, even where the host refuses the only one', async () => {
    const slots = new SessionSlots();
    await slots.take(undefined);
    expect(slots.refuse()).toBe(0);
    expect(slots.limit).toBe(1);
    await slots.take(undefined);
  });

  it('do not let in who gives up waiting', async () => {
    const slots = new SessionSlots();
    await slots.take(undefined);
    await slots.take(undefined);
    slots.refuse();
    const stop = new AbortController();
    const waiting = slots.take(stop.signal);
    const reason = new Error('cancelled');
    stop.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    const next = slots.take(undefined);
    expect(await isSettled(next)).toBe(false);
    slots.give();
    await next;
    const late = new AbortController();
    const woken = slots.take(late.signal);
    slots.give();
    late.abort(reason);
    await expect(woken).rejects.toBe(reason);
  });

  it('let everybody in who waits when the connection has ended, to be told so', async () => {
    const slots = new SessionSlots();
    await slots.take(undefined);
    await slots.take(undefined);
    slots.refuse();
    const waiting = [slots.take(undefined), slots.take(undefined)];
    slots.end();
    await Promise.all(waiting);
  });
});
