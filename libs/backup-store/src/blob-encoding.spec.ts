import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { randomContent } from '@airdock/testing/bundles';
import { generateIdentity, identityToRecipient } from 'age-encryption';
import { beforeAll, describe, expect, it } from 'vitest';
import { decode, type EncryptionKeys, encode, encodings, isCompressible } from './blob-encoding.js';

const streamOf = (...chunks: Uint8Array[]) =>
  Readable.from(
    chunks.map((chunk) => Buffer.from(chunk)),
    { objectMode: false },
  );
const bytesOf = async (content: Readable) => Buffer.concat((await content.toArray()) as Buffer[]);
const text = Buffer.from('one line that comes again\n'.repeat(10_000));
const none: EncryptionKeys = { recipients: [], identities: [] };
let keys: EncryptionKeys;
let other: EncryptionKeys;

beforeAll(async () => {
  const make = async () => {
    const identity = await generateIdentity();
    return { recipients: [await identityToRecipient(identity)], identities: [identity] };
  };
  [keys, other] = [await make(), await make()];
});

describe.each(encodings)('a blob that is encoded as %j', (encoding) => {
  it.each([
    ['nothing', Buffer.alloc(0)],
    ['one byte', Buffer.from([7])],
    ['text', text],
    ['what no program makes smaller', randomContent(300_000, 'random')],
  ])('decodes to %s', async (_, content) => {
    const encoded = await bytesOf(encode(streamOf(content), encoding, keys));
    expect(await bytesOf(decode(streamOf(encoded), encoding, keys))).toEqual(content);
    if (encoding === '') expect(encoded).toEqual(content);
    if (encoding.endsWith('.age')) expect(encoded.subarray(0, 21).toString()).toBe('age-encryption.org/v1');
  });

  it('ends with what reading it failed with, and not with damage', async () => {
    const failure = new Error('EIO');
    const broken = () =>
      Readable.from(
        (async function* () {
          yield text.subarray(0, 100);
          throw failure;
        })(),
        { objectMode: false },
      );
    await expect(bytesOf(encode(broken(), encoding, keys))).rejects.toThrow('EIO');
    if (encoding === '') await expect(bytesOf(decode(broken(), encoding, keys))).rejects.toBe(failure);
  });

  it('keeps an error of ours as it is', async () => {
    const failure = new AppError('backup_target_unavailable');
    const broken = Readable.from(
      (async function* () {
        if (text.byteLength > 0) throw failure;
        yield text;
      })(),
      { objectMode: false },
    );
    await expect(bytesOf(decode(broken, encoding, keys))).rejects.toBe(failure);
  });
});

describe.each(encodings.filter((encoding) => encoding !== ''))('a damaged blob in %s', (encoding) => {
  const encoded = async () => bytesOf(encode(streamOf(text), encoding, keys));

  it('is corrupt where it ends too early', async () => {
    const bytes = await encoded();
    const cut = bytes.subarray(0, bytes.byteLength - 20);
    await expect(bytesOf(decode(streamOf(cut), encoding, keys))).rejects.toMatchObject({ code: 'backup_corrupt' });
  });

  it('is corrupt where it is something else', async () => {
    await expect(bytesOf(decode(streamOf(text), encoding, keys))).rejects.toMatchObject({ code: 'backup_corrupt' });
  });
});

describe('an encrypted blob', () => {
  it('asks for a key where there is none, or none that fits', async () => {
    const encrypted = await bytesOf(encode(streamOf(text), '.age', keys));
    for (const identities of [[], other.identities])
      await expect(bytesOf(decode(streamOf(encrypted), '.age', { ...none, identities }))).rejects.toMatchObject({
        code: 'backup_key_missing',
      });
  });

  it('is read by each of its recipients', async () => {
    const recipients = [...keys.recipients, ...other.recipients];
    const encrypted = await bytesOf(encode(streamOf(text), '.zst.age', { recipients, identities: [] }));
    for (const { identities } of [keys, other])
      expect(await bytesOf(decode(streamOf(encrypted), '.zst.age', { ...none, identities }))).toEqual(text);
  });

  it('of which one bit was changed gives none of the bytes behind it', async () => {
    const encrypted = await bytesOf(encode(streamOf(text), '.age', keys));
    const at = encrypted.byteLength - 5;
    encrypted[at] = (encrypted[at] as number) ^ 1;
    await expect(bytesOf(decode(streamOf(encrypted), '.age', keys))).rejects.toMatchObject({ code: 'backup_corrupt' });
  });
});

describe('isCompressible', () => {
  const reader = (content: Buffer) => {
    const opened: Readable[] = [];
    const open = () => {
      const stream = Readable.from(
        (function* () {
          for (let at = 0; at < content.byteLength; at += 65_536) yield content.subarray(at, at + 65_536);
        })(),
        { objectMode: false },
      );
      opened.push(stream);
      return stream;
    };
    return { size: content.byteLength, open, opened };
  };

  it.each([
    ['text', text, true],
    ['what is random', randomContent(100_000, 'x'), false],
    ['what is small', Buffer.alloc(16 * 1024 - 1), false],
    ['what is just large enough', Buffer.alloc(16 * 1024), true],
    ['nothing', Buffer.alloc(0), false],
    [
      'a random begin, whatever comes later',
      Buffer.concat([randomContent(1024 * 1024, 'y'), Buffer.alloc(1024 * 1024)]),
      false,
    ],
  ])('of %s: see the table', async (_, content, expected) => {
    expect(await isCompressible(reader(content))).toBe(expected);
  });

  it('reads no more than its sample, and closes what it has opened', async () => {
    const large = reader(Buffer.alloc(8 * 1024 * 1024));
    expect(await isCompressible(large)).toBe(true);
    expect(large.opened.map(({ destroyed }) => destroyed)).toEqual([true]);
    expect(large.opened[0]?.readableEnded).toBe(false);
  });
});
