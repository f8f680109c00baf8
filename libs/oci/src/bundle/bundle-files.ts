import { lstat, readdir, realpath } from 'node:fs/promises';
import { join, sep } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { identityOf, readRegularFile } from '@airdock/disk/files/regular-file';
import { JoinedFile } from '../archive/joined-file.js';
import { indexTar } from '../archive/tar-index.js';
import type { BlobReader } from '../image/image-source.js';

/** The files of a bundle, in a tar or in a folder, read where they lie. */
export interface BundleFiles {
  /** A regular file, through the tar's links; undefined when there is none. */
  find(name: string): Promise<BlobReader | undefined>;
  /**
   * The names of files below a folder, without it; of a folder on disk only of those right in it. Default: the root.
   */
  names(folder?: string): Promise<string[]>;
  /** False when a tar was cut between two members: what is missing is missing for that reason. */
  complete: boolean;
}

/** As many as a tar may have. */
const maxNames = 100_000;

/** Where an OCI layout has a blob. */
export const layoutBlobPath = (digest: Digest): string => `blobs/sha256/${digestHex(digest)}`;

/** The files below a folder of other files. */
export const below = (files: BundleFiles, folder: string): BundleFiles => ({
  ...files,
  find: (name) => files.find(`${folder}/${name}`),
  names: (inner) => files.names(inner === undefined ? folder : `${folder}/${inner}`),
});

/** Opens an uncompressed tar, whole or in parts; see `indexTar` for what it refuses. */
export async function openTarFiles(paths: readonly string[], signal?: AbortSignal): Promise<BundleFiles> {
  await using file = await JoinedFile.open(paths);
  const index = await indexTar(file, signal);
  return {
    complete: index.complete,
    names: async (folder) =>
      folder === undefined
        ? index.names()
        : index.names().flatMap((name) => (name.startsWith(`${folder}/`) ? [name.slice(folder.length + 1)] : [])),
    find: async (name) => {
      const member = index.find(name);
      if (!member) return undefined;
      const { offset, size } = member;
      return {
        size,
        file: file.locate(offset, size),
        open: ({ start } = { start: 0 }) => file.stream(offset + start, Math.max(size - start, 0)),
      };
    },
  };
}

/**
 * Opens a folder. Links are not followed, at no level: a layout from outside could point at any file of this machine.
 */
export async function openFolderFiles(path: string): Promise<BundleFiles> {
  const root = await realpath(path);
  return {
    complete: true,
    async names(folder = '.') {
      const names = await readdir(join(root, folder)).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return [];
        throw error;
      });
      if (names.length > maxNames)
        throw new AppError('bundle_too_large', { detail: `the folder has ${names.length} files` });
      return names;
    },
    async find(name) {
      const full = join(root, name);
      const status = await lstat(full).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
        throw error;
      });
      if (!status) return undefined;
      if (!status.isFile() || !full.startsWith(root + sep) || (await realpath(full)) !== full) {
        throw new AppError('bundle_unsafe', { detail: `${name} is not a plain file inside the layout` });
      }
      return {
        size: status.size,
        file: { path: full, offset: 0 },
        // Reads no more than was promised when the file grows meanwhile; the digest tells the rest.
        open: ({ start } = { start: 0 }) =>
          Readable.from(
            readRegularFile(full, { inside: root, identity: identityOf(status), start, end: status.size }),
            { objectMode: false },
          ),
      };
    },
  };
}

/** A small file in memory. Throws `bundle_too_large` when it is larger than `maxBytes`. */
export async function readSmall(name: string, reader: BlobReader, maxBytes: number): Promise<Buffer> {
  if (reader.size > maxBytes)
    throw new AppError('bundle_too_large', {
      detail: `${name} has ${reader.size} bytes; at most ${maxBytes} are read`,
      member: name,
    });
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of reader.open()) {
    bytes += (chunk as Buffer).byteLength;
    if (bytes > maxBytes)
      throw new AppError('bundle_too_large', { detail: `${name} has more than ${maxBytes} bytes`, member: name });
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks);
}

/** What a bundle refers to but does not hold. */
export function missingFile(files: BundleFiles, name: string): AppError {
  const detail = `${name} is missing`;
  return files.complete
    ? new AppError('bundle_corrupt', { detail, member: name })
    : new AppError('bundle_truncated', { detail: `${detail}, and the end of the archive too`, member: name });
}

/**
 * A metadata blob in memory, verified. Throws `digest_mismatch`, `bundle_too_large`, and `bundle_corrupt` when it is
 * missing.
 */
export async function readVerified(
  files: BundleFiles,
  name: string,
  digest: Digest,
  maxBytes: number,
): Promise<Buffer> {
  const reader = await files.find(name);
  if (!reader) throw missingFile(files, name);
  const bytes = await readSmall(name, reader, maxBytes);
  const actual = digestOf(bytes);
  if (actual !== digest)
    throw new AppError('digest_mismatch', {
      detail: `${name} has the digest ${actual}`,
      member: name,
      expected: digest,
      actual,
    });
  return bytes;
}
