import { baseline } from '@airdock/platform/schema/baseline';

/** What has changed the tables of this service since its first version, oldest first. Add to the end; change nothing. */
export const imageMigrations = [
  baseline({
    bundle: {
      columns: {
        id: 'key varchar',
        name: 'varchar',
        path: 'varchar',
        uploadId: 'varchar?',
        sizeBytes: 'varchar',
        fingerprint: 'varchar',
        names: 'text',
        sha256: 'varchar?',
        format: 'varchar?',
        images: 'text?',
        unusable: 'text?',
        strict: 'boolean?',
        lists: 'text?',
        plan: 'text?',
        jobId: 'varchar',
        createdAt: 'varchar',
      },
    },
    image: {
      columns: {
        id: 'key varchar',
        upstream: 'unique varchar',
        localReferences: 'text',
        digest: 'varchar',
        mediaType: 'varchar',
        imageIds: 'text',
        platforms: 'text',
        zstdPlatforms: 'text?',
        parts: 'text',
        sizeBytes: 'varchar',
        firstBundleId: 'varchar?',
        bundleId: 'varchar?',
        firstPushedAt: 'varchar',
        pushedAt: 'varchar',
      },
    },
    image_name: {
      columns: {
        name: 'key varchar',
        upstream: 'varchar',
        identity: 'text',
      },
    },
    image_set: {
      columns: {
        id: 'key varchar',
        name: 'unique varchar',
        kubernetesVersion: 'varchar?',
        images: 'text',
        createdAt: 'varchar',
      },
    },
    push: {
      columns: {
        id: 'key varchar',
        bundleId: 'varchar',
        images: 'text?',
        platforms: 'text?',
        naming: 'text?',
        winners: 'text?',
        dryRun: 'boolean',
        plan: 'text?',
        results: 'text?',
        leftOut: 'text?',
        reservedBytes: 'varchar',
        jobId: 'varchar',
        createdAt: 'varchar',
      },
    },
    verification: {
      columns: {
        id: 'key varchar',
        images: 'text?',
        quarantine: 'boolean',
        problems: 'text?',
        jobId: 'varchar',
        createdAt: 'varchar',
      },
    },
  }),
];
