import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import type { BlobReader } from '@airdock/oci/image/image-source';
import type { PlaceOptions } from '@airdock/registry/folder/blob-placer';

/** More than any store has; what a listing holds is in memory. */
export const maxStoredFiles = 1_000_000;
/** What a listing of more throws: `backup_store_unsafe`. */
export const tooManyFiles = (location: string) =>
  new AppError('backup_store_unsafe', { detail: `${location} has more than ${maxStoredFiles} files` });

/** Names have `/` between their parts, e.g. `backups/ID.json`. */
export interface StoredFile {
  name: string;
  /** Bytes as they lie there. */
  size: number;
  /** When it was written, ms, by the clock of the storage. */
  modifiedAt: number;
}

/** How one file is written to a storage. */
export interface WriteOptions {
  signal?: AbortSignal | undefined;
  /** Bytes of a stream, about. */
  sizeHint?: number | undefined;
  /** False for what may be lost in a power cut. Default true. */
  isLasting?: boolean | undefined;
}

/**
 * Where a backup store keeps its files: a folder, or a bucket. All of it throws `backup_target_unavailable` when the
 * storage is away, and `space_insufficient` when it is full.
 */
export interface BackupStorage extends AsyncDisposable {
  /** For people: a path, or an `s3://` address. */
  readonly location: string;
  /** The files below a folder (`''`: all), however deep, in any order; none when there is no such folder. */
  list(folder: string): AsyncIterable<StoredFile>;
  stat(name: string): Promise<StoredFile | undefined>;
  /** The bytes from `start` to the end. What goes wrong is an error of the stream. */
  read(name: string, range?: { start: number }): Readable;
  /**
   * The file is there in full when the promise resolves, also after a power cut, and not at all before; an older one is
   * replaced. Destroys the stream.
   */
  write(name: string, content: Readable | Uint8Array, options?: WriteOptions): Promise<void>;
  /** `write` of a blob as it is, verified, where that is faster than a stream. Throws `digest_mismatch`. */
  place?(
    name: string,
    blob: { digest: Digest; size: number },
    reader: () => Promise<BlobReader>,
    options: PlaceOptions,
  ): Promise<void>;
  /** Where a file lies on this machine, for readers that are faster without a stream. */
  pathOf?(name: string): string;
  /** Gives a file another name. */
  move(from: string, to: string): Promise<void>;
  /** Nothing when it is not there. */
  remove(name: string): Promise<void>;
  /** Removes what killed writers left, of all processes: called while nobody writes. Returns the bytes. */
  sweep(): Promise<number>;
  /** Bytes that can still be written; undefined when nobody can tell. */
  freeBytes(): Promise<number | undefined>;
}
