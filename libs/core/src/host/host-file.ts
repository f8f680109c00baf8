import { createTwoFilesPatch } from 'diff';
import { cleanText } from './host-text.js';

/**
 * First line of every file that is Airdock's own, where the format has comments: who removes the file later knows it by
 * this.
 */
export const ownHeader = '# Written by Airdock (configure-hosts). Changes made here are lost when it runs again.';

/** True for a file that Airdock has written as a whole. */
export const isOwn = (text: string | null): boolean => text?.startsWith('# Written by Airdock') ?? false;

const maxDiffLength = 20_000;
/** The time of a diff grows with the length of the files times the lines that differ: a host decides on both. */
const diffBounds = { maxEditLength: 1_000, timeout: 200 };

/**
 * What becomes of a file, as a unified diff; null stands for "not there". Credentials are masked, since diffs are kept
 * with the results of a configuration and lines around a change are shown too. At most 20 000 characters; of files that
 * differ in too many lines only how long they are.
 */
export function fileDiff(path: string, before: string | null, after: string | null): string {
  const [from, to] = [before === null ? '/dev/null' : path, after === null ? '/dev/null' : path];
  const patch =
    createTwoFilesPatch(from, to, before ?? '', after ?? '', undefined, undefined, {
      context: 3,
      ...diffBounds,
    })?.replace(/^=+\n/, '') ??
    `--- ${from}\n+++ ${to}\nToo different to be shown: ${sizeOf(before)} become ${sizeOf(after)}\n`;
  const masked = cleanText(maskSecrets(patch), Number.POSITIVE_INFINITY);
  return masked.length > maxDiffLength
    ? `${masked.slice(0, maxDiffLength)}\n… ${masked.length - maxDiffLength} more characters`
    : masked;
}

const sizeOf = (text: string | null): string =>
  text === null ? 'no file' : `${text.length} characters in ${text.split('\n').length} lines`;

/** Hides passwords in URLs, and values of keys that sound like a secret. */
export function maskSecrets(text: string): string {
  return text
    .replace(/(\w:\/\/)[^\s/@"']+@/g, '$1***@')
    .replace(
      /((?:password|passwd|secret|token|auth|key_?data)["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',]+)/gi,
      '$1***',
    );
}
