import { createCipheriv, createDecipheriv, createHmac, randomBytes } from 'node:crypto';
import { AppError } from '@airdock/core/errors';
import {
  readOrCreateSecretFile,
  readSecretFile,
  replaceSecretFile,
  secretFileStamp,
  warnOfSecretFile,
} from './secret-file.js';

/** One key, and the name that sealed texts call it by. */
interface Key {
  id: string;
  bytes: Buffer;
  fingerprint: string;
}

function toKey(hex: string): Key | undefined {
  if (!/^[0-9a-f]{64}$/i.test(hex)) return undefined;
  const bytes = Buffer.from(hex, 'hex');
  const fingerprint = createHmac('sha256', bytes).update('airdock key fingerprint').digest('hex').slice(0, 32);
  return { id: fingerprint.slice(0, 12), bytes, fingerprint };
}

/**
 * Encrypts what is kept at rest: AES-256-GCM with the key of one file. Sealed text is `v2.<key
 * id>.<nonce>.<tag>.<ciphertext>`, base64url; `v1` without the id is read too.
 *
 * The file holds the key of now in its first line, and while keys are exchanged the one before in the second. Every use
 * looks whether the file has changed, so that all processes seal with a new key from the moment on that it is there.
 */
export class SecretBox {
  private keys: [Key, ...Key[]];
  private seen: string;

  /** Throws `secrets_key_invalid`, `file_exposed`. */
  constructor(private readonly keyFile: string) {
    readOrCreateSecretFile(keyFile, 32, 'hex');
    this.seen = secretFileStamp(keyFile);
    this.keys = this.read();
  }

  /** Tells keys apart, and nothing of them. */
  get fingerprint(): string {
    return this.current().fingerprint;
  }

  /** `context` (e.g. the row's id) is bound to the text: a sealed value copied into another row does not open. */
  seal(plain: string, context: string): string {
    const key = this.current();
    const nonce = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', key.bytes, nonce).setAAD(Buffer.from(context));
    const sealed = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final()]);
    return ['v2', key.id, ...[nonce, cipher.getAuthTag(), sealed].map((part) => part.toString('base64url'))].join('.');
  }

  /** Throws `secrets_key_invalid` when the key or the context is another one. */
  open(sealed: string, context: string): string {
    this.current();
    const [version, ...parts] = sealed.split('.');
    const keyId = version === 'v2' ? parts.shift() : undefined;
    const keys = version === 'v1' ? this.keys : this.keys.filter(({ id }) => id === keyId);
    const [nonce = '', tag = '', text = ''] = parts;
    let cause: unknown = new Error(`no key for ${version} ${keyId ?? ''}`.slice(0, 60));
    for (const { bytes } of keys) {
      try {
        const decipher = createDecipheriv('aes-256-gcm', bytes, Buffer.from(nonce, 'base64url'), {
          authTagLength: 16,
        }).setAAD(Buffer.from(context));
        decipher.setAuthTag(Buffer.from(tag, 'base64url'));
        return Buffer.concat([decipher.update(Buffer.from(text, 'base64url')), decipher.final()]).toString('utf8');
      } catch (error) {
        cause = error;
      }
    }
    throw new AppError('secrets_key_invalid', {}, { cause });
  }

  /** Whether a sealed text is sealed with the key of now. */
  isCurrent(sealed: string): boolean {
    return sealed.startsWith(`v2.${this.current().id}.`);
  }

  /** The same text sealed with the key of now; itself when it is that already. Throws `secrets_key_invalid`. */
  reseal(sealed: string, context: string): string {
    return this.isCurrent(sealed) ? sealed : this.seal(this.open(sealed, context), context);
  }

  /**
   * A digest that only who has the key can make or try out. Begins with the key's id: another key gives another one.
   */
  digest(text: string): string {
    const { id, bytes } = this.current();
    return `${id}.${createHmac('sha256', createHmac('sha256', bytes).update('airdock digest').digest()).update(text).digest('hex')}`;
  }

  /** What digests of the key of now begin with. */
  get digestPrefix(): string {
    return `${this.current().id}.`;
  }

  /** How many keys there are; more than one while keys are exchanged. */
  get keyCount(): number {
    this.current();
    return this.keys.length;
  }

  /**
   * From now on everybody seals with a new key; those before go on opening. Repeating it while keys are exchanged
   * changes nothing.
   */
  beginRotation(): void {
    this.current();
    if (this.keys.length > 1) return;
    this.write([randomBytes(32).toString('hex'), ...this.keys.map(({ bytes }) => bytes.toString('hex'))]);
  }

  /** Forgets the keys before. What is still sealed with them is lost. */
  endRotation(): void {
    this.write([this.current().bytes.toString('hex')]);
  }

  private write(lines: string[]): void {
    replaceSecretFile(this.keyFile, lines.join('\n'));
    this.current();
  }

  private current(): Key {
    const now = secretFileStamp(this.keyFile);
    if (now !== this.seen) {
      this.seen = now;
      try {
        this.keys = this.read();
      } catch (error) {
        // Whatever happened to the file: what was read last is what everything is sealed with.
        warnOfSecretFile(this.keyFile, error);
      }
    }
    return this.keys[0];
  }

  private read(): [Key, ...Key[]] {
    const keys = readSecretFile(this.keyFile).split(/\s+/).map(toKey);
    const [first, ...others] = keys.filter((key) => key !== undefined);
    if (!first || others.length + 1 !== keys.length)
      throw new AppError('secrets_key_invalid', { detail: `${this.keyFile} does not hold 64 hex digits` });
    return [first, ...others];
  }
}
