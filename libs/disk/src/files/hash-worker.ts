/**
 * Hashes for `hash-pool.ts` in a thread of its own. Imports Node.js only, and has no syntax that type stripping does
 * not take: specs run this file as it is.
 */
import { createHash, type Hash } from 'node:crypto';
import { readlinkSync } from 'node:fs';
import { setPriority } from 'node:os';
import { parentPort } from 'node:worker_threads';

/** What a hashing thread is asked: more bytes of one of its hashes, or the end of it. */
export interface HashRequest {
  /** Answered with the same number. */
  call: number;
  hash: number;
  bytes?: Uint8Array;
  /** `prefix`: the digest so far. `end`: the digest; the hash is forgotten. `drop`: forgotten without one. */
  ask?: 'prefix' | 'end' | 'drop';
}

/** What a hashing thread answers. */
export interface HashAnswer {
  call: number;
  hex?: string;
}

const hashes = new Map<number, Hash>();

// Where processors are few the main thread goes first. On Linux a priority is a thread's own; the link ends with its
// number.
try {
  setPriority(Number(readlinkSync('/proc/thread-self').split('/').at(-1)), 5);
} catch {
  // No /proc, or not permitted: then all are equal.
}

parentPort?.on('message', ({ call, hash: id, bytes, ask }: HashRequest) => {
  const hash = hashes.get(id) ?? createHash('sha256');
  hashes.set(id, hash);
  if (bytes) hash.update(bytes);
  const answer: HashAnswer = { call };
  if (ask === 'prefix') answer.hex = hash.copy().digest('hex');
  if (ask === 'end') answer.hex = hash.digest('hex');
  if (ask === 'end' || ask === 'drop') hashes.delete(id);
  parentPort?.postMessage(answer);
});
