import { describe, expect, it } from 'vitest';
import { findSha256 } from './checksum.js';

const digest = 'ab'.repeat(32);
const other = 'cd'.repeat(32);
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
    ['of Get-FileHash | Format-List', `Algorithm : SHA256\r\nHash      : ${digest.toUpperCase()}\r\nPath      : C:\\x\\bundle.tar\r\n`],
    ['of a file in UTF-16', Buffer.from(`\uFEFF${digest.toUpperCase()}\r\n`, 'utf16le').toString('latin1')],
    ['of certutil', `SHA256 hash of bundle.tar:\r\n${digest}\r\nCertUtil: -hashfile command completed successfully.\r\n`],
    ['of an old certutil', `SHA256 hash of file bundle.tar:\r\n${spaced}\r\n`],
    ['with blanks around', `  ${digest} \n`],
    ['one of several files', `${other}  other.tar\n${digest}  bundle.tar\n`],
    ['one of several files in folders', `${other} *out\\other.tar\r\n${digest} *out\\bundle.tar\r\n`],
    ['one of several parts, of sha256sum ./*', `${digest}  ./bundle.tar\n${other}  ./bundle.tar1\n`],
    ['one of several parts in folders of Windows', `${other} *out\\bundle.tar0\r\n${digest} *out\\bundle.tar\r\n`],
    ['one of several, with a name in parentheses', `${digest}  (out)/bundle.tar\n${other}  (out)/bundle.tarx\n`],
    ['the same twice', `${digest}  a\n${digest}  b\n`],
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
  ])('none in %s', (_what, text) => expect(findSha256(text, 'bundle.tar')).toBeUndefined());

  it('needs little for a long text', () => {
    const started = process.cpuUsage();
    for (const text of ['a'.repeat(1e6), 'ab '.repeat(3e5), '('.repeat(5e5), `${'a'.repeat(63)} `.repeat(1e4)]) findSha256(text, 'x');
    // Quadratic it would be minutes.
    expect(process.cpuUsage(started).user / 1e6).toBeLessThan(5);
  });
});
