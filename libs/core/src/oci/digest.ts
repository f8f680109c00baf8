import { createHash, type Hash } from 'node:crypto';

/**
 * A digest as OCI writes it: `sha256:` and 64 hex digits. Source:
 * https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests
 */
export type Digest = `sha256:${string}`;

const pattern = /^sha256:[0-9a-f]{64}$/;

/** Whether a value is a digest of SHA-256. */
export const isDigest = (text: unknown): text is Digest => typeof text === 'string' && pattern.test(text);

/** The digest of bytes held in memory; streams use `createDigest`. */
export const digestOf = (bytes: Uint8Array | string): Digest =>
  `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

/** A running digest. `value()` may be called once. */
export function createDigest(): { update(chunk: Uint8Array): void; value(): Digest } {
  const hash: Hash = createHash('sha256');
  return { update: (chunk) => void hash.update(chunk), value: () => `sha256:${hash.digest('hex')}` };
}

/** The 64 hex digits, for paths. */
export const digestHex = (digest: Digest): string => digest.slice('sha256:'.length);
