import { AppError } from '@airdock/core/errors';

const mib = 1024 * 1024;
/** For one host, over all of its connections and channels. */
export const maxBufferedBytes = 8 * mib;
/**
 * For all hosts of this process. The nearer it comes the less each may have, but never less than its share: many that
 * are stuck keep nobody else from working.
 */
const maxTotalBytes = 256 * mib;
const shareBytes = mib / 4;

let total = 0;

/**
 * Counts what is kept in memory for one host at a time: what its commands have printed, and what goes to it through
 * tunnels and is not taken yet. A host that is at its bound slows down or ends what it does itself, and nobody else.
 */
export class HostBuffers {
  private used = 0;

  constructor(private readonly limit = maxBufferedBytes) {}

  get bytes(): number {
    return this.used;
  }

  /** How much more may be taken now. */
  get free(): number {
    return Math.max(0, Math.min(this.limit, Math.max(shareBytes, maxTotalBytes - total)) - this.used);
  }

  /** Counts bytes that are there already, also beyond the bound. */
  add(bytes: number): void {
    this.used += bytes;
    total += bytes;
  }

  /** Counts bytes before they are kept. Throws `host_buffer_exceeded`. */
  take(bytes: number): void {
    if (bytes > this.free) throw new AppError('host_buffer_exceeded', { detail: `more than ${this.limit / mib} MiB` });
    this.add(bytes);
  }

  give(bytes: number): void {
    this.used -= bytes;
    total -= bytes;
  }
}
