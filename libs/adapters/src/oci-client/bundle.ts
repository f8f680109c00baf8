/**
 * Opens image bundles: files that crossed the air gap. This is not a tar library: of a bundle only the images are of interest, nothing
 * is extracted, and everything that image tools do not write is refused.
 */

import { randomUUID } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { openFolderFiles, openTarFiles } from './bundle-files.js';
import { openDockerArchive } from './docker-archive.js';
import type { ImageSource } from './image-source.js';
import { LayerCache } from './layer-cache.js';
import { hasNamedImages, isOciLayout, openOciLayout } from './oci-layout.js';
import { detectCompression, removeUnpacked, unpack } from './unpack.js';

export interface OpenBundleOptions {
  /** For what has to be unpacked or compressed: `layers/` stays for later runs, `unpacked/` goes when the source is disposed. */
  workDir: string;
  signal?: AbortSignal | undefined;
}

/**
 * Opens a bundle by its content, whatever its name: docker-archive, OCI archive, or a folder with an OCI layout; tars also compressed with gzip,
 * zstd or xz. Reads metadata only, except that a compressed tar is unpacked into `workDir` first. All manifests and configurations are verified
 * by digest, and every blob is there with its size; the content of blobs is verified by whoever moves it. The caller disposes the source.
 *
 * Throws `bundle_not_found`, `bundle_format_unknown`, `compression_unsupported`, `bundle_truncated`, `bundle_corrupt`, `bundle_unsafe`,
 * `bundle_too_large`, `digest_mismatch`, `digest_unsupported`, `image_name_missing`, `reference_invalid`, `image_unsupported`, `layer_encrypted`,
 * `layer_foreign`, `space_insufficient`, and the signal's reason.
 */
export async function openBundle(path: string, { workDir, signal }: OpenBundleOptions): Promise<ImageSource> {
  const status = await stat(path).catch((cause: unknown) => {
    throw new AppError('bundle_not_found', { path }, { cause });
  });
  if (status.isDirectory()) {
    const files = await openFolderFiles(path);
    if (!(await isOciLayout(files))) throw new AppError('bundle_format_unknown', { detail: 'the folder has no oci-layout and index.json' });
    return openOciLayout(files, 'oci-layout', signal);
  }
  // Devices and pipes have no length, and reading them may never end.
  if (!status.isFile()) throw new AppError('bundle_format_unknown', { detail: 'the path is neither a file nor a folder' });
  const compression = await detectCompression(path);
  if (!compression) return openTar(path, workDir, signal);

  const unpacked = join(workDir, 'unpacked', `${randomUUID()}.tar`);
  try {
    await unpack(path, compression, unpacked, signal);
    const source = await openTar(unpacked, workDir, signal);
    const close = source[Symbol.asyncDispose].bind(source);
    source[Symbol.asyncDispose] = async () => {
      await close();
      await removeUnpacked(unpacked);
    };
    return source;
  } catch (error) {
    await removeUnpacked(unpacked);
    throw error;
  }
}

async function openTar(path: string, workDir: string, signal?: AbortSignal): Promise<ImageSource> {
  const files = await openTarFiles(path, signal);
  const isDocker = (await files.find('manifest.json')) !== undefined;
  const isOci = await isOciLayout(files);
  // Docker since 25 writes both; the OCI side has the digests that the images had before.
  if (isOci && (!isDocker || (await hasNamedImages(files)))) return openOciLayout(files, 'oci-archive', signal);
  if (isDocker) return openDockerArchive(files, new LayerCache(join(workDir, 'layers')), signal);
  if (!files.complete) throw new AppError('bundle_truncated', { detail: 'the archive has no end, and no list of images' });
  throw new AppError('bundle_format_unknown', { detail: 'the archive has neither manifest.json nor oci-layout and index.json' });
}
