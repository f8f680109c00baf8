/** SHA-256 digests as people have them: as one word, or as a file that a tool has written. */
import { AppError } from './errors.js';

/** Of a file of checksums. */
export const maxChecksumLength = 65_536;

/**
 * Digits as they are, or in pairs as old versions of Windows' certutil and `openssl dgst -c` write them; base64 as in
 * an integrity field.
 */
const digestPattern =
  /(?<![0-9a-f][ :-]?)(?:[0-9a-f]{2}[ :-]){31}[0-9a-f]{2}(?![ :-]?[0-9a-f]{2}(?![0-9a-z]))|(?<![0-9a-z+/])[0-9a-z+/]{43}=(?![0-9a-z+/=])|(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])/gi;

const families =
  'sha|md|blake|b2|b3|keccak|ripemd|rmd|sm3|streebog|gost|skein|snefru|edon|kangaroo|tiger|whirlpool|crc|xxh';
/** Right before a digest. */
const labelPattern = new RegExp(
  `(?:^|[^\\w./-])((?:(?:hmac|rsa)[-_ ]?)?(?:${families})[-_/ ]?\\w{0,20}(?:[-_/ ](?:\\d{1,4}|sums?|hash|digest|checksum)){0,3})$`,
  'i',
);
/** In a line that stands above digests. */
const headingPattern = new RegExp(
  `(?<![\\w./\\\\])(?:[a-z]+s-)?((?:(?:hmac|rsa)[-_ ]?)?(?:${families})[-_/ ]?\\d\\w{0,20}(?:[-_/]\\d{1,4}){0,2})(?![\\w.])`,
  'gi',
);
/** As BSD and openssl write it: what stands before the parentheses is the algorithm, whatever it is. */
const taggedPattern = /^\s*\\?([\w/-]{1,40}(?: [\w/-]{1,40})?)\s*\((.*)\)\s*=\s*$/;
const isSha256 = (algorithm: string): boolean =>
  /^sha2?256(?:(?:check)?sums?|hash|digest)?$/i.test(algorithm.replaceAll(/[-_ ]/g, ''));

interface Found {
  digest: string;
  names: string[];
  /** As it stands there; SHA-256 where nothing does. */
  algorithm: string;
}

/**
 * The SHA-256 of a file in a text, as 64 lower-case hexadecimal digits: bare, with its algorithm before it, or in what
 * sha256sum, shasum, openssl, BSD's sha256, PowerShell's Get-FileHash and certutil write. Of several that of the file's
 * name; a single one whatever its name. Throws `request_invalid` where there is none, it is not clear which, or it is
 * of another algorithm, which may have as many digits.
 */
export function findSha256(text: string, fileName?: string): string {
  const found = checksumsIn(text);
  const named = found.filter(({ names }) => fileName !== undefined && names.includes(fileName));
  const meant = named.length > 0 ? named : found;
  const digests = new Set(meant.filter(({ algorithm }) => isSha256(algorithm)).map(({ digest }) => digest));
  const [digest] = digests;
  if (digest !== undefined && digests.size === 1) return digest;
  throw new AppError('request_invalid', {
    detail: `sha256: ${complaintOf(meant, digests.size, fileName ?? 'the file')}`,
  });
}

function complaintOf([first]: Found[], count: number, fileName: string): string {
  if (!first) return 'it has no SHA-256, which is 64 hex digits or sha256- with base64';
  if (count === 0)
    return `it has a checksum of ${first.algorithm}, and Airdock compares SHA-256 only: give that of sha256sum`;
  return `it has ${count} of them, and not one that is of ${fileName}`;
}

function checksumsIn(text: string): Found[] {
  const found: Found[] = [];
  let heading: { algorithm?: string | undefined; name?: string | undefined } = {};
  let isArmor = false;
  // UTF-16 of PowerShell, read as single bytes.
  for (const line of text
    .slice(0, maxChecksumLength)
    .replaceAll('\0', '')
    .split(/\r\n|[\r\n]/)) {
    // What a signature says of its own hash is not about the files.
    if (line.startsWith('-----BEGIN PGP SIGNATURE')) break;
    if (line.startsWith('-----BEGIN PGP')) isArmor = true;
    if (isArmor) {
      isArmor = line.trim() !== '';
      continue;
    }
    const matches = [...line.matchAll(digestPattern)];
    const path = /^Path\s*:(.*)/i.exec(line);
    if (path) found.at(-1)?.names.push(baseName(path[1]));
    else if (matches.length === 0) {
      const algorithms = [...line.matchAll(headingPattern)].map(([, name = '']) => name);
      const algorithm = algorithms.find(isSha256) ?? algorithms[0] ?? heading.algorithm;
      heading = { algorithm, name: /^\S{1,40} hash of (?:file )?(.*):\s*$/i.exec(line)?.[1] };
    }
    for (const [index, match] of matches.entries()) {
      const previous = matches[index - 1];
      const before = line.slice(previous ? previous.index + previous[0].length : 0, match.index);
      const after = line.slice(match.index + match[0].length, matches[index + 1]?.index);
      const isBase64 = match[0].endsWith('=');
      const one = describe(before, matches.length > 1 ? '' : after, after);
      // Any word of that length may look like base64.
      if (isBase64 && !one.algorithm) continue;
      const digest = isBase64 ? hexOf(match[0]) : match[0].replaceAll(/[ :-]/g, '').toLowerCase();
      const names = heading.name === undefined ? one.names : [...one.names, baseName(heading.name)];
      found.push({ digest, names, algorithm: one.algorithm ?? heading.algorithm ?? 'SHA-256' });
    }
  }
  return found;
}

/** What a line says of a digest: a file's name before it or behind it, and perhaps the algorithm. */
function describe(
  before: string,
  after: string,
  behindOnly: string,
): { algorithm?: string | undefined; names: string[] } {
  const tagged = taggedPattern.exec(before);
  if (tagged) return { algorithm: tagged[1], names: [baseName(tagged[2])] };
  const lead = before.replace(/[\s:="'-]{1,100}$/, '');
  const label = labelPattern.exec(lead.slice(-100))?.[1];
  const first = baseName(label === undefined ? lead : lead.slice(0, lead.length - label.length));
  const behind = first === '' ? behindOnly : after;
  // Behind the digest Debian has the size first.
  const names = [first, baseName(behind.replace(/^\s*\*?/, '')), baseName(behind.replace(/^\s*\d+\s+/, ''))];
  return { algorithm: label, names: names.filter((name) => name !== '') };
}

/** Without folders, and without what JSON and lists have around it. */
function baseName(text = ''): string {
  const isAround = (at: number) => ' \t"\',;:={}'.includes(text[at] ?? '?');
  let [start, end] = [0, text.length];
  while (start < end && isAround(start)) start += 1;
  while (end > start && isAround(end - 1)) end -= 1;
  return text.slice(start, end).split(/[\\/]/).at(-1) ?? '';
}

const hexOf = (base64: string): string =>
  Array.from(atob(base64), (character) => character.charCodeAt(0).toString(16).padStart(2, '0')).join('');
