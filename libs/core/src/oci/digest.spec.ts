import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createDigest, digestHex, digestOf, isDigest } from './digest.js';

const hex = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

describe('a digest', () => {
  it('is that of SHA-256, with its name before it', () => {
    expect(digestOf('')).toBe(`sha256:${hex}`);
    expect(digestHex(digestOf(''))).toBe(hex);
  });

  it('is the same in one piece and in any number of them', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 8 }), (pieces) => {
        const digest = createDigest();
        for (const piece of pieces) digest.update(piece);
        const whole = Buffer.concat(pieces);
        const value = digest.value();
        expect(value).toBe(digestOf(whole));
        expect(digestHex(value)).toBe(createHash('sha256').update(whole).digest('hex'));
        expect(isDigest(value)).toBe(true);
      }),
    );
  });

  it.each([
    undefined,
    null,
    7,
    '',
    hex,
    `sha256:${hex.slice(1)}`,
    `sha256:${hex}0`,
    `sha256:${hex.toUpperCase()}`,
    `sha512:${hex}`,
    ` sha256:${hex}`,
    `sha256:${hex}\n`,
    `sha256:${hex}\nsha256:${hex}`,
    [`sha256:${hex}`],
  ])('is none: %j', (value) => expect(isDigest(value)).toBe(false));
});
