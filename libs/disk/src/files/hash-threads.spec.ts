/** The pool when its threads end, which no work inside of them may do to those who wait. */
import { randomBytes } from 'node:crypto';
import { availableParallelism } from 'node:os';
import type { Worker } from 'node:worker_threads';
import { digestOf } from '@airdock/core/oci/digest';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createPooledDigest, hashPieces } from './hash-pool.js';

const threads: Worker[] = [];
const onWorker = (thread: Worker) => {
  threads.push(thread);
  thread.once('exit', () => threads.splice(threads.indexOf(thread), 1));
};
beforeAll(() => void process.on('worker', onWorker));
afterAll(() => void process.off('worker', onWorker));

/** Larger than what is hashed in the main thread. */
const bytes = randomBytes(1_000_000);
const ended = { code: 'internal_error', details: { detail: 'a hashing thread ended' } };
const started = async () => {
  const digest = createPooledDigest();
  await digest.update(bytes);
  return digest;
};
const endAllThreads = () => Promise.all(threads.map((thread) => thread.terminate()));

it('tells all who wait for a thread that it ended, and hashes what comes next in a new one', async () => {
  const [waiting, later] = [await started(), await started()];
  // Enough for the threads to be at it when they end.
  const large = new Uint8Array(new SharedArrayBuffer(64 * 1024 * 1024));
  const asked = [waiting.update(large), waiting.prefix(), waiting.value()].map((answer) =>
    answer.catch((error: unknown) => error),
  );
  await endAllThreads();
  expect(await Promise.all(asked)).toEqual(Array.from({ length: 3 }, () => expect.objectContaining(ended)));
  await expect(later.update(bytes)).rejects.toMatchObject(ended);
  await expect(later.value()).rejects.toMatchObject(ended);
  expect(await (await started()).value()).toBe(digestOf(bytes));
});

it('loses no digest that is small enough to need no thread', async () => {
  await started();
  const digest = createPooledDigest();
  await digest.update(bytes.subarray(0, 200_000));
  await endAllThreads();
  expect(await digest.prefix()).toBe(digestOf(bytes.subarray(0, 200_000)));
  // From here on it needs one, which gets what came before, too.
  await digest.update(bytes.subarray(200_000));
  expect(await digest.value()).toBe(digestOf(bytes));
});

it('has no more threads than processors, and four at most, for any number of digests', async () => {
  const digests = await Promise.all(Array.from({ length: 12 }, started));
  expect(threads.length).toBeGreaterThan(0);
  expect(threads.length).toBeLessThanOrEqual(Math.min(availableParallelism(), 4));
  const values = await Promise.all(digests.map((digest) => digest.value()));
  expect(new Set(values)).toEqual(new Set([digestOf(bytes)]));
  const before = [...threads];
  await (await started()).value();
  expect(threads).toEqual(before);
});

it('gives the digest of all bytes and of each beginning, wherever they are cut', async () => {
  const cuts = fc.array(fc.integer({ min: 0, max: bytes.byteLength }), { maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(cuts, async (places) => {
      const digest = createPooledDigest();
      let at = 0;
      for (const place of [...places, bytes.byteLength].sort((a, b) => a - b)) {
        void digest.update(bytes.subarray(at, place));
        at = place;
        expect(await digest.prefix()).toBe(digestOf(bytes.subarray(0, at)));
      }
      expect(await digest.value()).toBe(digestOf(bytes));
    }),
    { numRuns: 30 },
  );
});

it('stops at the next piece when told, with the reason, and counts only what was hashed', async () => {
  const [stop, counts] = [new AbortController(), [] as number[]];
  const onPiece = hashPieces(createPooledDigest(), { signal: stop.signal, onBytes: (count) => counts.push(count) });
  await onPiece(bytes.subarray(0, 10));
  stop.abort(new Error('enough'));
  expect(() => onPiece(bytes)).toThrow('enough');
  expect(counts).toEqual([10]);
});
