import { type FileHandle, readdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { identityOf, openRegularFile, readRegularFile, statRegularFile } from '@airdock/disk/files/regular-file';

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
      .map((part) => ({
        ...part,
        from: Math.max(position - part.start, 0),
        to: Math.min(position + size - part.start, part.size),
      }))
      .filter(({ from, to }) => from < to);
    return Readable.from(
      (async function* () {
        for (const { path, identity, from, to } of pieces)
          yield* readRegularFile(path, { identity, start: from, end: to });
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

interface PartName {
  head: string;
  /** Digits or letters. */
  suffix: string;
  /** What some write behind the number: `.tar`. */
  tail: string;
}

const archiveName = String.raw`.+\.(?:tar|tgz|tzst|txz|gz|zst|xz|zip|7z|oci)`;
/**
 * Names of parts, the surest first: `x.part01`, `x.part1.tar`; `x.tar.003`, `x.tar.ab`, `x.tar_aa`, `x.tar00`; `x.003`
 * and `x.ab`; `xaa`, which is split's own choice. `x.1` and `x.2` may well be two files.
 */
const partNames = [
  /^(.+[._-]part[-_.]?)(\d{1,6}|[a-z]{2,6})((?:\.[a-z\d]{1,5}){0,2})$/i,
  new RegExp(String.raw`^(${archiveName}[._-]?)(\d{2,6}|[a-z]{2,6}|[\da-f]{2,6})()$`, 'i'),
  /^(.+\.)(\d{2,6}|[a-z]{2,4})()$/,
  /^(x)(\d{2,6}|[a-z]{2,6}|[\da-f]{2,6})()$/,
];

function partNameOf(name: string): PartName | undefined {
  for (const pattern of partNames) {
    const [, head, suffix, tail] = pattern.exec(name) ?? [];
    if (head !== undefined && suffix !== undefined && tail !== undefined) return { head, suffix, tail };
  }
  return undefined;
}

const isFirst = (suffix: string): boolean => /^(?:0*[01]|a+)$/i.test(suffix);

/** The next one in the order of its characters; undefined after the last of this length. */
function increment(suffix: string, alphabet: string): string | undefined {
  const last = alphabet.indexOf(suffix.at(-1) ?? '');
  const before = suffix.slice(0, -1);
  if (last < alphabet.length - 1) return before + alphabet[last + 1];
  const carried = before === '' ? undefined : increment(before, alphabet);
  return carried === undefined ? undefined : carried + alphabet[0];
}

/**
 * Letters behind a file's name that say what another file beside it is; as the name of a part they count only where it
 * follows the one before.
 */
const otherFiles = new Set(
  'gz xz bz lz zst tar tgz asc sig pem crt cer sum sha txt log lst doc bak old orig json yaml yml xml list sign sbom spdx info'.split(
    ' ',
  ),
);

const letters = 'abcdefghijklmnopqrstuvwxyz';

const digits = '0123456789';
const hexDigits = `${digits}abcdef`;

/** The characters that the parts are numbered with. One part with digits and letters, `0a`, makes all hexadecimal. */
function alphabetOf(first: string, suffixes: Iterable<string>): string {
  const isHex = (suffix: string) => /^[\da-f]+$/.test(suffix) && /\d/.test(suffix) && /[a-f]/.test(suffix);
  if (/^\d/.test(first)) return [...suffixes].some(isHex) ? hexDigits : digits;
  return /[A-Z]/.test(first) ? letters.toUpperCase() : letters;
}

/**
 * What may follow a suffix, the likeliest first: the next of the same length; the next number without zeros in front;
 * and what GNU split writes when the length is used up: 89 is followed by 9000, yz by zaaa. Source:
 * https://www.gnu.org/software/coreutils/manual/html_node/split-invocation.html
 */
function successors(suffix: string, alphabet: string): string[] {
  const found = [increment(suffix, alphabet)];
  if (alphabet === digits) found.push(String(Number(suffix) + 1));
  const [zero = '', top = ''] = [alphabet[0], alphabet.at(-1)];
  const filled = (suffix.length - 2) / 2;
  if (Number.isInteger(filled) && suffix === top.repeat(filled) + alphabet.at(-2) + top.repeat(filled + 1))
    found.push(top.repeat(filled + 1) + zero.repeat(filled + 3));
  return found.filter((next) => next !== undefined);
}

/**
 * All parts of the file that `path` is a part of, in their order; `[path]` when it is none, or has no other. The small
 * first part that Zarf writes, `{"sha256Sum", "bytes", "count"}`, is left out, and what it says is checked. Throws
 * `bundle_truncated` naming what is missing.
 */
export async function findParts(path: string): Promise<string[]> {
  const name = partNameOf(basename(path));
  if (!name) return [path];
  const folder = dirname(path);
  const suffixes = new Set<string>();
  for (const sibling of await readdir(folder)) {
    const other = partNameOf(sibling);
    if (other && other.head === name.head && other.tail === name.tail) suffixes.add(other.suffix);
  }
  const given = isFirst(name.suffix) ? name.suffix : undefined;
  // Where tools count from 0, the second part has the name that others give to the first one.
  const before = given?.replace(/1$/, '0');
  const first =
    before !== undefined && suffixes.has(before)
      ? before
      : (given ?? [...suffixes].filter((suffix) => isFirst(suffix) && isAlike(suffix, name.suffix)).sort()[0]);
  if (first === undefined) return [path];
  const alphabet = alphabetOf(first, suffixes);
  const parts = [first];
  suffixes.delete(first);
  let last = first;
  while (parts.length < maxParts) {
    const next = successors(last, alphabet).find((candidate) => suffixes.delete(candidate));
    if (next === undefined) break;
    parts.push(next);
    last = next;
  }
  const isUnpadded = /^[01]$/.test(first);
  const [stray] = [...suffixes]
    .filter(
      (suffix) =>
        !otherFiles.has(suffix.toLowerCase()) &&
        isAlike(suffix, first) &&
        (isUnpadded ? Number(suffix) > Number(last) : suffix.length === last.length),
    )
    .sort((one, other) => one.length - other.length || (one < other ? -1 : 1));
  const nameOf = (suffix: string) => `${name.head}${suffix}${name.tail}`;
  if (stray !== undefined) {
    const missing = nameOf(successors(last, alphabet)[0] ?? last);
    throw new AppError('bundle_truncated', {
      detail: `the part ${missing} is missing, while ${nameOf(stray)} is there`,
      missing,
    });
  }
  // A file that only looks like one of them.
  if (!parts.includes(name.suffix)) return [path];
  return checkHeader(parts.map((suffix) => join(folder, nameOf(suffix))));
}

/** Numbered in the same way. */
const isAlike = (one: string, other: string): boolean =>
  [/^\d+$/, /^[a-z]+$/, /^[A-Z]+$/, /^[\da-f]+$/].some((kind) => kind.test(one) && kind.test(other));

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
