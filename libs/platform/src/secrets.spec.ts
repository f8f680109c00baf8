import { execFile } from 'node:child_process';
import { stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { tempDir } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { readOrCreateSecretFile } from './secret-file.js';
import { SecretBox } from './secrets.js';

describe('SecretBox', () => {
  it('opens what it sealed, only with its context and its key, and never twice the same', async () => {
    const folder = await tempDir('secrets');
    const box = new SecretBox(join(folder.path, 'a/secrets.key'));
    const sealed = box.seal('hunter2 ☃', 'row-1');
    expect(sealed).not.toContain('hunter2');
    expect(box.seal('hunter2 ☃', 'row-1')).not.toBe(sealed);
    expect(new SecretBox(join(folder.path, 'a/secrets.key')).open(sealed, 'row-1')).toBe('hunter2 ☃');
    const codes = [
      () => box.open(sealed, 'row-2'),
      () => new SecretBox(join(folder.path, 'b/secrets.key')).open(sealed, 'row-1'),
      () => box.open(`${sealed}x`, 'row-1'),
      () => box.open('', 'row-1'),
    ].map((open) => {
      try {
        return open();
      } catch (error) {
        return (error as AppError).code;
      }
    });
    expect(codes).toEqual(Array(4).fill('secrets_key_invalid'));
    await writeFile(join(folder.path, 'c'), 'short', { mode: 0o600 });
    expect(() => new SecretBox(join(folder.path, 'c'))).toThrowError(AppError);
    await folder.remove();
  });
});

describe('readOrCreateSecretFile', () => {
  it('gives many processes that start at once the same secret, readable by the owner only', async () => {
    const folder = await tempDir('secrets');
    const path = join(folder.path, 'token');
    const script = `import('${join(import.meta.dirname, '../dist/secret-file.js')}').then(({ readOrCreateSecretFile }) => console.log(readOrCreateSecretFile('${path}', 32, 'hex')))`;
    const outputs = await Promise.all(
      Array.from({ length: 6 }, () => promisify(execFile)(process.execPath, ['-e', script])),
    );
    expect(new Set(outputs.map(({ stdout }) => stdout)).size).toBe(1);
    expect(outputs[0]?.stdout.trim()).toBe(readOrCreateSecretFile(path, 32, 'hex'));
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    await folder.remove();
  });
});
