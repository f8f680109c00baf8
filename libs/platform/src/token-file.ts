import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { rmSync } from 'node:fs';
import { AppError } from '@airdock/core/errors';
import {
  readOrCreateSecretFile,
  readSecretFile,
  replaceSecretFile,
  secretFileStamp,
  warnOfSecretFile,
} from './secret-file.js';

const sha256 = (text: string) => createHash('sha256').update(text).digest();
/** Of hexadecimal digits 128 bits; a token is not guessed. */
const minLength = 32;

interface Previous {
  digest: Buffer;
  until: number;
}

/**
 * A token that lies in a file. Whoever replaces the file replaces the token, in every process and at once: each use
 * looks whether the file has changed. After `rotate` the token before counts for a while too; of it only a digest is
 * kept, in `<file>.previous`.
 */
export class TokenFile {
  private text = '';
  private digest = Buffer.alloc(0);
  private previous: Previous | undefined;
  private seen = '';

  /** Makes the file if it is not there. Throws `file_exposed`, `configuration_invalid`. */
  constructor(readonly path: string) {
    readOrCreateSecretFile(path, 32, 'base64url');
    this.read();
  }

  /** The token of now, to show it to others. */
  get token(): string {
    this.refresh();
    return this.text;
  }

  /** Compared in constant time, with the one before too while that counts. */
  matches(token: string): boolean {
    this.refresh();
    const digest = sha256(token);
    const isCurrent = timingSafeEqual(digest, this.digest);
    const isPrevious =
      this.previous !== undefined && this.previous.until > Date.now() && timingSafeEqual(digest, this.previous.digest);
    return isCurrent || isPrevious;
  }

  /**
   * Replaces the token with random bytes. Returns until when the one before counts; null: no longer. Two count at the
   * most.
   */
  rotate(keepPreviousSeconds: number): Date | null {
    this.refresh();
    const until = keepPreviousSeconds > 0 ? new Date(Date.now() + keepPreviousSeconds * 1000) : null;
    // First, so that no moment has neither.
    if (until) replaceSecretFile(this.previousPath, `${this.digest.toString('hex')} ${until.toISOString()}`);
    else rmSync(this.previousPath, { force: true });
    replaceSecretFile(this.path, randomBytes(32).toString('base64url'));
    this.refresh();
    return until;
  }

  private get previousPath(): string {
    return `${this.path}.previous`;
  }

  private refresh(): void {
    const now = `${secretFileStamp(this.path)}|${secretFileStamp(this.previousPath)}`;
    if (now === this.seen) return;
    try {
      this.read();
    } catch (error) {
      // A file that is missing or open to others is no reason to let nobody in, nor to believe it: the token that was
      // read last counts.
      this.seen = now;
      warnOfSecretFile(this.path, error);
    }
  }

  private read(): void {
    const seen = `${secretFileStamp(this.path)}|${secretFileStamp(this.previousPath)}`;
    const text = readSecretFile(this.path);
    if (text.length < minLength || /\s/.test(text))
      throw new AppError('configuration_invalid', {
        detail: `${this.path} must hold one token of at least ${minLength} characters; without the file one is made`,
      });
    this.previous = this.readPrevious();
    this.text = text;
    this.digest = sha256(text);
    this.seen = seen;
  }

  private readPrevious(): Previous | undefined {
    if (secretFileStamp(this.previousPath) === '') return undefined;
    const [digest = '', until = ''] = readSecretFile(this.previousPath).split(' ');
    const parsed = { digest: Buffer.from(digest, 'hex'), until: Date.parse(until) };
    return parsed.digest.length === 32 && !Number.isNaN(parsed.until) ? parsed : undefined;
  }
}
