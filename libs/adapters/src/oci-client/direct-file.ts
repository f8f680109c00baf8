import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

/** Large files are read and written in pieces of this size. */
export const pieceBytes = 4 * 1024 * 1024;
const blockBytes = 4096;
/** Direct reads begin at multiples of this; members of tars do. */
const sectorBytes = 512;

export interface FileSpan {
  path: string;
  offset: number;
  /** Bytes. */
  size: number;
  /** True for what the page cache probably has, since it was just written or read. */
  isCached?: boolean;
}

/** Sees bytes in memory that is used again once the promise resolves. May throw, which ends the work. */
export type OnPiece = (bytes: Buffer) => Promise<unknown> | undefined;

/** Memory shared with the threads that hash it; `used` ends when nobody looks at it any more. */
interface Piece {
  memory: Buffer;
  used: Promise<unknown>;
}

/**
 * A file that is written from beginning to end, past the page cache where the file system allows it (O_DIRECT): large blobs are not read again soon, and
 * filling the cache with them takes longer than hashing them. Elsewhere, e.g. on tmpfs, it is an ordinary file. `close` must be called, also after a failure.
 */
export class DirectFile {
  /** While one piece is being written the other one fills. */
  private current = 0;
  private filled = 0;
  private writing: Promise<void> = Promise.resolve();

  private constructor(
    private readonly path: string,
    private handle: FileHandle,
    private readonly pieces: readonly [Piece, Piece],
    private isDirect: boolean,
    private position: number,
  ) {}

  /** A new file. Throws `EEXIST` when it is there. */
  static create(path: string): Promise<DirectFile> {
    return DirectFile.open(path, constants.O_CREAT | constants.O_EXCL, 0);
  }

