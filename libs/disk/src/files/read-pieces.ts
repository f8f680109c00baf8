import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { errnoOf } from '@airdock/core/errno';
import {
  alignedMemory,
  blockBytes,
  giveBack,
  ordinaryMemory,
  type Piece,
  pieceBytes,
  settledLater,
  toPieces,
} from './piece-memory.js';
import { openRegularFile } from './regular-file.js';

/** Direct reads begin at multiples of this; members of tars do. */
const sectorBytes = 512;

/** A part of a file. */
export interface FileSpan {
  path: string;
  offset: number;
  /** Bytes. */
  size: number;
  /** True for what the page cache has, or should have: it was just written, or is read again at once. */
  isCached?: boolean;
}

/** Sees bytes in memory that is used again once the promise resolves. May throw, which ends the work. */
export type OnPiece = (bytes: Buffer) => Promise<unknown> | undefined;

/**
 * A read that is faster came out of the page cache, or from a disk for which the way there makes no difference. Bytes
 * per millisecond.
 */
const cachedRate = 800_000;
/** After a slower read so many pieces are read past the page cache before it is tried again. */
const directPieces = 8;

/**
 * A file whose bytes come from the page cache as long as they are there, and past it otherwise, while the file system
 * allows that: what was carried in just now is in memory, at several times the speed of a disk; what is not would only
 * push out what others need. Node.js cannot ask which it is, so a read is timed.
 */
export class SourceFile {
  /** Pieces to read past the page cache before it is tried again. */
  private directLeft = 0;

  private constructor(
    private readonly buffered: FileHandle,
    private direct: FileHandle | undefined,
  ) {}

  /** `isAligned` says that the memory it will be read to suits direct reads. */
  static async open({ path, offset, isCached }: FileSpan, { isAligned = true } = {}): Promise<SourceFile> {
    const { handle: buffered } = await openRegularFile(path);
    if (isCached || !isAligned || offset % sectorBytes > 0) return new SourceFile(buffered, undefined);
    try {
      return new SourceFile(buffered, (await openRegularFile(path, { flags: constants.O_DIRECT })).handle);
    } catch (error) {
      if (errnoOf(error) === 'EINVAL') return new SourceFile(buffered, undefined);
      await buffered.close();
      throw error;
    }
  }

  /** Of `pieceBytes`, and where this disk takes it from. */
  async memory(): Promise<Buffer> {
    // Where no place suits, the first direct read will say so again and do without.
    return (this.direct && (await alignedMemory(this.direct, 'read'))) ?? ordinaryMemory();
  }

  /** How many of the wanted bytes were read; 0 at the end of the file. */
  async read(buffer: Buffer, at: number, wanted: number, position: number): Promise<number> {
    if (this.direct && this.directLeft > 0) {
      this.directLeft -= 1;
      try {
        // Whole blocks; what comes after the wanted bytes is overwritten by the next piece, or cut off.
        const length = Math.min(Math.ceil(wanted / blockBytes) * blockBytes, buffer.byteLength - at);
        return Math.min((await this.direct.read(buffer, at, length, position)).bytesRead, wanted);
      } catch (error) {
        if (errnoOf(error) !== 'EINVAL') throw error;
        await this.direct.close();
        this.direct = undefined;
      }
    }
    const started = performance.now();
    const { bytesRead } = await this.buffered.read(buffer, at, wanted, position);
    if (bytesRead < (performance.now() - started) * cachedRate) this.directLeft = directPieces;
    return bytesRead;
  }

  async close(): Promise<void> {
    await this.direct?.close();
    await this.buffered.close();
  }
}

/** Reads a part of a file. Returns how many bytes there were: fewer than wanted where the file ends. */
export async function readPieces(span: FileSpan, onPiece: OnPiece): Promise<number> {
  const { offset, size } = span;
  const input = await SourceFile.open(span);
  const memories: Buffer[] = [];
  let pieces: Piece[] = [];
  let done = 0;
  try {
    while (memories.length < 2) memories.push(await input.memory());
    pieces = toPieces(memories);
    for (let index = 0; done < size; index = 1 - index) {
      const piece = pieces[index] as Piece;
      await piece.used;
      const count = await input.read(piece.memory, 0, Math.min(pieceBytes, size - done), offset + done);
      if (count === 0) break;
      piece.used = settledLater(piece.used, onPiece(piece.memory.subarray(0, count)));
      done += count;
    }
    await Promise.all(pieces.map(({ used }) => used));
    return done;
  } finally {
    await Promise.allSettled(pieces.map(({ used }) => used));
    giveBack(memories);
    await input.close();
  }
}

/**
 * The bytes of a part of a file, for whoever is done with a piece when it asks for the one after the next: memory is
 * used again, since new memory for every piece would have the garbage collector run through the whole heap every few of
 * them. `onPiece` sees each first.
 */
export class PieceStream {
  /** One is with the consumer, one on its way there, and one is being read. */
  private readonly pieces: Piece[] = [];
  private input: SourceFile | undefined;
  private reading: Promise<Buffer> | undefined;
  private index = 0;
  private done = 0;

  constructor(
    private readonly span: FileSpan,
    private readonly onPiece: OnPiece,
  ) {}

  /**
   * Undefined at the end, which may come early where the file does. Throws what opening, reading and `onPiece` throw.
   */
  async next(): Promise<Buffer | undefined> {
    const bytes = await (this.reading ?? this.read());
    if (bytes.byteLength === 0) return undefined;
    this.reading = this.read();
    // Thrown when its turn comes.
    this.reading.catch(() => undefined);
    return bytes;
  }

  /** Gives the memory back, that of the last pieces too. */
  async close(): Promise<void> {
    await Promise.allSettled([this.reading, ...this.pieces.map(({ used }) => used)]);
    giveBack(this.pieces.splice(0).map(({ memory }) => memory));
    await this.input?.close();
  }

  private async read(): Promise<Buffer> {
    const { offset, size } = this.span;
    if (this.done >= size) return Buffer.alloc(0);
    const input = (this.input ??= await SourceFile.open(this.span));
    const piece = (this.pieces[this.index++ % 3] ??= { memory: await input.memory(), used: Promise.resolve() });
    await piece.used;
    const count = await input.read(piece.memory, 0, Math.min(pieceBytes, size - this.done), offset + this.done);
    this.done += count;
    const bytes = piece.memory.subarray(0, count);
    if (count > 0) piece.used = settledLater(piece.used, this.onPiece(bytes));
    return bytes;
  }
}
