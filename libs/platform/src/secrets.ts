import { createCipheriv, createDecipheriv, createHmac, randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, linkSync, mkdirSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { AppError } from '@airdock/core/errors';

/**
 * Reads a secret file, making it (0600, with random bytes in `encoding`) if it is not there. Safe when several processes start at once:
 * all read the same content.
 */
export function readOrCreateSecretFile(path: string, bytes: number, encoding: 'hex' | 'base64url'): string {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const read = () => readFileSync(path, 'utf8').trim();
  try {
    return read();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  // A link either makes the complete file or finds another process's complete file.
  const fresh = `${path}.${process.pid}.${randomBytes(4).toString('hex')}`;
  const fd = openSync(fresh, 'wx', 0o600);
  try {
    writeSync(fd, `${randomBytes(bytes).toString(encoding)}\n`);
    fsyncSync(fd);
    linkSync(fresh, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    closeSync(fd);
    rmSync(fresh, { force: true });
  }
  return read();
}

/** Encrypts what is kept at rest: AES-256-GCM with the key of one file. Sealed text is `v1.<nonce>.<tag>.<ciphertext>`, base64url. */
export class SecretBox {
  private readonly key: Buffer;

  constructor(keyFile: string) {
    this.key = Buffer.from(readOrCreateSecretFile(keyFile, 32, 'hex'), 'hex');
    if (this.key.length !== 32) throw new AppError('secrets_key_invalid', { detail: `${keyFile} does not hold 64 hex digits` });
  }

  /** Tells keys apart, and nothing of them. */
  get fingerprint(): string {
    return createHmac('sha256', this.key).update('airdock key fingerprint').digest('hex').slice(0, 32);
  }

  /** `context` (e.g. the row's id) is bound to the text: a sealed value copied into another row does not open. */
  seal(plain: string, context: string): string {
    const nonce = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', this.key, nonce).setAAD(Buffer.from(context));
    const sealed = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final()]);
    return ['v1', ...[nonce, cipher.getAuthTag(), sealed].map((part) => part.toString('base64url'))].join('.');
  }

  /** Throws `secrets_key_invalid` when the key or the context is another one. */
  open(sealed: string, context: string): string {
    try {
      const [version, nonce = '', tag = '', text = ''] = sealed.split('.');
      if (version !== 'v1') throw new Error(`unknown version ${version}`);
      const decipher = createDecipheriv('aes-256-gcm', this.key, Buffer.from(nonce, 'base64url'), { authTagLength: 16 }).setAAD(Buffer.from(context));
      decipher.setAuthTag(Buffer.from(tag, 'base64url'));
      return Buffer.concat([decipher.update(Buffer.from(text, 'base64url')), decipher.final()]).toString('utf8');
    } catch (cause) {
      throw new AppError('secrets_key_invalid', {}, { cause });
    }
  }
}