  /** Goes on with a file after its first `size` bytes, which it must have; what is behind them is cut off. */
  static async reopen(path: string, size: number): Promise<DirectFile> {
    const rest = size % pieceBytes;
    const file = await DirectFile.open(path, 0, size - rest);
    try {
      await file.append(await readRange(path, size - rest, rest));
      await file.handle.truncate(size - rest);
      return file;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  private static async open(path: string, flags: number, position: number): Promise<DirectFile> {
    const pieces: Buffer[] = [];
    const isNew = flags !== 0;
    try {
      const handle = await open(path, constants.O_RDWR | flags | constants.O_DIRECT, 0o644);
      while (pieces.length < 2) {
        const piece = alignedPool.pop() ?? (await findAligned(handle, isNew ? 'write' : 'read'));
        if (!piece) break;
        pieces.push(piece);
      }
      if (pieces.length === 2) return new DirectFile(path, handle, toPieces(pieces), true, position);
      await handle.close();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    }
    // A new file was made before the file system refused the flag.
    const handle = await open(path, constants.O_WRONLY | (isNew ? constants.O_CREAT | constants.O_TRUNC : 0), 0o644);
    return new DirectFile(path, handle, toPieces([ordinaryMemory(), ordinaryMemory()]), false, position);
  }

  private get piece(): Piece {
    return this.pieces[this.current] as Piece;
  }

  /** Takes a copy of the bytes. Rejects with what an earlier write failed with. */
  async append(chunk: Uint8Array): Promise<void> {
    for (let at = 0; at < chunk.byteLength; ) {
      const count = Math.min(pieceBytes - this.filled, chunk.byteLength - at);
      this.piece.memory.set(chunk.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === pieceBytes) await this.writePiece();
    }
  }

  /** Copies a part of another file; `onPiece` looks at the bytes while they are written. Ends early where that file ends. */
  async appendFrom(source: FileSpan, onPiece: OnPiece): Promise<void> {
    const input = await SourceFile.open(source.path, this.isDirect && !source.isCached && this.filled === 0 && source.offset % sectorBytes === 0);
    try {
      for (let done = 0; done < source.size; ) {
        const { memory, used } = this.piece;
        const wanted = Math.min(pieceBytes - this.filled, source.size - done);
        const count = await input.read(memory, this.filled, wanted, source.offset + done);
        if (count === 0) return;
        this.piece.used = settledLater(used, onPiece(memory.subarray(this.filled, this.filled + count)));
        this.filled += count;
        done += count;
        if (this.filled === pieceBytes) await this.writePiece();
      }
    } finally {
      await input.close();
    }
  }

  /** Writes what is left, and gives the file its size. Returns that. `sync` also waits for the disk. */
  async finish({ sync = false } = {}): Promise<number> {
    const size = this.position + this.filled;
    // Direct writes are of whole blocks; what is too much is cut off.
    this.piece.memory.fill(0, this.filled);
    this.filled = Math.ceil(this.filled / blockBytes) * blockBytes;
    if (this.filled > 0) await this.writePiece();
    await this.writing;
    await this.handle.truncate(size);
    if (sync) await this.handle.sync();
    return size;
  }

  async close(): Promise<void> {
    await Promise.allSettled([this.writing, ...this.pieces.map(({ used }) => used)]);
    giveBack(this.pieces.map(({ memory }) => memory));
    await this.handle.close();
  }

  private async writePiece(): Promise<void> {
    await this.writing;
    const bytes = this.piece.memory.subarray(0, this.filled);
    this.writing = this.write(bytes, this.position);
    // Reported by the next call.
    this.writing.catch(() => undefined);
    this.position += this.filled;
    this.current = 1 - this.current;
    this.filled = 0;
    await this.piece.used;
  }

  private async write(piece: Buffer, position: number): Promise<void> {
    for (let at = 0; at < piece.byteLength; ) {
      try {
        at += (await this.handle.write(piece, at, piece.byteLength - at, position + at)).bytesWritten;
      } catch (error) {
        if (!this.isDirect || (error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
        // Memory or length do not suit this disk.
        await this.handle.close();
        this.handle = await open(this.path, constants.O_WRONLY);
        this.isDirect = false;
      }
    }
  }
}

/** A file that is read past the page cache while that is possible. */
class SourceFile {
  private constructor(
    private readonly path: string,
    private handle: FileHandle,
    public isDirect: boolean,
  ) {}

  static async open(path: string, isDirect: boolean): Promise<SourceFile> {
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW;
    if (isDirect) {
      try {
        return new SourceFile(path, await open(path, flags | constants.O_DIRECT), true);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
      }
    }
    return new SourceFile(path, await open(path, flags), false);
  }

  /** Of `pieceBytes`, and where this disk takes it from. */
  async memory(): Promise<Buffer> {
    if (!this.isDirect) return ordinaryMemory();
    // Where no place suits, the first read will say so again and do without.
    return alignedPool.pop() ?? (await findAligned(this.handle, 'read')) ?? ordinaryMemory();
  }

  /** How many of the wanted bytes were read; 0 at the end of the file. */
  async read(buffer: Buffer, at: number, wanted: number, position: number): Promise<number> {
    if (this.isDirect) {
      try {
        // Whole blocks; what comes after the wanted bytes is overwritten by the next piece, or cut off.
        const length = Math.min(Math.ceil(wanted / blockBytes) * blockBytes, buffer.byteLength - at);
        return Math.min((await this.handle.read(buffer, at, length, position)).bytesRead, wanted);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
        await this.handle.close();
        this.handle = await open(this.path, constants.O_RDONLY | constants.O_NOFOLLOW);
        this.isDirect = false;
      }
    }
    return (await this.handle.read(buffer, at, wanted, position)).bytesRead;
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

/** Reads a part of a file, past the page cache where that is possible. Returns how many bytes there were: fewer than wanted where the file ends. */
export async function readPieces({ path, offset, size, isCached = false }: FileSpan, onPiece: OnPiece): Promise<number> {
  const input = await SourceFile.open(path, !isCached && offset % sectorBytes === 0);
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

async function readRange(path: string, position: number, size: number): Promise<Buffer> {
  const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(size), 0, size, position);
    if (bytesRead < size) throw new RangeError(`${path} has no ${position + size} bytes`);
    return buffer;
  } finally {
    await handle.close();
  }
}

const toPieces = (memories: readonly Buffer[]) =>
  memories.map((memory) => ({ memory, used: Promise.resolve() as Promise<unknown> })) as unknown as [Piece, Piece];

/** Both, with the failure reported to whoever waits later. */
function settledLater(first: Promise<unknown>, second: Promise<unknown> | undefined): Promise<unknown> {
  const all = Promise.all([first, second ?? Promise.resolve()]);
  all.catch(() => undefined);
  return all;
}

/** Pieces that are not in use: new memory costs a fault for each of its pages, and finding out where a disk takes it from takes tries. */
const alignedPool: Buffer[] = [];
const ordinaryPool: Buffer[] = [];
const maxPooled = 16;

const ordinaryMemory = (): Buffer => ordinaryPool.pop() ?? Buffer.from(new SharedArrayBuffer(pieceBytes));

function giveBack(memories: readonly Buffer[]): void {
  for (const memory of memories) {
    // Memory that was made to be aligned is a block longer.
    const pool = memory.buffer.byteLength > pieceBytes ? alignedPool : ordinaryPool;
    if (pool.length < maxPooled) pool.push(memory);
  }
}

/**
 * Memory that the disk takes direct reads and writes from: it has to begin at a multiple of some power of two that nobody tells, and where memory begins is not
 * told either, so it is tried at the start of the file, of which a new one is empty. Undefined when no place suits.
 */
async function findAligned(handle: FileHandle, by: 'read' | 'write'): Promise<Buffer | undefined> {
  const memory = new SharedArrayBuffer(pieceBytes + blockBytes);
  for (let offset = 0; offset < blockBytes; offset += 16) {
    const piece = Buffer.from(memory, offset, pieceBytes);
    try {
      await (by === 'read' ? handle.read(piece, 0, blockBytes, 0) : handle.write(piece, 0, blockBytes, 0));
      return piece;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    }
  }
  return undefined;
}
