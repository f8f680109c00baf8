import { posix } from 'node:path';
import { AppError } from '@airdock/core/errors';
import type { JoinedFile } from './joined-file.js';
import {
  blockSize,
  isTarHeader,
  isZeroBlock,
  mergeOverrides,
  parsePax,
  parseTarHeader,
  type TarHeader,
  type TarOverrides,
  tarText,
  withOverrides,
} from './tar-header.js';

const maxMembers = 100_000;
const maxExtensionBytes = 1024 * 1024;
const maxNameLength = 4096;
const maxFolders = 100;
/** Of all names together, which are what an index has in memory: twice what 100,000 blobs need. */
const maxNamesLength = 20_000_000;
/** Headers of small members come from the disk together. */
const windowBytes = 64 * 1024;
const compareBytes = 1024 * 1024;

/** Where a member of a tar file lies. */
export interface TarMember {
  /** Where the content starts in the file, bytes. */
  offset: number;
  /** Bytes. */
  size: number;
}

/** Where the files of a tar lie. Nothing of it was unpacked. */
export interface TarIndex {
  /**
   * The content behind a name, however it is written (`./a//b`), through links. Undefined when there is no such file.
   */
  find(name: string): TarMember | undefined;
  /** Names of all files and links. */
  names(): string[];
  /** False when the archive ends without its end marker: it was cut exactly between two members. */
  complete: boolean;
}

const tooLarge = (detail: string) => new AppError('bundle_too_large', { detail });
const unsafe = (detail: string, member: string) =>
  new AppError('bundle_unsafe', { detail: `${detail}: ${JSON.stringify(member.slice(0, 200))}` });

const segmentsOf = (path: string): string[] => path.split('/').filter((segment) => segment !== '' && segment !== '.');

/**
 * `./a//b/` → `a/b`; the root itself is ''. Refuses what leaves the root, and characters that garble or hide themselves
 * in logs and terminals.
 */
function safeName(raw: string): string {
  if (raw.length > maxNameLength) throw unsafe('a member name is too long', raw);
  if (/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(raw)) throw unsafe('a member name has control characters', raw);
  if (raw.startsWith('/')) throw unsafe('a member has an absolute name', raw);
  const segments = segmentsOf(raw);
  if (segments.includes('..')) throw unsafe('a member name leaves the archive', raw);
  if (segments.length > maxFolders) throw unsafe('a member lies too deep', raw);
  return segments.join('/');
}

/**
 * Where a link leads, by its text alone; both kinds must stay inside. Docker up to 24 writes `<id>/layer.tar ->
 * ../<other>/layer.tar` for shared layers, so `..` is fine in a symlink as long as it stays below the root.
 */
function linkTarget(name: string, linkName: string, type: string): string {
  if (type === '1') return safeName(linkName);
  if (linkName === '' || linkName.startsWith('/') || linkName.length > maxNameLength)
    throw unsafe('a link leaves the archive', name);
  const target = posix.normalize(posix.join(posix.dirname(name), linkName));
  if (target === '..' || target.startsWith('../')) throw unsafe('a link leaves the archive', name);
  return safeName(target);
}

/** Reads exactly `length` bytes, or throws `bundle_truncated` with the number of bytes that are missing at least. */
type ReadExactly = (position: number, length: number) => Promise<Buffer>;

function windowed(file: JoinedFile, fileSize: number): ReadExactly {
  let window = Buffer.alloc(0);
  let start = 0;
  return async (position, length) => {
    if (position + length > fileSize) throw truncated(position + length - fileSize, fileSize);
    if (position < start || position + length > start + window.byteLength) {
      const buffer = Buffer.alloc(Math.min(Math.max(windowBytes, length), fileSize - position));
      let filled = 0;
      while (filled < length) {
        const { bytesRead } = await file.read(buffer, filled, buffer.byteLength - filled, position + filled);
        if (bytesRead === 0) throw truncated(length - filled, position + filled);
        filled += bytesRead;
      }
      window = buffer.subarray(0, filled);
      start = position;
    }
    return window.subarray(position - start, position - start + length);
  };
}

const truncated = (missingBytes: number, fileSize: number) =>
  new AppError('bundle_truncated', {
    detail: `at least ${missingBytes} bytes are missing after ${fileSize}`,
    missingBytes,
    sizeBytes: fileSize,
  });

/**
 * Lists the members of an uncompressed tar by seeking from header to header: the time depends on the number of members,
 * not on the size. The tar is hostile input: `bundle_unsafe` for names and links that leave the archive, devices,
 * sparse files, duplicates and whatever tar readers understand differently, `bundle_too_large` for more members or
 * longer names than fit into memory, `bundle_truncated` when a member ends beyond the file, `bundle_format_unknown`
 * when the file is no tar, `bundle_corrupt` for damaged headers. The file stays open and belongs to the caller.
 */
