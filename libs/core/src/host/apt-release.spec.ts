import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { renderRelease, withoutSignature } from './apt-release.js';

const at = new Date('2026-11-30T01:02:03.456Z');
const sha256 = 'ab'.repeat(32);

describe('renderRelease', () => {
  it('writes the fields that apt reads, with the sum, size and path of each file', () =>
    expect(
      renderRelease(
        'docker',
        [
          { path: 'Packages', sizeBytes: 12, sha256 },
          { path: 'Packages.gz', sizeBytes: 7, sha256 },
        ],
        at,
      ),
    ).toBe(
      `Origin: Airdock\nLabel: airdock-docker\nDate: Mon, 30 Nov 2026 01:02:03 UTC\nSHA256:\n ${sha256} 12 Packages\n ${sha256} 7 Packages.gz\n`,
    ));

  it('vouches for nothing where there are no files', () =>
    expect(renderRelease('docker', [], at)).toMatch(/\nSHA256:\n$/));
});

describe('withoutSignature', () => {
  /** As gpg --clear-sign writes it: a line that begins with a dash gets another one before it. */
  const sign = (text: string, hash = 'Hash: SHA512\n') =>
    `-----BEGIN PGP SIGNED MESSAGE-----\n${hash}\n${text.replace(/^-/gm, '- -')}\n-----BEGIN PGP SIGNATURE-----\n\niQ==\n-----END PGP SIGNATURE-----\n`;

  it('gives any text back that was signed', () => {
    const line = fc.stringMatching(/^[ -~]{0,30}$/);
    const texts = fc.array(line, { minLength: 1, maxLength: 8 }).map((lines) => lines.join('\n'));
    fc.assert(
      fc.property(texts, (text) => {
        expect(withoutSignature(sign(text))).toBe(`${text}\n`);
        expect(withoutSignature(sign(text, ''))).toBe(`${text}\n`);
      }),
    );
  });

  it.each([
    ['is not signed', 'Origin: x\n\n-----BEGIN PGP SIGNATURE-----\n'],
    ['begins in another way', `\n${sign('Origin: x')}`],
    ['has no end of its header', '-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n-----BEGIN PGP SIGNATURE-----\n'],
    ['has no signature', '-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: x\n'],
  ])('leaves a text as it is that %s', (_, text) => expect(withoutSignature(text)).toBe(text));
});
