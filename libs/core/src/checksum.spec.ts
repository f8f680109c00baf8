import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { findSha256 } from './checksum.js';

const digest = 'ab'.repeat(32);
const other = 'cd'.repeat(32);
const base64 = (hex: string) => Buffer.from(hex, 'hex').toString('base64');
const spaced = digest.match(/../g)?.join(' ');

describe('findSha256', () => {
  it.each([
    ['as it is', digest],
    ['in capitals', digest.toUpperCase()],
    ['with its algorithm', `sha256:${digest}`],
    ['with its algorithm, in capitals', `SHA256:${digest.toUpperCase()}`],
    ['of an integrity field by hand', `sha256-${digest}`],
    ['of sha256sum', `${digest}  bundle.tar\n`],
    ['of sha256sum -b, from Windows', `${digest.toUpperCase()} *bundle.tar\r\n`],
    ['of BSD', `SHA256 (bundle.tar) = ${digest}\n`],
    ['of openssl', `SHA2-256(bundle.tar)= ${digest}\n`],
    [
      'of Get-FileHash',
      `\r\nAlgorithm       Hash                                                                   Path\r\n---------       ----\r\nSHA256          ${digest.toUpperCase()}       C:\\x\\bundle.tar\r\n\r\n`,
    ],
    [
      'of Get-FileHash | Format-List',
      `Algorithm : SHA256\r\nHash      : ${digest.toUpperCase()}\r\nPath      : C:\\x\\bundle.tar\r\n`,
    ],
    ['of a file in UTF-16', Buffer.from(`\uFEFF${digest.toUpperCase()}\r\n`, 'utf16le').toString('latin1')],
    [
      'of certutil',
      `SHA256 hash of bundle.tar:\r\n${digest}\r\nCertUtil: -hashfile command completed successfully.\r\n`,
    ],
    ['of an old certutil', `SHA256 hash of file bundle.tar:\r\n${spaced}\r\n`],
    ['with blanks around', `  ${digest} \n`],
    ['one of several files', `${other}  other.tar\n${digest}  bundle.tar\n`],
    ['one of several files in folders', `${other} *out\\other.tar\r\n${digest} *out\\bundle.tar\r\n`],
    ['one of several parts, of sha256sum ./*', `${digest}  ./bundle.tar\n${other}  ./bundle.tar1\n`],
    ['one of several parts in folders of Windows', `${other} *out\\bundle.tar0\r\n${digest} *out\\bundle.tar\r\n`],
    ['one of several, with a name in parentheses', `${digest}  (out)/bundle.tar\n${other}  (out)/bundle.tarx\n`],
    ['the same twice', `${digest}  a\n${digest}  b\n`],
    ['one of several files, the name first', `other.tar: ${other}\nbundle.tar: ${digest}\n`],
    [
      'one of several files, the name first and the algorithm too',
      `other.tar sha256:${other}\nbundle.tar sha256:${digest}\n`,
    ],
    ['one of several files, with one blank and a star', `${other} *other.tar\n${digest} *bundle.tar\n`],
    ['one of several files, with the algorithm', `sha256:${other}  other.tar\nsha256:${digest}  out/bundle.tar\n`],
    ['one of several files in base64', `sha256-${base64(other)} other.tar\nsha256-${base64(digest)} bundle.tar\n`],
    [
      'one of several files of cksum --base64',
      `SHA256 (other.tar) = ${base64(other)}\nSHA256 (bundle.tar) = ${base64(digest)}\n`,
    ],
    ['one of several files in JSON', `{"other.tar":"sha256:${other}","bundle.tar":"sha256:${digest}"}`],
    [
      'one of several files of Get-FileHash | Format-List',
      `Hash : ${other}\r\nPath : C:\\other.tar\r\n\r\nHash : ${digest}\r\nPath : C:\\bundle.tar\r\n`,
    ],
    [
      'one of several files of certutil',
      `SHA256 hash of other.tar:\r\n${other}\r\nSHA256 hash of bundle.tar:\r\n${digest}\r\n`,
    ],
    ["one of several files in Debian's lists", `Checksums-Sha256:\n ${other} 5 other.tar\n ${digest} 123 bundle.tar\n`],
    ['below the name of a program', `# sha256sum of everything\n${digest}  bundle.tar\n`],
    ['behind the name of a program', `sha256sum: ${digest}`],
    ['of a property', `sha256_checksum=${digest}`],
    ['of a field in JSON', `{"file": "bundle.tar", "sha256-digest": "${digest}"}`],
    ['in base64', `sha256-${base64(digest)}`],
    ['of openssl -c', `SHA2-256(bundle.tar)= ${digest.match(/../g)?.join(':')}\n`],
    ['one of several algorithms', `SHA3-256 (bundle.tar) = ${other}\nSHA256 (bundle.tar) = ${digest}\n`],
    [
      'of a list that is signed with another hash',
      `-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n${digest}  bundle.tar\n-----BEGIN PGP SIGNATURE-----\n\nSHA3-256\n`,
    ],
    ['of a folder that is named as an algorithm', `${digest}  sha3-256/bundle.tar\n`],
  ])('%s', (_what, text) => expect(findSha256(text, 'bundle.tar')).toBe(digest));

  it.each([
    ['nothing', ''],
    ['too short', 'ab'.repeat(31)],
    ['too long', 'ab'.repeat(33)],
    ['SHA-512', 'ab'.repeat(64)],
    ['MD5', 'ab'.repeat(16)],
    ['several of other files', `${other}  other.tar\n${digest}  another.tar\n`],
    ['a name that only ends alike', `${other}  my-bundle.tar\n${digest}  your-bundle.tar\n`],
    ['no digits', 'x'.repeat(64)],
    ['base64 of another length', `sha256-${'A'.repeat(40)}=`],
    ['a word that looks like base64', base64(digest)],
  ])('none in %s', (_what, text) =>
    expect(() => findSha256(text, 'bundle.tar')).toThrow(expect.objectContaining({ code: 'request_invalid' })),
  );

  it.each([
    ['SHA3-256', `SHA3-256 (bundle.tar) = ${digest}`],
    ['sha3-256', `sha3-256:${digest}`],
    ['SHA3-256', `SHA3-256  ${digest}  bundle.tar`],
    ['SHA3-256', `bundle.tar: SHA3-256: ${digest}`],
    ['SHA3 256', `SHA3 256: ${digest}`],
    ['SHA3-256', `SHA256 (other.tar) = ${other}\nSHA3-256 (bundle.tar) = ${digest}`],
    ['SHA3-256', `# SHA3-256\n${digest}  bundle.tar`],
    ['sha3-256', `sha3-256-${base64(digest)}`],
    ['sha3-256-hash', `sha3-256-hash: ${digest}`],
    ['sha3_256sum', `sha3_256sum=${digest}`],
    ['SHA512/256', `SHA512/256 (bundle.tar) = ${digest}`],
    ['SHA2-512/256', `SHA2-512/256(bundle.tar)= ${digest}`],
    ['sha512-256', `sha512-256=${digest}`],
    ['BLAKE2s', `BLAKE2s (bundle.tar) = ${digest}`],
    ['blake2s256', `blake2s256:${digest}`],
    ['BLAKE2b-256', `BLAKE2b-256 (bundle.tar) = ${digest}`],
    ['blake3', `blake3:${digest}`],
    ['SM3', `SM3 (bundle.tar) = ${digest}`],
    ['HMAC-SHA256', `HMAC-SHA256(bundle.tar)= ${digest}`],
    ['GOST12-256', `Algorithm : GOST12-256\r\nHash : ${digest}\r\n`],
    ['SHA3-256', `SHA3-256 hash of bundle.tar:\r\n${digest}\r\n`],
    ['Something-New', `Something-New (bundle.tar) = ${digest}`],
  ])('refuses %s by its name: %#', (algorithm, text) =>
    expect(() => findSha256(text, 'bundle.tar')).toThrow(
      expect.objectContaining({
        code: 'request_invalid',
        details: { detail: expect.stringContaining(`checksum of ${algorithm},`) },
      }),
    ),
  );

  it('needs little for a long text', () => {
    const started = process.cpuUsage();
    for (const text of [
      'a'.repeat(1e6),
      'ab '.repeat(3e5),
      '('.repeat(5e5),
      `${'a'.repeat(63)} `.repeat(1e4),
      'sha '.repeat(2e4),
      'sha-1'.repeat(2e4),
      'x hash of '.repeat(7e3),
      '-----BEGIN PGP\n'.repeat(5e3),
      'x (a)'.repeat(2e4),
    ])
      for (const tail of ['', ` = ${digest}`])
        try {
          findSha256(text.slice(0, 65_000) + tail, 'x');
        } catch {
          // Only its time counts.
        }
    // Quadratic it would be minutes.
    expect(process.cpuUsage(started).user / 1e6).toBeLessThan(5);
  });
});

