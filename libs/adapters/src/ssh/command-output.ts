import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { HostBuffers } from './host-buffers.js';

/** Of one output of a command. */
export const maxOutputBytes = 1024 * 1024;
const firstBytes = 4096;

/**
 * What a stream of a host says, up to a bound, in one piece of memory that grows: as a list of chunks a megabyte that comes byte by byte would take hundreds.
 * It is part of what is kept for the host until `release`.
 */
export class BoundedOutput {
  private kept = Buffer.alloc(0);
  private length = 0;

  constructor(
    private readonly buffers: HostBuffers,
    private readonly maxBytes = maxOutputBytes,
  ) {}

  /** Throws `host_output_exceeded`, `host_buffer_exceeded`; nothing of the chunk is kept then. */
  push(chunk: Uint8Array): void {
    const wanted = this.length + chunk.length;
    if (wanted > this.maxBytes) throw new AppError('host_output_exceeded', { detail: `more than ${this.maxBytes} bytes` });
    if (wanted > this.kept.length) {
      const size = Math.min(this.maxBytes, Math.max(firstBytes, wanted, 2 * this.kept.length));
      this.buffers.take(size - this.kept.length);
      const grown = Buffer.allocUnsafe(size);
      grown.set(this.kept.subarray(0, this.length));
      this.kept = grown;
    }
    this.kept.set(chunk, this.length);
    this.length = wanted;
  }

  text(): string {
    return this.kept.toString('utf8', 0, this.length);
  }

  release(): void {
    this.buffers.give(this.kept.length);
    this.kept = Buffer.alloc(0);
    this.length = 0;
  }

  /** Keeps what a stream says from now on. `onExcess` gets the error once; nothing more is read then. */
  read(stream: Readable, onChunk: () => void, onExcess: (error: unknown) => void): this {
    const onData = (chunk: Buffer) => {
      onChunk();
      try {
        this.push(chunk);
      } catch (error) {
        stream.off('data', onData).pause();
        onExcess(error);
      }
    };
    stream.on('data', onData);
    return this;
  }
}
