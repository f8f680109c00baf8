import type { Digest } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import type { SourceImage } from '@airdock/oci/image/image-source';

/** One image that is being copied. */
export interface ImageProgress {
  /** Its first upstream reference. */
  name: string;
  bytesDone: number;
  bytesTotal: number;
  /** Its blobs; of one that has to be compressed first they come when they are known. */
  parts: { name: Digest; bytesDone: number; bytesTotal: number }[];
}

/** How far a copy is. */
export interface CopyProgress {
  /** Bytes of the source that need no more work, also because they were there. Never less than before in one run. */
  bytesDone: number;
  /** The sum of `sizeBytes` of all images: what two images share counts for both. */
  bytesTotal: number;
  /** Images that are finished, also those that failed. */
  itemsDone: number;
  itemsTotal: number;
  /**
   * Makes the list of what is being copied now, the longest at work first, at most so many images and parts of each.
   */
  active(maxImages: number, maxParts: number): ImageProgress[];
}

interface Part {
  prepared: number;
  /** Bytes that have arrived, by blob. */
  copied: Map<Digest, number>;
  blobs: readonly Descriptor[];
  blobBytes: number;
  copiedBytes: number;
  finished: boolean;
}

/**
 * Bytes done over all images. An image that has to be prepared counts half for being compressed and half for being
 * sent; compressed sizes are stretched to those of the source, which are the only ones known from the beginning.
 */
export class CopyMeter<Item extends { image: SourceImage }> {
  readonly #parts = new Map<Item, Part>();
  readonly #started = new Set<Item>();
  readonly #bytesTotal: number;
  #bytesDone = 0;
  #itemsDone = 0;

  constructor(
    items: readonly Item[],
    private readonly report: ((progress: CopyProgress) => void) | undefined,
  ) {
    this.#bytesTotal = items.reduce((sum, { image }) => sum + image.sizeBytes, 0);
    for (const item of items)
      this.#parts.set(item, {
        prepared: 0,
        copied: new Map(),
        blobs: [],
        blobBytes: 0,
        copiedBytes: 0,
        finished: false,
      });
    this.#report();
  }

  start(item: Item): void {
    this.#started.add(item);
  }

  prepared(item: Item, bytes: number): void {
    this.#update(item, (part) => {
      part.prepared = Math.max(part.prepared, bytes);
    });
  }

  /** What will be copied. */
  planned(item: Item, blobs: readonly Descriptor[]): void {
    const part = this.#parts.get(item);
    if (part) Object.assign(part, { blobs, blobBytes: blobs.reduce((sum, { size }) => sum + size, 0) });
  }

  copied(item: Item, digest: Digest, bytes: number): void {
    this.#update(item, (part) => {
      const before = part.copied.get(digest) ?? 0;
      if (bytes <= before) return;
      part.copied.set(digest, bytes);
      part.copiedBytes += bytes - before;
    });
  }

  finish(item: Item): void {
    this.#itemsDone += 1;
    this.#started.delete(item);
    this.#update(item, (part) => {
      part.finished = true;
    });
  }

  #update(item: Item, change: (part: Part) => void): void {
    const part = this.#parts.get(item);
    if (!part) return;
    const before = bytesOf(item.image, part);
    change(part);
    this.#bytesDone += Math.max(0, bytesOf(item.image, part) - before);
    this.#report();
  }

  #report(): void {
    this.report?.({
      bytesDone: Math.min(Math.round(this.#bytesDone), this.#bytesTotal),
      bytesTotal: this.#bytesTotal,
      itemsDone: this.#itemsDone,
      itemsTotal: this.#parts.size,
      active: (maxImages, maxParts) => this.#active(maxImages, maxParts),
    });
  }

  #active(maxImages: number, maxParts: number): ImageProgress[] {
    return [...this.#started].slice(0, maxImages).map((item) => {
      const { image } = item;
      const part = this.#parts.get(item) as Part;
      return {
        name: image.names[0] ?? image.root?.digest ?? '',
        bytesDone: Math.round(bytesOf(image, part)),
        bytesTotal: image.sizeBytes,
        parts: part.blobs
          .slice(0, maxParts)
          .map(({ digest, size }) => ({ name: digest, bytesDone: part.copied.get(digest) ?? 0, bytesTotal: size })),
      };
    });
  }
}

function bytesOf(image: SourceImage, { prepared, copiedBytes, blobBytes, finished }: Part): number {
  if (finished) return image.sizeBytes;
  const sent = copiedBytes / Math.max(blobBytes, 1);
  const share = image.root ? sent : (prepared / Math.max(image.sizeBytes, 1) + sent) / 2;
  return image.sizeBytes * Math.min(share, 1);
}
