/** SHA-256 digests as people have them: as one word, or as a file that a tool has written. */

/** Of a file of checksums. */
export const maxChecksumLength = 65_536;

const digestPattern = /(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])/gi;
/** As old versions of Windows' certutil write it. */
const spacedPattern = /^(?:[0-9a-f]{2} ){31}[0-9a-f]{2}$/i;

/**
 * The digest in a text, as 64 lower-case hexadecimal digits: bare, in capitals, with `sha256:` before it, or in what sha256sum, shasum, openssl, BSD's sha256, PowerShell's Get-FileHash and
 * certutil write. Of several that of the line with the name of the file. Undefined where there is none, or it is not clear which.
 */
export function findSha256(text: string, fileName?: string): string | undefined {
  // UTF-16 of PowerShell, read as single bytes.
  const lines = text
    .slice(0, maxChecksumLength)
    .replaceAll('\0', '')
    .split(/[\r\n]+/);
  const found = lines.flatMap((line) => {
    const digests = spacedPattern.test(line.trim()) ? [line.replaceAll(/\s/g, '')] : (line.match(digestPattern) ?? []);
    return digests.map((digest) => ({ digest: digest.toLowerCase(), line }));
  });
  const named = fileName ? found.filter(({ line }) => namesIn(line).includes(fileName)) : [];
  const digests = new Set((named.length > 0 ? named : found).map(({ digest }) => digest));
  return digests.size === 1 ? [...digests][0] : undefined;
}

/** What may be a file's name in a line of checksums: behind the digest, perhaps behind folders, or in parentheses. */
const namesIn = (line: string): string[] => {
  const [open, close] = [line.indexOf('('), line.lastIndexOf(')')];
  const behind = line.replace(/^\s*(?:SHA256\s+)?[0-9a-f]{64}\s+\*?/i, '');
  return [behind, ...(open >= 0 && close > open ? [line.slice(open + 1, close)] : [])].map((name) => name.trim().split(/[\\/]/).at(-1) ?? '');
};
