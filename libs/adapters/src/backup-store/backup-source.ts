import { AppError } from '@airdock/core/errors';
import type { Digest } from '@airdock/core/oci/digest';
import { maxManifestBytes } from '@airdock/core/oci/manifest';
import { formatName } from '@airdock/core/oci/reference';
import { describeImage, walkImage } from '../oci-client/image-graph.js';
import type { ImageSource, SourceImage } from '../oci-client/image-source.js';
import type { BackupStore } from './backup-store.js';

/**
 * Opens a backup as an image source, so that `copyImages` restores it. The names of its images are `repository:tag`. Checks the record, every manifest and
 * configuration by digest, and that every blob is there with its size; whoever moves the content verifies it. Throws `resource_not_found`,
 * `backup_corrupt`, `backup_incomplete`, `backup_format_unsupported`, and the signal's reason.
 */
export async function openBackup(store: BackupStore, id: string, signal?: AbortSignal): Promise<ImageSource> {
  const record = await store.readRecord(id);
  for (const blob of record.blobs) await store.openBlob(blob);
  const sizes = new Map(record.blobs.map(({ digest, size }) => [digest, size]));
  const readManifest = (digest: Digest) => store.readBlob(digest, maxManifestBytes);
  const byRoot = new Map<Digest, SourceImage>();
  for (const { repository, tag, digest, mediaType, size } of record.references) {
    signal?.throwIfAborted();
    const known = byRoot.get(digest);
    const name = formatName({ repository, tag });
    if (known) {
      known.names.push(name);
      continue;
    }
    const root = { mediaType, digest, size };
    const graph = await walkImage(root, readManifest).catch((error: unknown) => {
      // The words are about bundles; what is damaged here is the backup.
      throw error instanceof AppError && error.code === 'bundle_corrupt' ? new AppError('backup_corrupt', error.details, { cause: error }) : error;
    });
    // A record that forgets a blob would restore an image that cannot be pulled.
    const forgotten = [...graph.manifests, ...graph.blobs].find((needed) => sizes.get(needed.digest) !== needed.size);
    if (forgotten)
      throw new AppError('backup_incomplete', {
        detail: `the record of ${id} does not list ${forgotten.digest}, which ${name} needs`,
        digest: forgotten.digest,
      });
    const facts = await describeImage(graph, (config, maxBytes) => store.readBlob(config.digest, maxBytes));
    byRoot.set(digest, { names: [name], root, ...facts });
  }
  return {
    format: 'backup',
    images: [...byRoot.values()],
    prepare: async ({ root }) => {
      if (!root) throw new TypeError('the image is of another source');
      return root;
    },
    readManifest,
    blob: (descriptor) => store.openBlob(descriptor),
    [Symbol.asyncDispose]: async () => {},
  };
}
