import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { FrontConfiguration } from './front.js';

/** Where an operator finds the password for `docker login localhost:5100 --username airdock`. */
export const localPushPasswordFile = (dataDir: string): string => join(dataDir, 'registry/local-push.password');

/**
 * Who may push to localhost; the password is made when there is none. It never leaves its file: the front knows its
 * digest.
 */
export function localPushCredential(dataDir: string): NonNullable<FrontConfiguration['push']> {
  const path = localPushPasswordFile(dataDir);
  if (!existsSync(path)) {
    mkdirSync(join(path, '..'), { recursive: true, mode: 0o700 });
    writeFileSync(`${path}.new`, `${randomBytes(32).toString('base64url')}\n`, { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }
  return {
    username: 'airdock',
    passwordSha256: createHash('sha256').update(readFileSync(path, 'utf8').trim()).digest('hex'),
  };
}
