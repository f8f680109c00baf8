import { AppError } from '@airdock/core/errors';

/**
 * Reads single tar headers: ustar with the GNU and PAX extensions. Formats:
 * https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html and
 * https://www.gnu.org/software/tar/manual/html_node/Standard.html
 */
export const blockSize = 512;

/** The header of one member of a tar file. */
export interface TarHeader {
  name: string;
  /** Bytes of content that follow the header. */
  size: number;
  /** The type flag; NUL and `7` are reported as `0`. */
  type: string;
  linkName: string;
}

/** Fields that an extension header overrides for the next member. */
export interface TarOverrides {
  name?: string;
  linkName?: string;
  size?: number;
}

const unsafe = (detail: string) => new AppError('bundle_unsafe', { detail });

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * Text up to the first NUL. Anything but UTF-8 is refused: two readers could understand it differently. A byte order
 * mark stays.
 */
export function tarText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  try {
    return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end));
  } catch (cause) {
    throw new AppError('bundle_unsafe', { detail: 'a member name is not UTF-8' }, { cause });
  }
}

/** A number field: octal digits, or big-endian binary when the first bit is set (GNU, for files over 8 GiB). */
function tarNumber(field: Uint8Array): number {
  const [first = 0, ...rest] = field;
  if (first & 0x80) {
    if (first !== 0x80) throw unsafe('a member has a negative or absurd size');
    const value = rest.reduce((sum, byte) => sum * 256 + byte, 0);
    if (!Number.isSafeInteger(value)) throw unsafe('a member has an absurd size');
    return value;
  }
  const text = Buffer.from(field).toString('latin1').replace(/\0.*$/s, '').trim();
  if (!/^[0-7]*$/.test(text))
    throw new AppError('bundle_corrupt', { detail: 'a tar header has a number that is not octal' });
  return text === '' ? 0 : Number.parseInt(text, 8);
}

/** True for a block of zeros only, which ends an archive. */
export const isZeroBlock = (block: Uint8Array): boolean => block.every((byte) => byte === 0);

/** True when the block's checksum is right, which nothing but a tar header manages. */
export function isTarHeader(block: Uint8Array): boolean {
  if (block.byteLength < blockSize) return false;
  const stored = Buffer.from(block.subarray(148, 156)).toString('latin1').replace(/\0.*$/s, '').trim();
  if (!/^[0-7]+$/.test(stored)) return false;
  let sum = 8 * 0x20;
  for (let i = 0; i < blockSize; i++) if (i < 148 || i >= 156) sum += block[i] ?? 0;
  return sum === Number.parseInt(stored, 8);
}

/** Reads a block for which `isTarHeader` holds. Throws `bundle_unsafe` and `bundle_corrupt`. */
export function parseTarHeader(block: Uint8Array): TarHeader {
  const flag = String.fromCharCode(block[156] ?? 0);
  const name = tarText(block.subarray(0, 100));
  // GNU tar keeps other things where ustar has the prefix; its magic is "ustar " with a space.
  const isUstar = Buffer.from(block.subarray(257, 263)).toString('latin1') === 'ustar\0';
  const prefix = isUstar ? tarText(block.subarray(345, 500)) : '';
  return {
    name: prefix ? `${prefix}/${name}` : name,
    size: tarNumber(block.subarray(124, 136)),
    type: flag === '\0' || flag === '7' ? '0' : flag,
    linkName: tarText(block.subarray(157, 257)),
  };
}

/**
 * Adds what an extension header says of the next member. Readers differ in which of two headers they believe, so they
 * may not disagree.
 */
export function mergeOverrides(known: TarOverrides, more: TarOverrides): TarOverrides {
  for (const key of ['name', 'linkName', 'size'] as const) {
    if (known[key] !== undefined && more[key] !== undefined && known[key] !== more[key])
      throw unsafe(`two extension headers disagree about the ${key} of a member`);
  }
  return { ...known, ...more };
}

/** The largest size in octal digits; what is larger has its true size in a PAX header, and anything in this field. */
const maxOctalSize = 0o77777777777;

/**
 * A member as its extension headers correct it. A small size cannot be corrected: a reader without PAX would find other
 * members than we do.
 */
export function withOverrides(header: TarHeader, overrides: TarOverrides): TarHeader {
  if (
    overrides.size !== undefined &&
    overrides.size < maxOctalSize &&
    header.size !== 0 &&
    header.size !== overrides.size
  )
    throw unsafe(`a member has ${header.size} bytes, and ${overrides.size} by its PAX header`);
  return { ...header, ...overrides };
}

/**
 * The records of a PAX extended header, `<length> <key>=<value>\n`, as far as they concern us. A global header may not
 * rename or resize members: no image tool writes that, and it would hold for every member that follows.
 */
export function parsePax(bytes: Uint8Array, scope: 'next' | 'global'): TarOverrides {
  let overrides: TarOverrides = {};
  let at = 0;
  while (at < bytes.byteLength) {
    const space = bytes.indexOf(0x20, at);
    const digits = space < 0 ? '' : Buffer.from(bytes.subarray(at, space)).toString('latin1');
    const length = Number(digits);
    if (
      !/^\d{1,10}$/.test(digits) ||
      length < space - at + 3 ||
      at + length > bytes.byteLength ||
      bytes[at + length - 1] !== 0x0a
    ) {
      throw new AppError('bundle_corrupt', { detail: 'a PAX header is not well-formed' });
    }
    const record = bytes.subarray(space + 1, at + length - 1);
    at += length;
    const equals = record.indexOf(0x3d);
    const key = Buffer.from(record.subarray(0, Math.max(equals, 0))).toString('latin1');
    if (key.startsWith('GNU.sparse')) throw unsafe('a member is sparse');
    if (key !== 'path' && key !== 'linkpath' && key !== 'size') continue;
    if (scope === 'global') throw unsafe(`a global PAX header sets ${key}`);
    const value = record.subarray(equals + 1);
    if (value.includes(0)) throw unsafe('a PAX header has a NUL in a value');
    const text = tarText(value);
    if (key === 'size' && !/^\d{1,15}$/.test(text)) throw unsafe('a member has an absurd size');
    overrides = mergeOverrides(
      overrides,
      key === 'path' ? { name: text } : key === 'linkpath' ? { linkName: text } : { size: Number(text) },
    );
  }
  return overrides;
}
