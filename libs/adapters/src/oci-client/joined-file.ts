import { type FileHandle, readdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { identityOf, openRegularFile, readRegularFile, statRegularFile } from '../files/regular-file.js';

const maxParts = 10_000;
const maxHeaderBytes = 4096;

interface Part {
  path: string;
  handle: FileHandle;
  identity: string;
  /** Where it begins in the whole, bytes. */
  start: number;
  size: number;
}

/** A file, or the parts that one was split into for transport, read as one. The owner closes it. */
export class JoinedFile implements AsyncDisposable {
  private constructor(
    private readonly parts: readonly Part[],
    /** Bytes of all parts. */
    readonly size: number,
  ) {}

  /** Throws `bundle_unsafe` for a part that is no regular file of its folder. */
  static async open(paths: readonly string[]): Promise<JoinedFile> {
    const parts: Part[] = [];
    let start = 0;
    try {
      for (const path of paths) {
        const { handle, status } = await openRegularFile(path);
        parts.push({ path, handle, identity: identityOf(status), start, size: status.size });
        start += status.size;
      }
      return new JoinedFile(parts, start);
    } catch (error) {
      await Promise.all(parts.map(({ handle }) => handle.close()));
      throw error;
    }
  }

  /** As `FileHandle.read`: fewer bytes than asked for at the end of a part, none at the end of the file. */
  async read(buffer: Buffer, offset: number, length: number, position: number): Promise<{ bytesRead: number }> {
    const part = this.parts.find(({ start, size }) => position >= start && position < start + size);
    if (!part) return { bytesRead: 0 };
    return part.handle.read(buffer, offset, Math.min(length, part.start + part.size - position), position - part.start);
  }

  /** `size` bytes from `position` on. The file may be closed meanwhile; the caller destroys the stream. */
  stream(position: number, size: number): Readable {
    const pieces = this.parts
      .map((part) => ({ ...part, from: Math.max(position - part.start, 0), to: Math.min(position + size - part.start, part.size) }))
      .filter(({ from, to }) => from < to);
    return Readable.from(
      (async function* () {
        for (const { path, identity, from, to } of pieces) yield* readRegularFile(path, { identity, start: from, end: to });
      })(),
      { objectMode: false },
    );
  }

  /** The file that holds all of this range, and where; undefined when the range is spread over parts. */
  locate(position: number, size: number): { path: string; offset: number } | undefined {
    const part = this.parts.find(({ start, size: length }) => position >= start && position + size <= start + length);
    return part && { path: part.path, offset: position - part.start };
  }

  async close(): Promise<void> {
    await Promise.all(this.parts.map(({ handle }) => handle.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** `x.tar.part003`, `x.tar.003`, `x.tar.part-ab`, `x.tar.ab`: what `split` and Zarf write. `x.1` and `x.2` may well be two files. */
const partName = /^(.+\.part[-_.]?|.+\.(?=\d\d|[a-z]))(\d+|[a-z]{2,4})$/;

const isFirst = (suffix: string): boolean => /^(?:0*[01]|a+)$/.test(suffix);

const successor = (suffix: string): string => {
  if (/^\d/.test(suffix)) return String(Number(suffix) + 1).padStart(suffix.length, '0');
  let carried = '';
  let rest = suffix;
  while (rest.endsWith('z')) {
    rest = rest.slice(0, -1);
    carried += 'a';
  }
  return rest === '' ? '' : rest.slice(0, -1) + String.fromCharCode(rest.charCodeAt(rest.length - 1) + 1) + carried;
};

/**
 * All parts of the file that `path` is the first part of, in their order; `[path]` when it is no first part, or has no second one. The small first part
 * that Zarf writes, `{"sha256Sum", "bytes", "count"}`, is left out, and what it says is checked. Throws `bundle_truncated` naming what is missing.
 */
export async function findParts(path: string): Promise<string[]> {
  const [, stem, suffix] = partName.exec(basename(path)) ?? [];
  if (stem === undefined || suffix === undefined || !isFirst(suffix)) return [path];
  const folder = dirname(path);
  const siblings = new Set((await readdir(folder)).filter((name) => name.startsWith(stem) && partName.exec(name)?.[2]?.length === suffix.length));
  const parts = [basename(path)];
  siblings.delete(basename(path));
  for (let next = successor(suffix); siblings.delete(stem + next) && parts.length < maxParts; next = successor(next)) parts.push(stem + next);
  const kind = /^\d/.test(suffix) ? /^\d+$/ : /^[a-z]+$/;
  const stray = [...siblings].filter((name) => kind.test(name.slice(stem.length)));
  if (stray.length > 0) {
    const missing = `${stem}${successor(parts.at(-1)?.slice(stem.length) ?? suffix)}`;
    throw new AppError('bundle_truncated', { detail: `the part ${missing} is missing, while ${stray.sort()[0]} is there`, missing });
  }
  const paths = parts.map((name) => join(folder, name));
  return checkHeader(paths);
}

async function checkHeader(paths: string[]): Promise<string[]> {
  const [first = '', ...rest] = paths;
  const header = await readHeader(first);
  if (!header) return paths;
  const bytes = (await Promise.all(rest.map((path) => statRegularFile(path)))).reduce((sum, { size }) => sum + size, 0);
  if (rest.length !== header.count || bytes !== header.bytes)
    throw new AppError('bundle_truncated', {
      detail: `there are ${rest.length} parts with ${bytes} bytes, and should be ${header.count} with ${header.bytes}`,
    });
  return rest;
}

async function readHeader(path: string): Promise<{ count: number; bytes: number } | undefined> {
  if ((await statRegularFile(path)).size > maxHeaderBytes) return undefined;
  const chunks: Buffer[] = [];
  for await (const chunk of readRegularFile(path, { end: maxHeaderBytes })) chunks.push(chunk);
  try {
    const { count, bytes } = JSON.parse(Buffer.concat(chunks).toString('utf8')) as { count?: unknown; bytes?: unknown };
    return typeof count === 'number' && typeof bytes === 'number' ? { count, bytes } : undefined;
  } catch {
    // No header: a part of content.
    return undefined;
  }
}
