import { Logger } from '@nestjs/common';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { BackgroundLoop } from './background-loop.js';

const pauseMs = 1_000;
const logged = vi.spyOn(Logger.prototype, 'error').mockImplementation(() => undefined);

class Loop extends BackgroundLoop {
  protected readonly pauseMs = pauseMs;
  rounds = 0;

  constructor(private readonly work: (round: number) => Promise<void> = async () => undefined) {
    super();
  }

  wakeUp(): void {
    this.wake();
  }

  protected round(): Promise<void> {
    this.rounds += 1;
    return this.work(this.rounds);
  }
}

let loop: Loop;
const start = (work?: (round: number) => Promise<void>) => {
  loop = new Loop(work);
  loop.onApplicationBootstrap();
};
/** A promise that the test fulfils. */
function gateOf(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((fulfil) => {
    resolve = fulfil;
  });
  return { promise, resolve };
}
const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);

beforeEach(() => {
  vi.useFakeTimers();
  logged.mockClear();
});
afterEach(async () => {
  await loop.beforeApplicationShutdown();
  vi.useRealTimers();
});

it('begins a round at the start, and another one after each pause', async () => {
  start();
  expect(loop.rounds).toBe(1);
  await pass(pauseMs - 1);
  expect(loop.rounds).toBe(1);
  await pass(1);
  expect(loop.rounds).toBe(2);
  await pass(pauseMs);
  expect(loop.rounds).toBe(3);
});

it('begins the next round at once when it is woken up in a pause, and pauses in full after it', async () => {
  start();
  await pass(pauseMs / 2);
  loop.wakeUp();
  await pass(0);
  expect(loop.rounds).toBe(2);
  await pass(pauseMs - 1);
  expect(loop.rounds).toBe(2);
  await pass(1);
  expect(loop.rounds).toBe(3);
});

it('begins one round right after the running one, however often it was woken up meanwhile', async () => {
  const gate = gateOf();
  start((round) => (round === 1 ? gate.promise : Promise.resolve()));
  for (let i = 0; i < 3; i++) loop.wakeUp();
  await pass(10 * pauseMs);
  expect(loop.rounds).toBe(1);
  gate.resolve();
  await pass(0);
  expect(loop.rounds).toBe(2);
  await pass(pauseMs - 1);
  expect(loop.rounds).toBe(2);
});

it('goes on after a round that fails, and logs it once until one succeeds', async () => {
  const error = new Error('away');
  const logLengths: number[] = [];
  start(async (round) => {
    logLengths.push(logged.mock.calls.length);
    if (round !== 4) throw error;
  });
  await pass(6 * pauseMs);
  expect(logLengths).toEqual([0, 1, 1, 1, 1, 2, 2]);
  expect(logged).toHaveBeenLastCalledWith({ err: error }, expect.any(String));
});

it('waits for the running round at shutdown, and begins no other', async () => {
  const gate = gateOf();
  start(() => gate.promise);
  loop.wakeUp();
  const ended = vi.fn();
  const ending = loop.beforeApplicationShutdown().then(ended);
  await pass(pauseMs);
  expect(ended).not.toHaveBeenCalled();
  gate.resolve();
  await ending;
  loop.wakeUp();
  await pass(10 * pauseMs);
  expect(loop.rounds).toBe(1);
});

it('begins no round after a shutdown in a pause', async () => {
  start();
  await pass(pauseMs / 2);
  await loop.beforeApplicationShutdown();
  loop.wakeUp();
  await pass(10 * pauseMs);
  expect(loop.rounds).toBe(1);
});
