/** Keys of hosts and users, in the formats that OpenSSH and OpenSSL write. */
import { createHash, createPrivateKey, type KeyObject } from 'node:crypto';
import { AppError } from '@airdock/core/errors';
import { ssh2 } from './ssh2.js';

const supportedTypes = /^(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521))$/;

/** `SHA256:` and base64 without padding, as OpenSSH prints fingerprints. */
export const fingerprintOf = (key: Buffer): string =>
  `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`;

/**
 * The fingerprint of a host key given as `SHA256:…`, or as a line of `ssh-keyscan` or of a `.pub` file. Throws
 * `request_invalid`.
 */
export function parseHostKey(text: string): string {
  const trimmed = text.trim();
  if (/^SHA256:[A-Za-z0-9+/]{43}$/.test(trimmed)) return trimmed;
  const base64 = /(?:^|\s)(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]+=*)(?:\s|$)/.exec(
    trimmed,
  )?.[1];
  if (!base64)
    throw new AppError('request_invalid', {
      detail:
        'hostKey: give SHA256:… or a public key line, e.g. from `ssh-keyscan` or /etc/ssh/ssh_host_ed25519_key.pub',
    });
  return fingerprintOf(Buffer.from(base64, 'base64'));
}

/** Checks that a private key can be read. Returns its public key's fingerprint. Throws `credential_invalid`. */
export function parsePrivateKey(privateKey: string, passphrase?: string): { fingerprint: string; type: string } {
  const readable = readablePrivateKey(privateKey, passphrase);
  const key = ssh2().utils.parseKey(readable.privateKey, readable.passphrase);
  // The message of ssh2 may quote the key; it stays out.
  if (key instanceof Error)
    throw new AppError('credential_invalid', {
      detail: passphrase
        ? 'the key cannot be read with this passphrase'
        : 'the key cannot be read; if it is encrypted, give its passphrase',
    });
  const first = Array.isArray(key) ? key[0] : key;
  if (!first?.isPrivateKey()) throw new AppError('credential_invalid', { detail: 'this is a public key' });
  if (!supportedTypes.test(first.type))
    throw new AppError('credential_invalid', { detail: `hosts take Ed25519, ECDSA and RSA keys, not ${first.type}` });
  return { fingerprint: fingerprintOf(first.getPublicSSH()), type: first.type };
}

/**
 * The key in a format that ssh2 reads: it knows those of OpenSSH and the older PEM ones, but not PKCS #8, which
 * `openssl genpkey` writes. What is no PKCS #8, or cannot be opened, comes back as it is.
 */
export function readablePrivateKey(
  privateKey: string,
  passphrase?: string,
): { privateKey: string; passphrase?: string } {
  const asItIs = { privateKey, ...(passphrase === undefined ? {} : { passphrase }) };
  if (!/-----BEGIN (?:ENCRYPTED )?PRIVATE KEY-----/.test(privateKey)) return asItIs;
  try {
    const key = createPrivateKey({ key: privateKey, ...(passphrase === undefined ? {} : { passphrase }) });
    if (key.asymmetricKeyType === 'rsa') return { privateKey: key.export({ type: 'pkcs1', format: 'pem' }) as string };
    if (key.asymmetricKeyType === 'ec') return { privateKey: key.export({ type: 'sec1', format: 'pem' }) as string };
    if (key.asymmetricKeyType === 'ed25519') return { privateKey: openSshEd25519(key) };
  } catch {
    // Said by the caller, who knows of passphrases; the message here may hold parts of the key.
  }
  return asItIs;
}

/** https://cvsweb.openbsd.org/src/usr.bin/ssh/PROTOCOL.key, without encryption. */
function openSshEd25519(key: KeyObject): string {
  const { x = '', d = '' } = key.export({ format: 'jwk' });
  const publicKey = Buffer.from(x, 'base64url');
  const string = (value: string | Buffer) => {
    const bytes = Buffer.from(value as string);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    return Buffer.concat([length, bytes]);
  };
  const type = string('ssh-ed25519');
  const check = Buffer.alloc(8);
  const secret = Buffer.concat([
    check,
    type,
    string(publicKey),
    string(Buffer.concat([Buffer.from(d, 'base64url'), publicKey])),
    string(''),
  ]);
  const padding = Buffer.from(Array.from({ length: (8 - (secret.length % 8)) % 8 }, (_, index) => index + 1));
  const one = Buffer.from([0, 0, 0, 1]);
  const parts = [
    Buffer.from('openssh-key-v1\0'),
    string('none'),
    string('none'),
    string(''),
    one,
    string(Buffer.concat([type, string(publicKey)])),
  ];
  const base64 = Buffer.concat([...parts, string(Buffer.concat([secret, padding]))]).toString('base64');
  return `-----BEGIN OPENSSH PRIVATE KEY-----\n${base64.replace(/.{70}/g, '$&\n')}\n-----END OPENSSH PRIVATE KEY-----\n`;
}
