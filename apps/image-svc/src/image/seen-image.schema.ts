import { formatPlatform } from '@airdock/core/oci/manifest';
import type { SourceImage } from '@airdock/oci/image/image-source';

/** An image as it was seen in a bundle. */
export interface SeenImage {
  names: string[];
  digest: string | null;
  imageIds: string[];
  platforms: string[];
  /** Not in rows of older versions. */
  zstdPlatforms?: string[];
  sizeBytes: number;
}

export const toSeenImage = (image: SourceImage): SeenImage => ({
  names: image.names,
  digest: image.root?.digest ?? null,
  imageIds: image.configDigests,
  platforms: image.platforms.map(formatPlatform),
  zstdPlatforms: (image.zstdPlatforms ?? []).map(formatPlatform),
  sizeBytes: image.sizeBytes,
});
