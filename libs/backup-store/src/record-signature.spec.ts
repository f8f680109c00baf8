import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import {
  checkSignature,
  formatSignature,
  groupsOf,
  isTrusted,
  maxSignatureBytes,
  parsePublicKey,
  signingKeyOf,
} from './record-signature.js';

const seedOf = (byte: number) => Buffer.alloc(32, byte);
const own = signingKeyOf(seedOf(1));
const partner = signingKeyOf(seedOf(2));
const stranger = signingKeyOf(seedOf(3));
const keys = { own, trusted: [partner] };
const record = Buffer.from('{"id":"monday"}\n');
const check = (signature: Buffer | undefined, bytes = record) => checkSignature(keys, 'monday', bytes, signature);
const wrong = (detail: string) =>
  expect.objectContaining({ code: 'backup_signature_wrong', message: expect.stringContaining(detail) as string });

describe('the signature of a record', () => {
  it.each([
    ['own', own],
    ['trusted', partner],
    ['unknown', stranger],
  ] as const)('is %s by the key that made it', (state, key) =>
    expect(check(formatSignature(key, record))).toEqual({ state, keyId: key.keyId }),
  );

  it('is missing where there is none', () => expect(check(undefined)).toEqual({ state: 'unsigned', keyId: null }));

  it('is worth something by a key that somebody has vouched for only', () =>
    expect(
      (['own', 'trusted', 'unknown', 'unsigned'] as const).map((state) => isTrusted({ state, keyId: null })),
    ).toEqual([true, true, false, false]));

  it('fits into what is read of its file', () =>
    expect(formatSignature(own, randomBytes(100_000)).byteLength).toBeLessThan(maxSignatureBytes));

  it('of other bytes is wrong, by whichever key that is known', () => {
    for (const key of [own, partner])
      expect(() => check(formatSignature(key, Buffer.from('other')))).toThrow(wrong(`by ${key.keyId} is not of this`));
  });

  it('that names another key than the one that made it is wrong', () => {
    const forged = formatSignature(stranger, record).toString().replace(stranger.keyId, own.keyId);
    expect(() => check(Buffer.from(forged))).toThrow(wrong('is not of this record'));
  });

  it('is wrong with any bit of it changed', () => {
    const [header, keyId, encoded] = formatSignature(own, record).toString().split('\n');
    const bytes = Buffer.from(encoded ?? '', 'base64');
    for (let bit = 0; bit < bytes.byteLength * 8; bit += 37) {
      const changed = Buffer.from(bytes);
      changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7));
      const text = `${header}\n${keyId}\n${changed.toString('base64')}\n`;
      expect(() => check(Buffer.from(text))).toThrow(wrong('is not of this record'));
    }
  });

  it.each<[string, (text: string) => string]>([
    ['nothing', () => ''],
    ['another version', (text) => text.replace('signature 1', 'signature 2')],
    ['no line end at its end', (text) => text.trimEnd()],
    ['a line more', (text) => `${text}\n`],
    ['ends of lines of Windows', (text) => text.replaceAll('\n', '\r\n')],
    ['a key that is none', (text) => text.replace('SHA256:', 'MD5:')],
    ['a shorter signature', (text) => text.replace(/.{4}==\n$/, '==\n')],
    ['characters that base64 has not', (text) => text.replace(/.==\n$/, '!==\n')],
  ])('of another form is wrong: %s', (_, change) => {
    const text = formatSignature(own, record).toString();
    expect(change(text)).not.toBe(text);
    expect(() => check(Buffer.from(change(text)))).toThrow(wrong('is not one of Airdock'));
  });
});

describe('a public key', () => {
  it('reads back as it is written, with a comment behind it or none', () => {
    for (const comment of ['', ' site-a', ' a b c', '\n'])
      expect(parsePublicKey(`${own.text}${comment}`)).toMatchObject({ keyId: own.keyId, text: own.text });
    expect(own.keyId).toMatch(/^SHA256:[A-Za-z0-9+/]{43}$/);
    expect(new Set([own, partner, stranger].map(({ keyId }) => keyId)).size).toBe(3);
  });

  it('verifies what its private half signs', () => {
    const trusted = [parsePublicKey(stranger.text)];
    expect(checkSignature({ own, trusted }, 'monday', record, formatSignature(stranger, record)).state).toBe('trusted');
  });

  it.each([
    '',
    'ssh-ed25519',
    own.text.replace('ssh-ed25519', 'ssh-rsa'),
    own.text.slice(0, -1),
    `${own.text}A`,
    `${own.text}\n${partner.text}`,
    own.text.replace('AAAAC3', 'AAAAC4'),
    `# ${own.text}`,
    own.text.replace(' ', '  '),
  ])('is none: %j', (text) =>
    expect(() => parsePublicKey(text)).toThrow(expect.objectContaining({ code: 'signing_key_invalid' })),
  );

  it('is read aloud in groups that hold all of its fingerprint', () => {
    const groups = groupsOf(own.keyId);
    expect(groups).toMatch(/^([0-9a-f]{4} ){15}[0-9a-f]{4}$/);
    const base64 = Buffer.from(groups.replaceAll(' ', ''), 'hex').toString('base64').replace(/=+$/, '');
    expect(`SHA256:${base64}`).toBe(own.keyId);
  });
});
