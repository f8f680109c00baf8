import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

const pieceBytes = 4 * 1024 * 1024;
const blockBytes = 4096;
/** Direct reads begin at multiples of this; members of tars do. */
const sectorBytes = 512;

/**
 * A new file that is written once from beginning to end, past the page cache where the file system allows it (O_DIRECT): large blobs are not read again soon, and
 * filling the cache with them takes longer than hashing them. Elsewhere, e.g. on tmpfs, it is an ordinary file. `close` must be called, also after a failure.
 */
export class DirectFile {
  /** While one piece is being written the other one fills. */
  private current = 0;
  private filled = 0;
  private position = 0;
  private writing: Promise<void> = Promise.resolve();

  private constructor(
    private readonly path: string,
    private handle: FileHandle,
    private readonly pieces: Buffer[],
    private isDirect: boolean,
  ) {}

  /** Throws `EEXIST` when the file is there. */
  static async create(path: string): Promise<DirectFile> {
    const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY;
    const pieces: Buffer[] = [];
    try {
      const handle = await open(path, flags | constants.O_DIRECT, 0o644);
      while (pieces.length < 2) {
        const piece = pool.pop() ?? (await findAligned(handle));
        if (!piece) break;
        pieces.push(piece);
      }
      if (pieces.length === 2) return new DirectFile(path, handle, pieces, true);
      await handle.close();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    }
    // The file was made before the file system refused the flag.
    const handle = await open(path, constants.O_CREAT | constants.O_WRONLY | constants.O_TRUNC, 0o644);
    return new DirectFile(path, handle, [Buffer.alloc(pieceBytes), Buffer.alloc(pieceBytes)], false);
  }

  /** Takes a copy of the bytes. Rejects with what an earlier write failed with. */
  async append(chunk: Uint8Array): Promise<void> {
    for (let at = 0; at < chunk.byteLength; ) {
      const piece = this.pieces[this.current] as Buffer;
      const count = Math.min(pieceBytes - this.filled, chunk.byteLength - at);
      piece.set(chunk.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === pieceBytes) await this.writePiece();
    }
  }

  /** Copies a part of another file; `onBytes` sees every piece before it is written, and may throw. Ends early where that file ends. */
  async appendFrom(source: { path: string; offset: number; size: number }, onBytes: (bytes: Buffer) => void): Promise<void> {
    const input = await SourceFile.open(source.path, this.isDirect && this.filled === 0 && source.offset % sectorBytes === 0);
    try {
      for (let done = 0; done < source.size; ) {
        const piece = this.pieces[this.current] as Buffer;
        const wanted = Math.min(pieceBytes - this.filled, source.size - done);
        const count = await input.read(piece, this.filled, wanted, source.offset + done);
        if (count === 0) return;
        onBytes(piece.subarray(this.filled, this.filled + count));
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
    (this.pieces[this.current] as Buffer).fill(0, this.filled);
    this.filled = Math.ceil(this.filled / blockBytes) * blockBytes;
    if (this.filled > 0) await this.writePiece();
    await this.writing;
    await this.handle.truncate(size);
    if (sync) await this.handle.sync();
    return size;
  }

  async close(): Promise<void> {
    await this.writing.catch(() => undefined);
    if (this.isDirect && pool.length < maxPooled) pool.push(...this.pieces);
    await this.handle.close();
  }

  private async writePiece(): Promise<void> {
    await this.writing;
    const piece = (this.pieces[this.current] as Buffer).subarray(0, this.filled);
    this.writing = this.write(piece, this.position);
    // Reported by the next call.
    this.writing.catch(() => undefined);
    this.position += this.filled;
    this.current = 1 - this.current;
    this.filled = 0;
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
    private isDirect: boolean,
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

/** Pieces that are not in use. They are kept, since finding out where such memory may begin takes tries. */
const pool: Buffer[] = [];
const maxPooled = 16;

/**
 * Memory that the disk takes direct writes from: it has to begin at a multiple of some power of two that nobody tells, and where memory begins is not told
 * either, so it is tried at the start of the new file. Undefined when no place suits.
 */
async function findAligned(handle: FileHandle): Promise<Buffer | undefined> {
  const memory = new ArrayBuffer(pieceBytes + blockBytes);
  for (let offset = 0; offset < blockBytes; offset += 16) {
    const piece = Buffer.from(memory, offset, pieceBytes);
    try {
      await handle.write(piece, 0, blockBytes, 0);
      return piece;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
    }
  }
  return undefined;
}
