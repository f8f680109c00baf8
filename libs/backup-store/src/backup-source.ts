import { AppError } from '@airdock/core/errors';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import type { Digest } from '@airdock/core/oci/digest';
import { type Descriptor, maxManifestBytes } from '@airdock/core/oci/manifest';
import { formatName } from '@airdock/core/oci/reference';
import { describeImage, type ImageGraph, walkImage } from '@airdock/oci/image/image-graph';
import type { ImageSource, SourceImage } from '@airdock/oci/image/image-source';
import type { ReadOptions } from './backup-records.js';
import type { BackupStore } from './backup-store.js';
import type { RecordSignature } from './record-signature.js';
import type { SkippedReference } from './registry-content.js';

/** What of a backup is opened. */
export interface OpenBackupOptions extends ReadOptions {
  /** Which names; default all. */
  filter?: ((name: { repository: string; tag: string }) => boolean) | undefined;
  signal?: AbortSignal | undefined;
}

/** A backup that is open for reading, as an image source. */
export interface BackupSource extends ImageSource {
  record: BackupRecord;
  signature: RecordSignature;
  /** Names whose images cannot be restored, since something of them is missing or damaged in the store. */
  broken: SkippedReference[];
}

/**
 * Opens a backup as an image source, so that `copyImages` restores it. The names of its images are `repository:tag`, or
 * `repository@digest` without a tag. Checks the record, every manifest and configuration by digest, and that every blob
 * is there with its size; whoever moves the content verifies it. Throws `resource_not_found`, `backup_corrupt` for its
 * record, `backup_format_unsupported`, `backup_key_missing`, what `readSigned` throws, and the signal's reason.
 */
export async function openBackup(
  store: BackupStore,
  id: string,
  { filter = () => true, signal, ...reading }: OpenBackupOptions = {},
): Promise<BackupSource> {
  const { record, signature } = await store.readSigned(id, reading);
  const index = await store.index();
  const sizes = new Map(record.blobs.map(({ digest, size }) => [digest, size]));
  const read = (digest: Digest, maxBytes: number) => {
    const size = sizes.get(digest);
    // A record that forgets a blob would restore an image that cannot be pulled.
    if (size === undefined)
      throw new AppError('backup_incomplete', { detail: `the record of ${id} does not list ${digest}`, digest });
    return store.readBlob(index, { digest, size }, maxBytes);
  };
  const open = async (name: string, root: Descriptor): Promise<SourceImage> => {
    const graph = await walkImage(root, async (wanted) => read(wanted, maxManifestBytes));
    assertListed(sizes, graph, name);
    for (const blob of graph.blobs) store.openBlob(index, blob);
    const facts = await describeImage(graph, async (config, maxBytes) => read(config.digest, maxBytes));
    return { names: [], root, ...facts };
  };
  const references = record.references.filter(({ repository, tag = '' }) => filter({ repository, tag }));
  const { images, broken } = await openImages(references, open, signal);
  return {
    format: 'backup',
    unusable: [],
    record,
    signature,
    broken,
    images,
    prepare: async ({ root }) => {
      if (!root) throw new TypeError('the image is of another source');
      return root;
    },
    readManifest: async (digest) => read(digest, maxManifestBytes),
    blob: async (descriptor) => store.openBlob(index, descriptor),
    [Symbol.asyncDispose]: async () => {},
  };
}

/** Throws `backup_incomplete` when the record forgets something that an image needs. */
function assertListed(sizes: ReadonlyMap<Digest, number>, { manifests, blobs }: ImageGraph, name: string): void {
  const forgotten = [...manifests, ...blobs].find((needed) => sizes.get(needed.digest) !== needed.size);
  if (forgotten)
    throw new AppError('backup_incomplete', {
      detail: `the record does not list ${forgotten.digest}, which ${name} needs`,
      digest: forgotten.digest,
    });
}

/** Opens each image once, whatever number of names it has, and tells those that are damaged. */
async function openImages(
  references: BackupRecord['references'],
  open: (name: string, root: Descriptor) => Promise<SourceImage>,
  signal: AbortSignal | undefined,
): Promise<Pick<BackupSource, 'images' | 'broken'>> {
  const byRoot = new Map<Digest, SourceImage>();
  const broken: BackupSource['broken'] = [];
  for (const { repository, tag, digest, mediaType, size } of references) {
    signal?.throwIfAborted();
    const name = formatName({ repository, tag, digest });
    try {
      const image = byRoot.get(digest) ?? (await open(name, { mediaType, digest, size }));
      image.names.push(name);
      byRoot.set(digest, image);
    } catch (error) {
      if (!(error instanceof AppError && isDamage(error))) throw error;
      broken.push({ name, reason: error.details.detail ?? error.message });
    }
  }
  return { images: [...byRoot.values()], broken };
}

/** The words of the first two are about bundles; what is damaged here is the backup. */
const isDamage = ({ code }: AppError): boolean =>
  ['bundle_corrupt', 'image_unsupported', 'backup_corrupt', 'backup_incomplete'].includes(code);
