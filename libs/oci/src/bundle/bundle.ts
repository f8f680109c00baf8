/**
 * Opens image bundles: files that crossed the air gap. This is not a tar library: of a bundle only the images are of
 * interest, nothing is extracted, and everything that image tools do not write is refused.
 */

import { randomUUID } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError } from '@airdock/core/errors';
import { type Digest, isDigest } from '@airdock/core/oci/digest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { findParts, JoinedFile } from '../archive/joined-file.js';
import { LayerCache } from '../compression/layer-cache.js';
import { detectCompression, removeUnpacked, unpack } from '../compression/unpack.js';
import type { GivenNames } from '../image/image-names.js';
import {
  type ImageList,
  type ImageSource,
  refusalOf,
  type SourceImage,
  type UnusableImage,
  unusableImage,
} from '../image/image-source.js';
import { type BundleFiles, below, openFolderFiles, openTarFiles, readSmall } from './bundle-files.js';
import { namesByConfig, openDockerArchive } from './docker-archive.js';
import { isOciLayout, type LayoutSource, openOciLayout } from './oci-layout.js';

/** How a bundle is opened, and where it may unpack. */
export interface OpenBundleOptions {
  /**
   * For what has to be unpacked or compressed: `layers/` stays for later runs, `unpacked/` goes when the source is
   * disposed.
   */
  workDir: string;
  /** For images that have no name in the bundle. */
  names?: GivenNames | undefined;
  /** Refuses a bundle of which something stays behind. */
  isStrict?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Opens a bundle by its content, whatever its name: docker-archive, OCI layout, Zarf package or Hauler haul; as a tar,
 * also in parts and compressed with gzip, zstd or xz, or, where it has a layout, as a folder. Reads metadata only,
 * except that a compressed tar is unpacked into `workDir` first. All manifests and configurations are verified by
 * digest, and every blob is there with its size; the content of blobs is verified by whoever moves it. What cannot be
 * used is named in `unusable`; when that is all, or with `isStrict`, the reason of the first is thrown. The caller
 * disposes the source.
 *
 * Throws `bundle_not_found`, `bundle_format_unknown`, `compression_unsupported`, `bundle_truncated`, `bundle_corrupt`,
 * `bundle_unsafe`, `bundle_too_large`, `digest_mismatch`, `digest_unsupported`, `image_name_missing`,
 * `reference_invalid`, `image_unsupported`, `layer_encrypted`, `layer_foreign`, `space_insufficient`, and the signal's
 * reason.
 *
 * @example
 * ```ts
 * await using bundle = await openBundle('/srv/bundles/kubernetes.tar', { workDir });
 * for (const { names, platforms } of bundle.images) console.log(names, platforms);
 * ```
 */
export async function openBundle(path: string, options: OpenBundleOptions): Promise<ImageSource> {
  const status = await stat(path).catch((cause: unknown) => {
    throw new AppError('bundle_not_found', { path }, { cause });
  });
  if (status.isDirectory()) {
    const files = await openFolderFiles(path);
    const source = await openFiles(files, 'oci-layout', options);
    if (!source)
      throw new AppError('bundle_format_unknown', {
        detail: `the folder has no oci-layout and index.json${await seenIn(files)}`,
      });
    return source;
  }
  // Devices and pipes have no length, and reading them may never end.
  if (!status.isFile())
    throw new AppError('bundle_format_unknown', { detail: 'the path is neither a file nor a folder' });
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
  if (!files.complete)
    throw new AppError('bundle_truncated', { detail: 'the archive has no end, and no list of images' });
  throw new AppError('bundle_format_unknown', {
    detail: `the archive has neither manifest.json nor oci-layout and index.json${await seenIn(files)}`,
  });
}

/** What somebody may have taken for the bundle: files that are bundles perhaps, or a folder that is one. */
async function seenIn(files: BundleFiles): Promise<string> {
  const names = await files.names();
  const bundles = names.filter((name) => /\.(?:tar|tgz|tzst|txz|oci)(?:\.|$)/i.test(name)).sort();
  if (bundles.length > 0)
    return `; it has ${bundles.slice(0, 3).join(', ')}${bundles.length > 3 ? ` and ${bundles.length - 3} more` : ''} inside: register each of them`;
  const folders = new Set(names.map((name) => name.split('/').slice(0, -1).join('/') || name));
  for (const folder of [...folders].filter((name) => name !== '').slice(0, maxFoldersSeen))
    if (
      (await isOciLayout(below(files, folder)).catch(() => false)) ||
      (await files.find(`${folder}/manifest.json`).catch(() => undefined))
    )
      return `; they are in its folder ${folder}: register that, or an archive of what is in it`;
  return '';
}

async function openFiles(
  files: BundleFiles,
  layout: 'oci-archive' | 'oci-layout',
  options: OpenBundleOptions,
): Promise<ImageSource | undefined> {
  const source = await openImages(files, layout, options);
  if (!source) return undefined;
  const { images, unusable } = source;
  if (images.length === 0) throw unusable.length > 0 ? refusalOf(unusable) : new AppError('bundle_empty');
  // Docker and containerd save what they have of an index, and mean it.
  const isMeant = (await files.find('manifest.json')) !== undefined;
  const refused = options.isStrict ? unusable.filter(({ code }) => !isMeant || code !== 'platforms_absent') : [];
  if (refused.length > 0) throw refusalOf(refused);
  source.lists = await readLists(files);
  return source;
}

/** Where bundles that are opened with this folder for their work have their compressed layers. */
export const layerCacheIn = (workDir: string): LayerCache => new LayerCache(join(workDir, 'layers'));

async function openImages(
  files: BundleFiles,
  layout: 'oci-archive' | 'oci-layout',
  { workDir, names, signal }: OpenBundleOptions,
) {
  const isDocker = (await files.find('manifest.json')) !== undefined;
  const openDocker = () => openDockerArchive(files, layerCacheIn(workDir), { names, signal });
  if (await isOciLayout(files))
    return isDocker
      ? openBoth(files, layout, { names, signal }, openDocker)
      : openOciLayout(files, { format: layout, names, signal });
  if (isDocker) return openDocker();
  if ((await files.find('zarf.yaml')) && (await isOciLayout(below(files, 'images'))))
    return openOciLayout(below(files, 'images'), { format: 'zarf-package', names, signal });
  return undefined;
}

/**
 * An archive with both lists, as Docker since 25 writes it. The OCI side counts, whose digests the images had before;
 * from the other come names that it does not have, and images that it lacks or has only in part. When one of the lists
 * cannot be read it is named, and the other one is all there is.
 */
async function openBoth(
  files: BundleFiles,
  format: 'oci-archive' | 'oci-layout',
  options: { names?: GivenNames | undefined; signal?: AbortSignal | undefined },
  openDocker: () => Promise<ImageSource>,
): Promise<ImageSource> {
  const unreadable: UnusableImage[] = [];
  const leaveOut = (list: string, other: string) => (error: unknown) => {
    const { code, detail } = unusableImage(error, { name: null, digest: null });
    unreadable.push({
      name: null,
      digest: null,
      code,
      detail: `${list} cannot be read, so only ${other} counts: ${detail}`,
    });
    return undefined;
  };
  const listed = await namesByConfig(files).catch(leaveOut('manifest.json', 'index.json'));
  const oci = await openOciLayout(files, { format, ...options, namesByConfig: listed }).catch(
    leaveOut('index.json', 'manifest.json'),
  );
  if (!listed && !oci) throw refusalOf(unreadable);
  if (!listed || !oci) {
    const source = oci ?? (await openDocker());
    return Object.assign(source, { unusable: [...source.unusable, ...unreadable] });
  }
  const { isWhole, collisions, isFree, byConfig } = giveNames(oci, listed);
  if (isWhole && oci.images.length > 0) return { ...oci, unusable: [...oci.unusable, ...collisions] };
  const docker = await openDocker();
  const isTold = ({ name, digest }: UnusableImage) =>
    name === null ? isDigest(digest) && oci.namelessConfigs.has(digest) : oci.unusable.some((one) => one.name === name);
  const ofDocker = docker.unusable.filter((one) => !isTold(one));
  const others = docker.images.filter(({ configDigests: [digest] }) => digest && !byConfig.has(digest));
  for (const image of others)
    image.names = image.names.filter((name) => isFree(name, image.configDigests[0] as Digest));
  const added = new Set(others.filter(({ names }) => names.length > 0));
  if (oci.images.length === 0)
    return Object.assign(docker, { unusable: [...ofDocker, ...leftOut(oci.unusable, added)] });
  return {
    format,
    images: [...oci.images, ...added],
    unusable: [...leftOut(oci.unusable, added), ...leftOut(ofDocker, new Set(oci.images)), ...collisions],
    prepare: (image, prepareOptions) => (added.has(image) ? docker : oci).prepare(image, prepareOptions),
    readManifest: (digest) => docker.readManifest(digest).catch(() => oci.readManifest(digest)),
    blob: (descriptor) => docker.blob(descriptor).catch(() => oci.blob(descriptor)),
    blobsOf: async (image) => (added.has(image) ? ((await docker.blobsOf?.(image)) ?? []) : []),
    [Symbol.asyncDispose]: async () => {},
  };
}

/** Gives the images of a layout the names that the other list has for them, unless another image has those. */
function giveNames(oci: LayoutSource, listed: ReadonlyMap<Digest, readonly string[]>) {
  const owners = new Map(oci.images.flatMap((image) => image.names.map((name) => [name, image] as const)));
  const byConfig = new Map(
    oci.images.flatMap((image) => image.configDigests.map((digest) => [digest, image] as const)),
  );
  /** Grows with each name that is asked for and is not free. */
  const collisions: UnusableImage[] = [];
  const isFree = (name: string, digest: Digest) => {
    if (owners.has(name))
      collisions.push({
        name,
        digest,
        code: 'image_name_ambiguous',
        detail: `manifest.json gives ${name} to another image than index.json`,
      });
    return !owners.has(name);
  };
  for (const [digest, names] of listed) {
    const image = byConfig.get(digest);
    if (image) image.names.push(...names.filter((name) => owners.get(name) !== image && isFree(name, digest)));
  }
  return { isWhole: [...listed.keys()].every((digest) => byConfig.has(digest)), collisions, isFree, byConfig };
}

/** What is left out of one list and does not come from the other either. */
function leftOut(unusable: readonly UnusableImage[], found: ReadonlySet<SourceImage>): UnusableImage[] {
  const there = new Set([...found].flatMap(({ names, configDigests }) => [...names, ...configDigests]));
  const isThere = (text: string | null) => text !== null && there.has(text);
  return unusable.filter(({ name, digest }) => !isThere(name) && !isThere(digest));
}

/** A bundle lies near the root, or nowhere. */
const maxFoldersSeen = 20;

const maxListFolders = 2;
/** By parts: one expression for all would try every place of `image` in a name that somebody made of nothing else. */
function isListName(path: string): boolean {
  const folders = path.split('/');
  const name = folders.pop() ?? '';
  return (
    folders.length <= maxListFolders &&
    /\.(?:txt|list)$/i.test(name) &&
    /^[\w.-]+$/.test(name) &&
    /image/i.test(name.slice(0, name.lastIndexOf('.')))
  );
}
const maxListBytes = 1024 * 1024;
const maxLists = 100;

/**
 * Text files with a reference on each line, as release folders have them; `#` begins a comment. Any other text is no
 * list.
 */
async function readLists(files: BundleFiles): Promise<ImageList[]> {
  const lists: ImageList[] = [];
  for (const name of (await files.names()).filter(isListName).slice(0, maxLists)) {
    const reader = await files.find(name);
    if (!reader || reader.size > maxListBytes) continue;
    const lines = (await readSmall(name, reader, maxListBytes)).toString('utf8').split('\n');
    try {
      const images = lines.map((line) => line.replace(/#.*/, '').trim()).filter((line) => line !== '');
      if (images.length > 0)
        lists.push({ name, images: [...new Set(images.map((image) => formatReference(parseReference(image))))] });
    } catch {
      // A text about images.
    }
  }
  return lists;
}
