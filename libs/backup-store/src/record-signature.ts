/**
 * Who made a backup: Ed25519 over the bytes of its record, which names everything that is in it by digest. Keys are
 * written and named as OpenSSH does, so that `ssh-keygen -lf` shows the fingerprint that people compare. Format:
 * docs/design/backup-format.md
 */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto';
import { AppError } from '@airdock/core/errors';

/** `SHA256:` and 43 characters, as OpenSSH writes it. */
export type KeyId = string;

/** Says whether a signature is right. */
export interface PublicKey {
  keyId: KeyId;
  /** `ssh-ed25519 AAAA…` */
  text: string;
  key: KeyObject;
}

/** Signs; the private half never leaves it. */
export interface SigningKey extends PublicKey {
  sign(bytes: Uint8Array): Buffer;
}

/** Whose records are taken. */
export interface RecordKeys {
  own: SigningKey;
  /** Of other sites. */
  trusted: readonly PublicKey[];
}

/**
 * What a record's signature says. `unknown` is one of a key that nobody has vouched for, and worth no more than none.
 */
export interface RecordSignature {
  state: 'own' | 'trusted' | 'unknown' | 'unsigned';
  keyId: KeyId | null;
}

/** Whether a record may be used without anybody having to allow it. */
export const isTrusted = ({ state }: RecordSignature): boolean => state === 'own' || state === 'trusted';

/** Of a file: three lines, of which the signature is the longest. */
export const maxSignatureBytes = 512;

const kind = 'ssh-ed25519';
const header = 'airdock-signature 1';
/** PKCS #8 of an Ed25519 key up to its 32 bytes. Source: RFC 8410 */
const privatePrefix = Buffer.from('302e020100300506032b657004220420', 'hex');
const publicPrefix = Buffer.from('302a300506032b6570032100', 'hex');

const field = (bytes: Buffer): Buffer => {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.byteLength);
  return Buffer.concat([length, bytes]);
};

function publicKeyOf(raw: Buffer): PublicKey {
  const wire = Buffer.concat([field(Buffer.from(kind)), field(raw)]);
  return {
    keyId: `SHA256:${createHash('sha256').update(wire).digest('base64').replace(/=+$/, '')}`,
    text: `${kind} ${wire.toString('base64')}`,
    key: createPublicKey({ key: Buffer.concat([publicPrefix, raw]), format: 'der', type: 'spki' }),
  };
}

/** The key whose 32 bytes are these: any are one. */
export function signingKeyOf(seed: Buffer): SigningKey {
  const key = createPrivateKey({ key: Buffer.concat([privatePrefix, seed]), format: 'der', type: 'pkcs8' });
  const raw = createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(publicPrefix.byteLength);
  return { ...publicKeyOf(raw), sign: (bytes) => sign(null, bytes, key) };
}

/** Reads `ssh-ed25519 AAAA…`, with or without a comment behind it. Throws `signing_key_invalid`. */
export function parsePublicKey(text: string): PublicKey {
  const [, encoded = ''] = /^ssh-ed25519 ([A-Za-z0-9+/]{68})(?:[ \t][^\r\n]*)?$/.exec(text.trim()) ?? [];
  const wire = Buffer.from(encoded, 'base64');
  const prefix = Buffer.concat([field(Buffer.from(kind)), Buffer.from([0, 0, 0, 32])]);
  if (wire.byteLength !== prefix.byteLength + 32 || !wire.subarray(0, prefix.byteLength).equals(prefix))
    throw new AppError('signing_key_invalid');
  return publicKeyOf(wire.subarray(prefix.byteLength));
}

/** The fingerprint for reading aloud: all of it, as hex digits in groups of four. */
export const groupsOf = (keyId: KeyId): string =>
  (Buffer.from(keyId.slice('SHA256:'.length), 'base64').toString('hex').match(/.{4}/g) ?? []).join(' ');

/** The content of the file beside a record. */
export const formatSignature = (key: SigningKey, bytes: Uint8Array): Buffer =>
  Buffer.from(`${header}\n${key.keyId}\n${key.sign(bytes).toString('base64')}\n`);

/**
 * What the signature beside a record is worth; `signature` is undefined when there is none. Throws
 * `backup_signature_wrong` for one that is not of these bytes, of a key that is known, and for what is no signature.
 */
export function checkSignature(
  { own, trusted }: RecordKeys,
  id: string,
  bytes: Uint8Array,
  signature: Buffer | undefined,
): RecordSignature {
  if (!signature) return { state: 'unsigned', keyId: null };
  const wrong = (detail: string) =>
    new AppError('backup_signature_wrong', { detail: `the signature of backup ${id} ${detail}`, backupId: id });
  const [first, keyId = '', encoded = '', rest, ...more] = signature.toString('latin1').split('\n');
  const isFormed =
    first === header &&
    /^SHA256:[A-Za-z0-9+/]{43}$/.test(keyId) &&
    /^[A-Za-z0-9+/]{86}==$/.test(encoded) &&
    rest === '' &&
    more.length === 0;
  if (!isFormed) throw wrong('is not one of Airdock');
  const known = [own, ...trusted].find((key) => key.keyId === keyId);
  if (!known) return { state: 'unknown', keyId };
  if (!verify(null, bytes, known.key, Buffer.from(encoded, 'base64'))) throw wrong(`by ${keyId} is not of this record`);
  return { state: known === own ? 'own' : 'trusted', keyId };
}
