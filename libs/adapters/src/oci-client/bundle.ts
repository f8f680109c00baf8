/**
 * Opens image bundles: files that crossed the air gap. This is not a tar library: of a bundle only the images are of interest, nothing
 * is extracted, and everything that image tools do not write is refused.
 */

import { randomUUID } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { type BundleFiles, below, openFolderFiles, openTarFiles, readSmall } from './bundle-files.js';
import { openDockerArchive } from './docker-archive.js';
import type { GivenNames } from './image-names.js';
import type { ImageList, ImageSource } from './image-source.js';
import { findParts, JoinedFile } from './joined-file.js';
import { LayerCache } from './layer-cache.js';
import { hasNamedImages, isOciLayout, openOciLayout } from './oci-layout.js';
import { detectCompression, removeUnpacked, unpack } from './unpack.js';

export interface OpenBundleOptions {
  /** For what has to be unpacked or compressed: `layers/` stays for later runs, `unpacked/` goes when the source is disposed. */
  workDir: string;
  /** For images that have no name in the bundle. */
  names?: GivenNames | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Opens a bundle by its content, whatever its name: docker-archive, OCI layout, Zarf package or Hauler haul; as a tar, also in parts and compressed with
 * gzip, zstd or xz, or, where it has a layout, as a folder. Reads metadata only, except that a compressed tar is unpacked into `workDir` first. All manifests
 * and configurations are verified by digest, and every blob is there with its size; the content of blobs is verified by whoever moves it. The caller
 * disposes the source.
 *
 * Throws `bundle_not_found`, `bundle_format_unknown`, `compression_unsupported`, `bundle_truncated`, `bundle_corrupt`, `bundle_unsafe`,
 * `bundle_too_large`, `digest_mismatch`, `digest_unsupported`, `image_name_missing`, `reference_invalid`, `image_unsupported`, `layer_encrypted`,
 * `layer_foreign`, `space_insufficient`, and the signal's reason.
 */
export async function openBundle(path: string, options: OpenBundleOptions): Promise<ImageSource> {
  const status = await stat(path).catch((cause: unknown) => {
    throw new AppError('bundle_not_found', { path }, { cause });
  });
  if (status.isDirectory()) {
    const source = await openFiles(await openFolderFiles(path), 'oci-layout', options);
    if (!source) throw new AppError('bundle_format_unknown', { detail: 'the folder has no oci-layout and index.json' });
    return source;
  }
  // Devices and pipes have no length, and reading them may never end.
  if (!status.isFile()) throw new AppError('bundle_format_unknown', { detail: 'the path is neither a file nor a folder' });
  const parts = await findParts(path);
  await using file = await JoinedFile.open(parts);
  const compression = await detectCompression(file);
  if (!compression) return await openTar(parts, options);

  const unpacked = join(options.workDir, 'unpacked', `${randomUUID()}.tar`);
  try {
    await unpack(file, compression, unpacked, options.signal);
    const source = await openTar([unpacked], options);
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

async function openTar(paths: readonly string[], options: OpenBundleOptions): Promise<ImageSource> {
  const files = await openTarFiles(paths, options.signal);
  const source = await openFiles(files, 'oci-archive', options);
  if (source) return source;
  if (!files.complete) throw new AppError('bundle_truncated', { detail: 'the archive has no end, and no list of images' });
  throw new AppError('bundle_format_unknown', { detail: 'the archive has neither manifest.json nor oci-layout and index.json' });
}

async function openFiles(files: BundleFiles, layout: 'oci-archive' | 'oci-layout', options: OpenBundleOptions): Promise<ImageSource | undefined> {
  const source = await openImages(files, layout, options);
  if (source?.images.length === 0) throw new AppError('bundle_empty');
  if (source) source.lists = await readLists(files);
  return source;
}

async function openImages(files: BundleFiles, layout: 'oci-archive' | 'oci-layout', { workDir, names, signal }: OpenBundleOptions) {
  const isDocker = (await files.find('manifest.json')) !== undefined;
  const isOci = await isOciLayout(files);
  // Docker since 25 writes both; the OCI side has the digests that the images had before.
  if (isOci && (!isDocker || (await hasNamedImages(files)))) return openOciLayout(files, { format: layout, names, signal });
  if (isDocker) return openDockerArchive(files, new LayerCache(join(workDir, 'layers')), { names, signal });
  if ((await files.find('zarf.yaml')) && (await isOciLayout(below(files, 'images'))))
    return openOciLayout(below(files, 'images'), { format: 'zarf-package', names, signal });
  return undefined;
}

const maxListFolders = 2;
/** By parts: one expression for all would try every place of `image` in a name that somebody made of nothing else. */
function isListName(path: string): boolean {
  const folders = path.split('/');
  const name = folders.pop() ?? '';
  return folders.length <= maxListFolders && /\.(?:txt|list)$/i.test(name) && /^[\w.-]+$/.test(name) && /image/i.test(name.slice(0, name.lastIndexOf('.')));
}
const maxListBytes = 1024 * 1024;
const maxLists = 100;

/** Text files with a reference on each line, as release folders have them; `#` begins a comment. Any other text is no list. */
async function readLists(files: BundleFiles): Promise<ImageList[]> {
  const lists: ImageList[] = [];
  for (const name of (await files.names()).filter(isListName).slice(0, maxLists)) {
    const reader = await files.find(name);
    if (!reader || reader.size > maxListBytes) continue;
    const lines = (await readSmall(name, reader, maxListBytes)).toString('utf8').split('\n');
    try {
      const images = lines.map((line) => line.replace(/#.*/, '').trim()).filter((line) => line !== '');
      if (images.length > 0) lists.push({ name, images: [...new Set(images.map((image) => formatReference(parseReference(image))))] });
    } catch {
      // A text about images.
    }
  }
  return lists;
}
