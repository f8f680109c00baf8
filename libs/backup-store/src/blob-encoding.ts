/**
 * How a blob lies in a backup store: as it is, compressed, encrypted, or first compressed and then encrypted. The
 * suffix of its name says which, and `zstd -d` and `age -d` undo it.
 */
import { pipeline, Readable, type Transform } from 'node:stream';
import { ReadableStream } from 'node:stream/web';
import { promisify } from 'node:util';
import { constants, createZstdCompress, createZstdDecompress, zstdCompress } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import type { BlobReader } from '@airdock/oci/image/image-source';

/** The endings of encoded blobs: how a file of a store is to be read, outermost last. */
export const encodings = ['', '.zst', '.age', '.zst.age'] as const;
/** One of the endings of encoded blobs. */
export type Encoding = (typeof encodings)[number];

/** Age keys: `age1…` to encrypt for, `AGE-SECRET-KEY-1…` to decrypt with. */
export interface EncryptionKeys {
  recipients: readonly string[];
  /** Needed by whoever reads. */
  identities: readonly string[];
}

const level = { params: { [constants.ZSTD_c_compressionLevel]: 3 } };
const sampleBytes = 1024 * 1024;
/** Smaller blobs are not worth a look. */
const minBytes = 16 * 1024;
/** Of the sample; what saves less is stored as it is, which reads faster and goes on where it was interrupted. */
const worthwhile = 0.9;

/** Whether a blob gets smaller by being compressed, by its first bytes: most layers are compressed already. */
export async function isCompressible({ size, open }: BlobReader): Promise<boolean> {
  if (size < minBytes) return false;
  const content = open();
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of content) {
    chunks.push(chunk as Buffer);
    bytes += (chunk as Buffer).byteLength;
    if (bytes >= sampleBytes) break;
  }
  content.destroy();
  const sample = Buffer.concat(chunks).subarray(0, sampleBytes);
  const compressed = await promisify(zstdCompress)(sample, level);
  return compressed.byteLength < sample.byteLength * worthwhile;
}

/** Through a stream of Node.js; an error of either ends the result with it. */
const through = (content: Readable, stage: Transform): Readable => pipeline(content, stage, () => undefined);

/** Through a web stream. */
const throughWeb = (
  content: Readable,
  work: (input: ReadableStream<Uint8Array>) => Promise<ReadableStream<Uint8Array>>,
): Readable =>
  Readable.from(
    (async function* () {
      yield* await work(ReadableStream.from(content as AsyncIterable<Uint8Array>));
    })(),
    { objectMode: false },
  );

/** Most sites encrypt no backups, and do without its cryptography in memory. */
const loadAge = () => import('age-encryption');

/** Compresses and encrypts as the ending says. Errors end the returned stream. */
export function encode(content: Readable, encoding: Encoding, { recipients }: EncryptionKeys): Readable {
  const compressed = encoding.startsWith('.zst') ? through(content, createZstdCompress(level)) : content;
  if (!encoding.endsWith('.age')) return compressed;
  return throughWeb(compressed, async (input) => {
    const { Encrypter } = await loadAge();
    const encrypter = new Encrypter();
    for (const recipient of recipients) encrypter.addRecipient(recipient);
    return encrypter.encrypt(input);
  });
}

/** The stream ends with `backup_key_missing`, or with `backup_corrupt` for what cannot be decoded. */
export function decode(content: Readable, encoding: Encoding, { identities }: EncryptionKeys): Readable {
  let plain = content;
  if (encoding.endsWith('.age')) {
    plain = throughWeb(content, async (input) => {
      if (identities.length === 0) throw new AppError('backup_key_missing');
      const { Decrypter } = await loadAge();
      const decrypter = new Decrypter();
      for (const identity of identities) decrypter.addIdentity(identity);
      return decrypter.decrypt(input).catch((cause: unknown) => {
        throw cause instanceof Error && /no identity matched/.test(cause.message)
          ? new AppError('backup_key_missing', {}, { cause })
          : cause;
      });
    });
  }
  if (encoding.startsWith('.zst')) plain = through(plain, createZstdDecompress());
  if (encoding === '') return plain;
  return Readable.from(
    (async function* () {
      try {
        yield* plain as AsyncIterable<Uint8Array>;
      } catch (error) {
        // What reading failed with is no damage.
        throw error instanceof AppError || content.errored === error
          ? error
          : new AppError('backup_corrupt', { detail: 'it cannot be decoded' }, { cause: error });
      }
    })(),
    { objectMode: false },
  );
}
