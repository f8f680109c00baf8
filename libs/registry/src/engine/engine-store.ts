/**
 * Programs of the registry that upgrades bring. They come from folders that others write to, so a program is known by
 * its digest: a copy in a folder of ours is checked, and only then may it be run. Nothing here runs one.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex } from '@airdock/core/oci/digest';
import { diskError, syncFolder } from '@airdock/disk/files/durable-file';
import { readRegularFile } from '@airdock/disk/files/regular-file';
import { extractEngine } from './engine-image.js';

/** Where a program is: in a file of its own, or in an image as `docker save` writes it. */
export interface EngineFile {
  kind: 'program' | 'image';
  /** Real path: it is not looked for again. */
  path: string;
}

const maxProgramBytes = 512 * 1024 * 1024;

/** Where programs of engines are kept. */
export interface EngineStoreOptions {
  /** Of the programs; nobody else writes to it. */
  folder: string;
  signal?: AbortSignal | undefined;
}

/**
 * What a program is, by its bytes: its digest, and the version where that can be read. Leaves nothing behind. Throws as
 * `installEngine`.
 */
export async function inspectEngine(
  file: EngineFile,
  options: EngineStoreOptions,
): Promise<{ digest: Digest; version: string | undefined }> {
  return withCopy(file, options, async (copy) => copy);
}

/**
 * Copies a program to a path of its own and lets it be run from there, if it has the digest. Returns that path. Throws
 * `du_engine_digest_wrong`, `bundle_unsafe` for what is no regular file, `registry_engine_missing` for what is too
 * large or an image without one, what `openBundle` throws, and `space_insufficient`.
 */
export async function installEngine(
  file: EngineFile,
  { name, digest, ...options }: EngineStoreOptions & { name: string; digest: Digest },
): Promise<string> {
  return withCopy(file, options, async (copy) => {
    if (copy.digest !== digest)
      throw new AppError('du_engine_digest_wrong', {
        detail: `the program has ${copy.digest}, not ${digest}`,
        actual: copy.digest,
      });
    const installed = join(options.folder, `${name}-${digestHex(digest).slice(0, 12)}`);
    // By everybody, since the registry may run as another user; changed by nobody.
    await chmod(copy.path, 0o555);
    await rename(copy.path, installed);
    await syncFolder(options.folder);
    return installed;
  });
}

interface Copy {
  path: string;
  digest: Digest;
  version: string | undefined;
}

async function withCopy<T>(
  file: EngineFile,
  { folder, signal }: EngineStoreOptions,
  use: (copy: Copy) => Promise<T>,
): Promise<T> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const work = await mkdtemp(join(folder, 'new-'));
  const path = join(work, 'program');
  try {
    let source = file.path;
    if (file.kind === 'image') {
      source = join(work, 'extracted');
      await extractEngine(file.path, source, { workDir: join(work, 'image'), ...(signal && { signal }) });
    }
    return await use({ path, ...(await copyHashed(source, path, signal)) });
  } catch (error) {
    signal?.throwIfAborted();
    throw diskError(error, path);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** The digest is of the bytes that were written. */
async function copyHashed(from: string, to: string, signal: AbortSignal | undefined): Promise<Omit<Copy, 'path'>> {
  const hash = createHash('sha256');
  const output = await open(to, 'wx', 0o600);
  let size = 0;
  let version: string | undefined;
  try {
    for await (const chunk of readRegularFile(from)) {
      signal?.throwIfAborted();
      size += chunk.byteLength;
      if (size > maxProgramBytes)
        throw new AppError('registry_engine_missing', { detail: `a program of more than ${maxProgramBytes} bytes` });
      hash.update(chunk);
      version ??= versionIn(chunk);
      await output.writeFile(chunk);
    }
    await output.sync();
  } finally {
    await output.close();
  }
  return { digest: `sha256:${hash.digest('hex')}`, version };
}

/** As distribution's builds have it among their texts: `v2.8.2+unknown`. */
const versionIn = (chunk: Buffer): string | undefined =>
  /v(\d{1,3}\.\d{1,3}\.\d{1,3})\+unknown/.exec(chunk.toString('latin1'))?.[1];
