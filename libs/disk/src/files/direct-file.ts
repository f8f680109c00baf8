import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
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
import { type FileSpan, type OnPiece, SourceFile } from './read-pieces.js';

/**
 * A file that is written from beginning to end, past the page cache where the file system allows it (O_DIRECT): large
 * blobs are not read again soon, and filling the cache with them takes longer than hashing them. Elsewhere, e.g. on
 * tmpfs, it is an ordinary file. `close` must be called, also after a failure.
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
      const handle = await open(path, constants.O_RDWR | constants.O_NOFOLLOW | flags | constants.O_DIRECT, 0o644);
      while (pieces.length < 2) {
        const piece = await alignedMemory(handle, isNew ? 'write' : 'read');
        if (!piece) break;
        pieces.push(piece);
      }
      if (pieces.length === 2) return new DirectFile(path, handle, toPieces(pieces), true, position);
      await handle.close();
    } catch (error) {
      if (errnoOf(error) !== 'EINVAL') throw error;
    }
    // A new file was made before the file system refused the flag.
    const handle = await open(
      path,
      constants.O_WRONLY | constants.O_NOFOLLOW | (isNew ? constants.O_CREAT | constants.O_TRUNC : 0),
      0o644,
    );
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

  /**
   * Copies a part of another file; `onPiece` looks at the bytes while they are written. Ends early where that file
   * ends.
   */
  async appendFrom(source: FileSpan, onPiece: OnPiece): Promise<void> {
    const input = await SourceFile.open(source, { isAligned: this.isDirect && this.filled === 0 });
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
        if (!this.isDirect || errnoOf(error) !== 'EINVAL') throw error;
        // Memory or length do not suit this disk.
        await this.handle.close();
        this.handle = await open(this.path, constants.O_WRONLY | constants.O_NOFOLLOW);
        this.isDirect = false;
      }
    }
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