describe('findSha256, whatever the digest and the name', () => {
  const digests = fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes).toString('hex'));
  const names = fc.stringMatching(/^[a-z][a-z0-9-]{0,10}\.tar$/);
  const writers: [string, (hex: string, name: string) => string][] = [
    ['sha256sum', (hex, name) => `${hex}  ${name}\n`],
    ['sha256sum -b', (hex, name) => `${hex} *${name}\n`],
    ['BSD', (hex, name) => `SHA256 (${name}) = ${hex}\n`],
    ['openssl', (hex, name) => `SHA2-256(${name})= ${hex}\n`],
    ['certutil', (hex, name) => `SHA256 hash of ${name}:\r\n${hex}\r\n`],
    ['Get-FileHash', (hex, name) => `Algorithm : SHA256\r\nHash : ${hex.toUpperCase()}\r\nPath : C:\\x\\${name}\r\n`],
    ['Debian', (hex, name) => ` ${hex} 123 ${name}\n`],
    ['a folder before the name', (hex, name) => `${hex}  ./out/${name}\n`],
  ];

  it.each(writers)('finds the one of the file in what %s wrote of several', (_, write) => {
    const files = fc.uniqueArray(fc.tuple(names, digests), { selector: ([name]) => name, minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(files, fc.nat(), (all, pick) => {
        const text = all.map(([name, hex]) => write(hex, name)).join('');
        const [name, hex] = all[pick % all.length] as [string, string];
        expect(findSha256(text, name)).toBe(hex);
      }),
    );
  });

  it('reads a digest alone in hex and in base64', () => {
    fc.assert(
      fc.property(digests, (hex) => {
        expect(findSha256(hex)).toBe(hex);
        expect(findSha256(`sha256-${base64(hex)}`)).toBe(hex);
        expect(findSha256(hex.replace(/..(?=.)/g, '$& '))).toBe(hex);
      }),
    );
  });

  it('takes none of several where it is not said whose they are', () => {
    fc.assert(
      fc.property(fc.uniqueArray(digests, { minLength: 2, maxLength: 4 }), (all) => {
        expect(() => findSha256(all.join('\n'), 'bundle.tar')).toThrow(`it has ${all.length} of them`);
      }),
    );
  });
});
