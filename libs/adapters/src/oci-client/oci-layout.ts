import { AppError } from '@airdock/core/errors';
import { type Digest, isDigest } from '@airdock/core/oci/digest';
import { type Descriptor, isIndexMediaType, maxManifestBytes, mediaTypes, parseManifest } from '@airdock/core/oci/manifest';
import { formatReference, parseReference } from '@airdock/core/oci/reference';
import { type BundleFiles, blobPath, missingFile, readSmall, readVerified } from './bundle-files.js';
import { checkKinds, describeImage, foreignLayer, isForeignLayer, walkImage } from './image-graph.js';
import type { ImageSource, SourceImage } from './image-source.js';

/**
 * Reads an OCI image layout, in a tar or a folder. Digests stay bit by bit what they are.
 * Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
 */

/** Both files that make a layout. */
export const isOciLayout = async (files: BundleFiles): Promise<boolean> => Boolean((await files.find('oci-layout')) && (await files.find('index.json')));

/**
 * The full name that a tool wrote beside an image. containerd and Docker write `io.containerd.image.name`; skopeo, crane and others put what
 * they were given into `ref.name`, which is a tag only when it has neither `/` nor `:`.
 */
function imageName({ annotations }: Descriptor): string | undefined {
  const refName = annotations?.['org.opencontainers.image.ref.name'];
  const name = annotations?.['io.containerd.image.name'] ?? (refName && /[/:]/.test(refName) ? refName : undefined);
  return name === undefined ? undefined : formatReference(parseReference(name));
}

/** True when every entry of `index.json` has a full name. */
export async function hasNamedImages(files: BundleFiles): Promise<boolean> {
  const entries = await readIndex(files);
  return entries.length > 0 && entries.every((entry) => imageName(entry) !== undefined);
}

async function readIndex(files: BundleFiles): Promise<Descriptor[]> {
  const reader = await files.find('index.json');
  if (!reader) throw missingFile(files, 'index.json');
  const index = parseManifest(await readSmall('index.json', reader, maxManifestBytes), mediaTypes.ociIndex);
  if (index.kind !== 'index') throw new AppError('bundle_corrupt', { detail: 'index.json is no image index' });
  return index.manifests;
}

async function checkVersion(files: BundleFiles): Promise<void> {
  const reader = await files.find('oci-layout');
  if (!reader) throw missingFile(files, 'oci-layout');
  const text = (await readSmall('oci-layout', reader, 4096)).toString('utf8');
  if (!/"imageLayoutVersion"\s*:\s*"1\./.test(text)) throw new AppError('bundle_format_unknown', { detail: 'the OCI layout is not of version 1' });
}

/**
 * Docker and containerd export the index of a multi-platform image also when only one platform of it is there. Such a bundle stands for that
 * platform, so its manifest becomes the root. Any other hole is damage, which `walkImage` reports.
 */
async function presentRoot(files: BundleFiles, root: Descriptor): Promise<Descriptor> {
  if (!isIndexMediaType(root.mediaType) || !(await files.find('manifest.json'))) return root;
  const index = parseManifest(await readVerified(files, blobPath(root.digest), root.digest, maxManifestBytes), root.mediaType);
  if (index.kind !== 'index') return root;
  const present: Descriptor[] = [];
  for (const child of index.manifests) if (await files.find(blobPath(child.digest))) present.push(child);
  const [only] = present;
  return only && present.length === 1 && index.manifests.length > 1 && !isIndexMediaType(only.mediaType) ? only : root;
}

/** Platforms and image IDs of one root, after checking that everything it needs is there, with the right size. */
async function inspectImage(files: BundleFiles, root: Descriptor, name: string): Promise<SourceImage> {
  const graph = await walkImage(root, (digest) => readVerified(files, blobPath(digest), digest, maxManifestBytes));
  checkKinds(graph);
  for (const blob of graph.blobs) {
    const reader = await files.find(blobPath(blob.digest));
    if (!reader && isForeignLayer(blob)) throw foreignLayer(blob);
    if (!reader) throw missingFile(files, blobPath(blob.digest));
    if (reader.size !== blob.size) {
      throw new AppError('bundle_corrupt', {
        detail: `${blobPath(blob.digest)} has ${reader.size} bytes, ${name} says ${blob.size}`,
        member: blobPath(blob.digest),
      });
    }
  }
  const facts = await describeImage(graph, ({ digest }, maxBytes) => readVerified(files, blobPath(digest), digest, maxBytes), { strict: true });
  return { names: [name], root, ...facts };
}

/**
 * Opens the images of a layout. Throws `image_name_missing`, `reference_invalid`, `bundle_corrupt`,
 * `digest_mismatch`, `digest_unsupported`, `bundle_too_large`, `image_unsupported`, `layer_encrypted`, `layer_foreign`.
 */
export async function openOciLayout(files: BundleFiles, format: 'oci-archive' | 'oci-layout', signal?: AbortSignal): Promise<ImageSource> {
  await checkVersion(files);
  const byRoot = new Map<Digest, SourceImage>();
  for (const entry of await readIndex(files)) {
    signal?.throwIfAborted();
    const name = imageName(entry);
    if (name === undefined) {
      const tag = entry.annotations?.['org.opencontainers.image.ref.name'];
      throw new AppError('image_name_missing', {
        detail: `${entry.digest} has ${tag ? `only the tag ${JSON.stringify(tag.slice(0, 128))}` : 'no name'}`,
        digest: entry.digest,
      });
    }
    const { mediaType, digest, size } = await presentRoot(files, entry);
    const known = byRoot.get(digest);
    if (!known) byRoot.set(digest, await inspectImage(files, { mediaType, digest, size }, name));
    else if (!known.names.includes(name)) known.names.push(name);
  }
  return {
    format,
    images: [...byRoot.values()],
    prepare: async ({ root }) => {
      if (!root) throw new TypeError('the image is of another source');
      return root;
    },
    readManifest: (digest) => readVerified(files, blobPath(digest), digest, maxManifestBytes),
    blob: async ({ digest }) => {
      const reader = isDigest(digest) ? await files.find(blobPath(digest)) : undefined;
      if (!reader) throw missingFile(files, `blob ${digest}`);
      return reader;
    },
    [Symbol.asyncDispose]: async () => {},
  };
}
