/**
 * Where `distribution` keeps things: storage paths v2, filesystem driver. Paths are relative to
 * `<storage>/docker/registry/v2`. Repositories contain links only, files that hold a digest; bytes are below `blobs`.
 * Source: registry/storage/paths.go
 */
import type { Dirent } from 'node:fs';
import { lstat, open, readdir, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, isDigest } from '@airdock/core/oci/digest';
import { maxManifestBytes } from '@airdock/core/oci/manifest';
import { onlyPlain, readRegularFile } from '@airdock/disk/files/regular-file';

const rootPath = '/docker/registry/v2';
/** Where nobody makes links. */
const withoutLinks = [rootPath, '/airdock-garbage'];
/** The folder of a storage below which distribution has everything. */
export const registryRoot = (storageDir: string): string => join(storageDir, rootPath);

/** Folder of a blob; its bytes are in `data`. */
export const blobPath = (digest: Digest): string =>
  `blobs/sha256/${digestHex(digest).slice(0, 2)}/${digestHex(digest)}`;
/** Folder of the link that makes a blob part of a repository. */
export const layerPath = (repository: string, digest: Digest): string =>
  `${layersPath(repository)}/${digestHex(digest)}`;
/** Folder of the links that make blobs a repository’s. */
export const layersPath = (repository: string): string => `repositories/${repository}/_layers/sha256`;
/** Folder of the link that makes a manifest one of a repository. */
export const revisionPath = (repository: string, digest: Digest): string =>
  `${revisionsPath(repository)}/${digestHex(digest)}`;
/** Folder of the links that make manifests a repository’s. */
export const revisionsPath = (repository: string): string => `repositories/${repository}/_manifests/revisions/sha256`;
/** Folder of a tag: what it leads to is in `current/link`, what it ever led to below `index/sha256`. */
export const tagPath = (repository: string, tag: string): string => `repositories/${repository}/_manifests/tags/${tag}`;
/** Folder of the link that says that a tag once led to a manifest. */
export const historyPath = (repository: string, tag: string, digest: Digest): string =>
  `${historiesPath(repository, tag)}/${digestHex(digest)}`;
/** Folder of what a tag ever led to. */
export const historiesPath = (repository: string, tag: string): string => `${tagPath(repository, tag)}/index/sha256`;
/** Folder of unfinished uploads. */
export const uploadsPath = (repository: string): string => `repositories/${repository}/_uploads`;

/**
 * What is in a folder; nothing when it is not there, or not any more: a registry works beside us. Throws for a folder
 * that a link below `registryRoot`, or below what is set aside, leads to: a registry makes none, and one that was taken
 * over could have us look, write and remove elsewhere.
 */
export async function listFolder(path: string): Promise<Dirent[]> {
  try {
    const start = withoutLinks.map((folder) => path.indexOf(folder)).find((at) => at >= 0);
    if (start !== undefined && !(await realpath(path)).endsWith(path.slice(start).replace(/\/$/, '')))
      throw new Error(`${path} is reached through a link`);
    return await readdir(path, { withFileTypes: true });
  } catch (error) {
    if (isGone(error)) return [];
    throw error;
  }
}

/** The names of the folders in a folder; none when it is gone. */
export const folderNames = async (path: string): Promise<string[]> =>
  (await listFolder(path)).filter((entry) => entry.isDirectory()).map(({ name }) => name);

/** The digests that folders below `path` are named after. */
export const listDigests = async (path: string): Promise<Digest[]> =>
  (await folderNames(path)).map((name): Digest => `sha256:${name}`).filter((digest) => isDigest(digest));

/** All repositories, sorted. Their names are paths, whose parts never begin with `_`. */
export async function listRepositoryFolders(root: string, parent = ''): Promise<string[]> {
  const names = await folderNames(join(root, 'repositories', parent));
  const found = names.some((name) => name.startsWith('_')) ? [parent] : [];
  for (const name of names.filter((each) => !each.startsWith('_')).sort())
    found.push(...(await listRepositoryFolders(root, parent ? `${parent}/${name}` : name)));
  return found;
}

/** Whether an error says that a file is not there. */
export const isGone = (error: unknown): boolean =>
  ['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '');

/**
 * What a storage folder cannot be read with is said with its path: `registry_storage_unreadable`. Errors of Airdock
 * stay.
 */
const unreadable = (error: unknown, path: string): unknown =>
  error instanceof AppError
    ? error
    : new AppError(
        'registry_storage_unreadable',
        { detail: `${path}: ${(error as NodeJS.ErrnoException).code ?? 'unknown error'}` },
        { cause: error },
      );

/**
 * As `lstat`; undefined when there is no such file, or not any more. A registry makes neither links nor pipes nor
 * devices, so one that is taken for a file is refused when it is read.
 */
export async function statOrGone(path: string) {
  try {
    return await lstat(path);
  } catch (error) {
    if (isGone(error)) return undefined;
    throw unreadable(error, path);
  }
}

/**
 * Undefined when the file is not there, is larger, or is something else in its place. In as few calls as can be, since
 * a push reads thousands. Folders above it may be links, as those that `openRegularFile` refuses: what is read is
 * compared with a digest, or is one, and goes nowhere else.
 */
export async function readSmall(path: string, maxBytes: number): Promise<Buffer | undefined> {
  try {
    const handle = await open(path, onlyPlain);
    try {
      const status = await handle.stat();
      if (!status.isFile() || status.size > maxBytes) return undefined;
      const { buffer, bytesRead } = await handle.read(Buffer.allocUnsafe(status.size), 0, status.size, 0);
      return bytesRead === status.size ? buffer : undefined;
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (isGone(error) || ['ELOOP', 'ENXIO'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw unreadable(error, path);
  }
}

/** Nothing that is read as a whole is larger: manifests, links and our own records. */
const maxFileBytes = maxManifestBytes;

/**
 * The bytes of a small file in a storage folder; undefined when it is not there, or not any more. Throws
 * `registry_damaged` for what is too large, is no regular file, or lies behind a link: a registry that was taken over
 * could have us read any file of this machine, or wait for a pipe for ever.
 */
export async function readFileOrGone(storageDir: string, path: string): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of readRegularFile(path, { inside: storageDir, code: 'registry_damaged' })) {
      size += chunk.byteLength;
      if (size > maxFileBytes)
        throw new AppError('registry_damaged', { detail: `${path} has more than ${maxFileBytes} bytes` });
      chunks.push(chunk);
    }
  } catch (error) {
    if (isGone(error)) return undefined;
    throw unreadable(error, path);
  }
  return Buffer.concat(chunks);
}
