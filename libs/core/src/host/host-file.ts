import { createTwoFilesPatch } from 'diff';

/** First line of every file that is Airdock's own, where the format has comments: who removes the file later knows it by this. */
export const ownHeader = '# Written by Airdock (configure-hosts). Changes made here are lost when it runs again.';

/** True for a file that Airdock has written as a whole. */
export const isOwn = (text: string | null): boolean => text?.startsWith('# Written by Airdock') ?? false;

const maxDiffLength = 20_000;

/**
 * What becomes of a file, as a unified diff; null stands for "not there". Credentials are masked, since diffs are kept with the results of a
 * configuration and lines around a change are shown too. At most 20 000 characters.
 */
export function fileDiff(path: string, before: string | null, after: string | null): string {
  const [from, to] = [before === null ? '/dev/null' : path, after === null ? '/dev/null' : path];
  const patch = createTwoFilesPatch(from, to, before ?? '', after ?? '', undefined, undefined, { context: 3 }).replace(/^=+\n/, '');
  const masked = maskSecrets(patch);
  return masked.length > maxDiffLength ? `${masked.slice(0, maxDiffLength)}\n… ${masked.length - maxDiffLength} more characters` : masked;
}

/** Hides passwords in URLs, and values of keys that sound like a secret. */
export function maskSecrets(text: string): string {
  return text
    .replace(/(\w:\/\/)[^\s/@"']+@/g, '$1***@')
    .replace(/((?:password|passwd|secret|token|auth|key_?data)["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',]+)/gi, '$1***');
}
