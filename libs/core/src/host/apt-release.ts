/** A file that a `Release` vouches for. */
export interface ReleaseFile {
  /** Relative to the `Release`. */
  path: string;
  sizeBytes: number;
  sha256: string;
}

/**
 * The `Release` of a folder of packages, which says what its index files must be.
 * Source: https://wiki.debian.org/DebianRepository/Format#A.22Release.22_files
 */
export function renderRelease(name: string, files: readonly ReleaseFile[], date: Date): string {
  const sums = files.map(({ path, sizeBytes, sha256 }) => ` ${sha256} ${sizeBytes} ${path}`);
  const fields = [
    `Origin: Airdock`,
    `Label: airdock-${name}`,
    `Date: ${date.toUTCString().replace('GMT', 'UTC')}`,
    'SHA256:',
  ];
  return `${[...fields, ...sums].join('\n')}\n`;
}

/**
 * The text of a clear-signed file without its signature, https://www.rfc-editor.org/rfc/rfc9580#section-7; a text that
 * is not signed stays as it is.
 */
export function withoutSignature(text: string): string {
  const begin = '-----BEGIN PGP SIGNED MESSAGE-----';
  if (!text.startsWith(begin)) return text;
  const start = text.indexOf('\n\n');
  const end = text.indexOf('\n-----BEGIN PGP SIGNATURE-----');
  if (start < 0 || end < start) return text;
  const lines = text.slice(start + 2, end + 1).split('\n');
  return lines.map((line) => (line.startsWith('- ') ? line.slice(2) : line)).join('\n');
}