export async function indexTar(file: JoinedFile, signal?: AbortSignal): Promise<TarIndex> {
  const { size: fileSize } = file;
  const readExactly = windowed(file, fileSize);
  const files = new Map<string, TarMember>();
  const links = new Map<string, string>();
  let next: TarOverrides = {};
  let isExtended = false;
  let namesLength = 0;
  let complete = false;
  let members = 0;
  let position = 0;
  while (position < fileSize) {
    signal?.throwIfAborted();
    if (position === 0 && fileSize < blockSize) break;
    const block = await readExactly(position, blockSize);
    if (isZeroBlock(block) && position > 0) {
      complete = true;
      break;
    }
    if (!isTarHeader(block)) {
      if (position === 0) break;
      throw new AppError('bundle_corrupt', { detail: `the tar header at byte ${position} is damaged` });
    }
    if (++members > maxMembers) throw tooLarge(`more than ${maxMembers} members`);
    const header = parseTarHeader(block);
    let { size } = header;
    position += blockSize;
    if ('xgLK'.includes(header.type)) {
      if (size > maxExtensionBytes) throw tooLarge(`an extension header of ${size} bytes`);
      next = mergeOverrides(next, readExtension(header, await readExactly(position, size)));
      isExtended ||= header.type !== 'g';
    } else {
      const member = withOverrides(header, next);
      next = {};
      isExtended = false;
      namesLength += member.name.length + member.linkName.length;
      if (namesLength > maxNamesLength) throw tooLarge(`names of more than ${maxNamesLength} characters`);
      // Links and folders have no content, whatever their header says: so every tar reader understands it.
      size = member.type === '0' ? member.size : 0;
      if (position + size > fileSize) throw truncated(position + size - fileSize, fileSize);
      const before = addMember(member, position, files, links);
      if (before && !(await hasSameContent(file, before.offset, position, size, signal)))
        throw unsafe('two members have the same name', member.name);
    }
    position += Math.ceil(size / blockSize) * blockSize;
  }
  if (complete && isExtended) throw new AppError('bundle_corrupt', { detail: 'an extension header has no member' });
  if (members === 0)
    throw new AppError('bundle_format_unknown', {
      detail: fileSize === 0 ? 'the file is empty' : 'the file is not a tar archive',
    });
  return { complete, names: () => [...files.keys(), ...links.keys()], find: (name) => findMember(name, files, links) };
}

/** A loop of links finds nothing, like a link to nowhere. */
function findMember(
  name: string,
  files: ReadonlyMap<string, TarMember>,
  links: ReadonlyMap<string, string>,
): TarMember | undefined {
  let current = segmentsOf(name).join('/');
  for (let hops = 0; hops < 40; hops++) {
    const target = links.get(current);
    if (target === undefined) return files.get(current);
    current = target;
  }
  return undefined;
}

function readExtension(header: TarHeader, content: Buffer): TarOverrides {
  if (header.type === 'L') return { name: tarText(content) };
  if (header.type === 'K') return { linkName: tarText(content) };
  return parsePax(content, header.type === 'g' ? 'global' : 'next');
}

/**
 * Returns the earlier file of the same name and size, which is the same file if its bytes are too: tools write shared
 * layers twice. Which of two different ones counts differs between readers; that is a way to show one thing to a
 * scanner and another to us.
 */
function addMember(
  member: TarHeader,
  offset: number,
  files: Map<string, TarMember>,
  links: Map<string, string>,
): TarMember | undefined {
  const isFolder = member.type === '5' || (member.type === '0' && member.name.endsWith('/'));
  // The root, as some tools write it.
  if (isFolder && /^[./]+$/.test(member.name) && !member.name.includes('..')) return undefined;
  const name = safeName(member.name);
  if (isFolder) return undefined;
  if (!'012'.includes(member.type))
    throw unsafe(`a member of type ${JSON.stringify(member.type)} (device, sparse file or unknown)`, member.name);
  if (name === '') throw unsafe('a member has no name', member.name);
  const before = files.get(name);
  if (before?.size === member.size && member.type === '0') return before;
  const isSameLink =
    member.type !== '0' && links.has(name) && links.get(name) === linkTarget(name, member.linkName, member.type);
  if (isSameLink) return undefined;
  if (before || links.has(name)) throw unsafe('two members have the same name', member.name);
  // Unpacked, it would land where the link leads.
  for (let slash = name.indexOf('/'); slash > 0; slash = name.indexOf('/', slash + 1)) {
    const folder = name.slice(0, slash);
    if (links.has(folder) || files.has(folder)) throw unsafe('a member lies below a file or a link', member.name);
  }
  if (member.type === '0') files.set(name, { offset, size: member.size });
  else {
    const target = linkTarget(name, member.linkName, member.type);
    if (member.type === '1' && !files.has(target) && !links.has(target))
      throw unsafe('a hard link leads to no member before it', member.name);
    links.set(name, target);
  }
  return undefined;
}

async function hasSameContent(
  file: JoinedFile,
  first: number,
  second: number,
  size: number,
  signal?: AbortSignal,
): Promise<boolean> {
  const [one, other] = [Buffer.alloc(compareBytes), Buffer.alloc(compareBytes)];
  for (let at = 0; at < size; ) {
    signal?.throwIfAborted();
    const length = Math.min(compareBytes, size - at);
    const { bytesRead } = await file.read(one, 0, length, first + at);
    for (let filled = 0; filled < bytesRead; ) {
      const read = await file.read(other, filled, bytesRead - filled, second + at + filled);
      if (read.bytesRead === 0) return false;
      filled += read.bytesRead;
    }
    if (bytesRead === 0 || one.compare(other, 0, bytesRead, 0, bytesRead) !== 0) return false;
    at += bytesRead;
  }
  return true;
}
