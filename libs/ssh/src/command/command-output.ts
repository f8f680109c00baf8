import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import type { HostBuffers } from './host-buffers.js';
import { beginOf, endOf, markBytes } from './shell-line.js';

/** Of one output of a command. */
export const maxOutputBytes = 1024 * 1024;
const firstBytes = 4096;
/** Of what a login prints around a command: read at the most, and kept to be named. */
const maxNoiseBytes = 1024 * 1024;
const keptNoiseBytes = 300;
/** An exit code and the end of its line. */
const maxCodeBytes = 4;

/**
 * What a stream of a host says, up to a bound, in one piece of memory that grows: as a list of chunks a megabyte that
 * comes byte by byte would take hundreds. It is part of what is kept for the host until `release`.
 */
export class BoundedOutput {
  private kept = Buffer.alloc(0);
  private length = 0;

  constructor(
    private readonly buffers: HostBuffers,
    private readonly maxBytes = maxOutputBytes,
    /** Bytes beyond the bound that are not the program's. */
    private readonly spareBytes = 0,
  ) {}

  get size(): number {
    return this.length;
  }

  /** Throws `host_output_exceeded`, `host_buffer_exceeded`; nothing of the chunk is kept then. */
  push(chunk: Uint8Array): void {
    const wanted = this.length + chunk.length;
    const most = this.maxBytes + this.spareBytes;
    if (wanted > most) throw new AppError('host_output_exceeded', { detail: `more than ${this.maxBytes} bytes` });
    if (wanted > this.kept.length) {
      const size = Math.min(most, Math.max(firstBytes, wanted, 2 * this.kept.length));
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

  /** Where a text begins, from a place on; -1 where it does not. */
  indexOf(text: string, from: number): number {
    return this.kept.subarray(0, this.length).indexOf(text, Math.max(0, from));
  }

  /** Keeps what is before a place, and gives what is after it. */
  cut(at: number): Buffer {
    const rest = Buffer.from(this.kept.subarray(at, this.length));
    this.length = at;
    return rest;
  }

  release(): void {
    this.buffers.give(this.kept.length);
    this.kept = Buffer.alloc(0);
    this.length = 0;
  }
}

/**
 * What a program prints between its marks, see `shellLine`. What is outside of them is noise: counted, and the begin of
 * it kept.
 */
export class MarkedOutput {
  private readonly own: BoundedOutput;
  private readonly begin: string;
  private readonly end: string;
  private before = Buffer.alloc(0);
  private noiseBytes = 0;
  private noiseText = Buffer.alloc(0);
  private endAt = -1;
  /** The program runs, or has run. */
  hasBegun = false;
  /** Of the program, by the mark after its output. */
  exitCode: number | undefined;

  constructor(buffers: HostBuffers, mark: string) {
    this.own = new BoundedOutput(buffers, maxOutputBytes, markBytes);
    this.begin = beginOf(mark);
    this.end = endOf(mark);
  }

  /** The begin of what was printed around the program; not cleaned. */
  get noise(): string {
    return Buffer.concat([this.noiseText, this.hasBegun ? Buffer.alloc(0) : this.before]).toString('utf8');
  }

  get size(): number {
    return this.own.size;
  }

  text(): string {
    return this.own.text();
  }

  release(): void {
    this.own.release();
  }

  /** Throws `host_output_exceeded`, `host_buffer_exceeded`. */
  push(chunk: Uint8Array): void {
    if (this.exitCode !== undefined) return this.note(chunk);
    if (this.hasBegun) return this.pushOwn(chunk);
    // A mark may come in pieces.
    const seen = Buffer.concat([this.before, chunk]);
    const at = seen.indexOf(this.begin);
    this.hasBegun = at >= 0;
    const noise = this.hasBegun ? at : Math.max(0, seen.length - this.begin.length + 1);
    this.note(seen.subarray(0, noise));
    this.before = Buffer.from(this.hasBegun ? '' : seen.subarray(noise));
    if (this.hasBegun) this.pushOwn(seen.subarray(at + this.begin.length));
  }

  private pushOwn(chunk: Uint8Array): void {
    const from = this.own.size - this.end.length;
    this.own.push(chunk);
    if (this.endAt < 0) this.endAt = this.own.indexOf(this.end, from);
    if (this.endAt < 0) return;
    const wanted = this.endAt + this.end.length + maxCodeBytes;
    const lineEnd = this.own.indexOf('\n', this.endAt);
    if (lineEnd < 0 && this.own.size < wanted) return;
    const line = this.own.cut(this.endAt);
    const [said = '', code] =
      /^[^]*?e(\d{1,3})\n/.exec(line.toString('latin1', 0, this.end.length + maxCodeBytes)) ?? [];
    this.exitCode = code === undefined ? 255 : Number(code) & 255;
    this.note(line.subarray(said.length));
  }

  private note(noise: Uint8Array): void {
    this.noiseBytes += noise.length;
    if (this.noiseBytes > maxNoiseBytes)
      throw new AppError('host_output_exceeded', {
        detail: `more than ${maxNoiseBytes} bytes that no program of ours prints; does the login shell print them?`,
      });
    if (this.noiseText.length < keptNoiseBytes)
      this.noiseText = Buffer.concat([this.noiseText, noise.subarray(0, keptNoiseBytes - this.noiseText.length)]);
  }
}

/** What is between marks in a text, and what is outside; undefined where no mark is. */
export function betweenMarks(text: string, mark: string): { text: string; noise: string } | undefined {
  const begin = text.indexOf(beginOf(mark));
  if (begin < 0) return undefined;
  const from = begin + beginOf(mark).length;
  const found = text.indexOf(endOf(mark), from);
  const end = found < 0 ? text.length : found;
  const lineEnd = text.indexOf('\n', end);
  return { text: text.slice(from, end), noise: text.slice(0, begin) + (lineEnd < 0 ? '' : text.slice(lineEnd + 1)) };
}

/** Gives what a stream says to `output` from now on. `onExcess` gets its error once; nothing more is read then. */
export function readInto<T extends { push(chunk: Uint8Array): void }>(
  output: T,
  stream: Readable,
  onChunk: () => void,
  onExcess: (error: unknown) => void,
): T {
  const onData = (chunk: Buffer) => {
    try {
      output.push(chunk);
    } catch (error) {
      stream.off('data', onData).pause();
      return onExcess(error);
    }
    onChunk();
  };
  stream.on('data', onData);
  return output;
}
