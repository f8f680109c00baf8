import type { FileHandle } from 'node:fs/promises';
import { errnoOf } from '@airdock/core/errno';

/** Large files are read and written in pieces of this size. */
export const pieceBytes = 4 * 1024 * 1024;
/** The unit of direct reads and writes, in bytes: sizes and offsets are multiples of it. */
export const blockBytes = 4096;

/** Memory shared with the threads that hash it; `used` ends when nobody looks at it any more. */
export interface Piece {
  memory: Buffer;
  used: Promise<unknown>;
}

/** Two memories as pieces that nobody uses yet. */
export const toPieces = (memories: readonly Buffer[]) =>
  memories.map((memory) => ({ memory, used: Promise.resolve() as Promise<unknown> })) as unknown as [Piece, Piece];

/** Both, with the failure reported to whoever waits later. */
export function settledLater(first: Promise<unknown>, second: Promise<unknown> | undefined): Promise<unknown> {
  const all = Promise.all([first, second ?? Promise.resolve()]);
  all.catch(() => undefined);
  return all;
}

/**
 * Pieces that are not in use: new memory costs a fault for each of its pages, and finding out where a disk takes it
 * from takes tries.
 */
const alignedPool: Buffer[] = [];
const ordinaryPool: Buffer[] = [];
const maxOrdinary = 16;
/** Aligned pieces come so many at once. */
const slabPieces = 8;

/** Memory of one piece, shared with the hashing threads. It comes from a pool; `giveBack` returns it. */
export const ordinaryMemory = (): Buffer => ordinaryPool.pop() ?? Buffer.from(new SharedArrayBuffer(pieceBytes));

/** Returns memory to its pool, which keeps a bounded number. */
export function giveBack(memories: readonly Buffer[]): void {
  for (const memory of memories) {
    if (memory.buffer.byteLength > pieceBytes) alignedPool.push(memory);
    else if (ordinaryPool.length < maxOrdinary) ordinaryPool.push(memory);
  }
}

/**
 * Memory that the disk takes direct reads and writes from: it has to begin at a multiple of some power of two that
 * nobody tells, and where memory begins is not told either, so it is tried at the start of the file, of which a new one
 * is empty. Undefined when no place suits.
 *
 * A multiple of 512 may be taken, but was written at a tenth of the speed of a whole page. The C library maps what is
 * larger than 32 MiB, whatever was freed before, and puts 16 bytes in front of it: so several pieces are made at once,
 * and the first try finds a page.
 */
export async function alignedMemory(handle: FileHandle, by: 'read' | 'write'): Promise<Buffer | undefined> {
  const pooled = alignedPool.pop();
  if (pooled) return pooled;
  const slab = new SharedArrayBuffer(slabPieces * pieceBytes + blockBytes);
  for (let offset = blockBytes - 16; offset >= 0; offset -= 16) {
    const piece = Buffer.from(slab, offset, pieceBytes);
    try {
      await (by === 'read' ? handle.read(piece, 0, blockBytes, 0) : handle.write(piece, 0, blockBytes, 0));
    } catch (error) {
      if (errnoOf(error) === 'EINVAL') continue;
      throw error;
    }
    for (let index = 1; index < slabPieces; index++)
      alignedPool.push(Buffer.from(slab, offset + index * pieceBytes, pieceBytes));
    return piece;
  }
  return undefined;
}
