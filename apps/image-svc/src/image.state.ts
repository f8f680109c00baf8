import { isDigest } from '@airdock/core/oci/digest';
import type { StateTable } from '@airdock/platform/state/state-table';
import { z } from 'zod';
import { ImageEntity, ImageNameEntity } from './image/image.entity.js';
import { ImageSetEntity } from './image-set/image-set.entity.js';
import { imageSetName } from './image-set/image-set.schema.js';

const time = z.iso.datetime();
const reference = z.string().min(1).max(600);
const digest = z.string().refine(isDigest, 'is no sha256 digest');
const bytes = z.number().int().nonnegative();

/** Rows as this service writes them; what a restore brings must be such. */
const imageRow = z.object({
  id: z.uuid(),
  upstream: reference,
  localReferences: z.array(reference).max(100),
  digest,
  mediaType: z.string().min(1).max(255),
  imageIds: z.array(digest).max(10_000),
  platforms: z.array(z.string().max(200)).max(10_000),
  zstdPlatforms: z.array(z.string().max(200)).max(10_000).nullish(),
  parts: z
    .array(
      z.object({
        digest,
        size: bytes,
        kind: z.enum(['manifest', 'config', 'layer', 'companion']),
        platform: z.string().max(200).optional(),
      }),
    )
    .max(20_000),
  sizeBytes: z.string().regex(/^\d{1,15}$/),
  firstBundleId: z.uuid().nullish(),
  bundleId: z.uuid().nullish(),
  firstPushedAt: time,
  pushedAt: time,
});

const imageNameRow = z.object({
  name: z.string().min(1).max(400),
  upstream: reference,
  identity: z.string().max(800_000),
});

const imageSetRow = z.object({
  id: z.uuid(),
  name: imageSetName,
  kubernetesVersion: z.string().max(60).nullish(),
  images: z.array(z.string().min(1).max(512)).max(5_000),
  createdAt: time,
});

/** What of image-svc outlives its machine. */
export const imageState: readonly StateTable[] = [
  { entity: ImageEntity, row: imageRow },
  { entity: ImageNameEntity, row: imageNameRow },
  { entity: ImageSetEntity, row: imageSetRow },
];
