import { openBackup } from '@airdock/backup-store/backup-source';
import type { BackupBlob, BackupStore, BlobIndex } from '@airdock/backup-store/backup-store';
import { openRegistryBlob } from '@airdock/backup-store/registry-content';
import { errnoOf } from '@airdock/core/errno';
import { AppError } from '@airdock/core/errors';
import type { BackupRecord } from '@airdock/core/oci/backup-record';
import { type Digest, digestHex } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import type { JobContext } from '@airdock/platform/jobs/job-processor';
import pLimit from 'p-limit';
import type { BackupService } from '../backup/backup.service.js';

const readsAtOnce = 2;
/** Where a blob may be in a registry that has to be asked. */
const maxRepositoriesToAsk = 100;

/** The bytes of files or blobs together. */
export const sumOf = (files: readonly { size: number }[]): number => files.reduce((sum, { size }) => sum + size, 0);

/** Reads the blobs, and returns those that are missing or damaged. Throws `backup_key_missing` when nobody could tell. */
export async function readAll(
  store: BackupStore,
  index: BlobIndex,
  blobs: readonly BackupBlob[],
  signal: AbortSignal,
  progress: JobContext['progress'],
): Promise<BackupBlob[]> {
  const limit = pLimit(readsAtOnce);
  const damaged: BackupBlob[] = [];
  const bytesTotal = sumOf(blobs);
  let bytesDone = 0;
  let itemsDone = 0;
  const report = () =>
    progress({
      phase: 'reading blobs',
      bytesDone: Math.min(bytesDone, bytesTotal),
      bytesTotal,
      itemsDone,
      itemsTotal: blobs.length,
    });
  const onBytes = (count: number) => {
    bytesDone += count;
    report();
  };
  const results = await Promise.allSettled(
    blobs.map((blob) =>
      limit(async () => {
        signal.throwIfAborted();
        try {
          await store.verifyBlob(index, blob, { signal, onBytes });
        } catch (error) {
          if (!isDamage(error)) throw error;
          damaged.push(blob);
        }
        itemsDone += 1;
        report();
      }),
    ),
  );
  signal.throwIfAborted();
  for (const result of results) if (result.status === 'rejected') throw result.reason;
  return damaged;
}

/** Also what the disk cannot read any more. */
const isDamage = (error: unknown): boolean =>
  error instanceof AppError ? ['backup_corrupt', 'backup_incomplete'].includes(error.code) : errnoOf(error) === 'EIO';

/** What needs blobs that are lost: backups, and the images in them. */
export async function describeLost(
  store: BackupStore,
  records: readonly BackupRecord[],
  lost: readonly Digest[],
  signal: AbortSignal,
) {
  const described = lost.map((digest) => ({ digest, backups: [] as string[], images: new Set<string>() }));
  for (const { id, blobs } of lost.length > 0 ? records : []) {
    const needed = described.filter(({ digest }) => blobs.some((blob) => blob.digest === digest));
    if (needed.length === 0) continue;
    await using source = await openBackup(store, id, { signal, allowUnsigned: true });
    for (const one of needed) {
      one.backups.push(id);
      for (const { name, reason } of source.broken) if (reason.includes(digestHex(one.digest))) one.images.add(name);
    }
  }
  return described.map(({ images, ...rest }) => ({ ...rest, images: [...images] }));
}

/**
 * A registry that is off has nothing, and storage that takes no writes cannot be healed; what is damaged is named all
 * the same.
 */
export function whyNotHealed(error: unknown): string {
  if (!(error instanceof AppError)) throw error;
  if (error.code.startsWith('registry_')) return 'the registry does not have it';
  if (error.code === 'space_insufficient' || error.code === 'backup_target_read_only')
    return `cannot be replaced (${error.code})`;
  throw error;
}

/**
 * Brings blobs again from the registry, as far as it has them with the right bytes, and adds their digests to
 * `healed`.
 */
export async function heal(
  backups: Pick<BackupService, 'registryForJob'>,
  store: BackupStore,
  index: BlobIndex,
  damaged: readonly BackupBlob[],
  records: readonly BackupRecord[],
  healed: Digest[],
  context: Pick<JobContext, 'signal' | 'progress'>,
): Promise<void> {
  const { signal } = context;
  const { address, storage } = await backups.registryForJob(context, 'look');
  await using registry = new RegistryClient(address);
  const references = records.flatMap((record) => record.references);
  for (const blob of damaged) {
    // A disk or a server may have answered wrong once.
    const isWhole = await store.verifyBlob(index, blob, { signal }).then(
      () => true,
      () => false,
    );
    signal.throwIfAborted();
    if (isWhole) {
      healed.push(blob.digest);
      continue;
    }
    await store.setAside(index, blob);
    const own = references.filter(({ digest }) => digest === blob.digest).map(({ repository }) => repository);
    const repositories = [...new Set([...own, ...references.map(({ repository }) => repository)])].slice(
      0,
      storage ? 1 : maxRepositoriesToAsk,
    );
    const kinds = own.length > 0 ? [mediaTypes.ociManifest] : ['application/octet-stream', mediaTypes.ociManifest];
    for (const [repository, mediaType] of repositories.flatMap((repository) =>
      kinds.map((kind) => [repository, kind] as const),
    )) {
      try {
        await store.putBlob(
          index,
          blob,
          () => openRegistryBlob({ registry, storage, signal }, repository, { ...blob, mediaType }),
          { signal },
        );
        healed.push(blob.digest);
        break;
      } catch (error) {
        // It is not there, or is damaged there too.
        if (!(error instanceof AppError) || !['image_not_found', 'digest_mismatch'].includes(error.code)) throw error;
      }
    }
  }
}
