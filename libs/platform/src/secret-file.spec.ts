import { chmod, mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { Logger } from '@nestjs/common';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { securePrivateFolder } from './secret-file.js';
import { SecretBox } from './secrets.js';
import { TokenFile } from './token-file.js';

let folder: TempDir;
beforeEach(async () => {
  folder = await tempDir('secret-file');
});
afterEach(() => folder.remove());
const at = (path: string) => join(folder.path, path);

describe('a secret file that is replaced by one that is not to be believed', () => {
  const token = (letter: string) => letter.repeat(40);
  const changes: [string, string, string, (path: string) => Promise<void>][] = [
    ['is open to others', 'file_exposed', 'chmod 600', (path) => chmod(path, 0o644)],
    ['is too short', 'configuration_invalid', 'hold', (path) => writeFile(path, 'short')],
    ['is gone', 'ENOENT', 'Put it back', (path) => rm(path)],
  ];

  it.each(changes)(
    'that %s: the token before counts, and the log says why, once',
    async (_what, code, step, change) => {
      const warn = vi.spyOn(Logger.prototype, 'warn').mockReturnValue(undefined);
      await writeFile(at('token'), token('a'), { mode: 0o600 });
      const file = new TokenFile(at('token'));
      await change(at('token'));
      for (let use = 0; use < 3; use++) expect(file.matches(token('a'))).toBe(true);
      expect(warn.mock.calls.map(([about]) => about)).toEqual([{ code, file: at('token') }]);
      expect(JSON.stringify(warn.mock.calls)).not.toContain(token('a'));
      await writeFile(at('token'), token('b'), { mode: 0o600 });
      await chmod(at('token'), 0o600);
      expect([file.matches(token('a')), file.matches(token('b'))]).toEqual([false, true]);
      expect(warn.mock.calls[0]?.[1]).toContain(step);
      warn.mockRestore();
    },
  );

  it.each(changes)(
    'that %s: the key before seals and opens, and the log says why, once',
    async (_what, code, step, change) => {
      const warn = vi.spyOn(Logger.prototype, 'warn').mockReturnValue(undefined);
      const box = new SecretBox(at('secrets.key'));
      const sealed = box.seal('x', 'row');
      await change(at('secrets.key'));
      for (let use = 0; use < 3; use++) expect(box.open(sealed, 'row')).toBe('x');
      const expected = code === 'configuration_invalid' ? 'secrets_key_invalid' : code;
      expect(warn.mock.calls.map(([about]) => about)).toEqual([{ code: expected, file: at('secrets.key') }]);
      expect(warn.mock.calls[0]?.[1]).toContain(step);
      warn.mockRestore();
    },
  );
});

describe('securePrivateFolder', () => {
  it.each(['link', 'chain', 'through/data'])(
    'refuses %s: others could put another folder where it leads',
    async (way) => {
      await mkdir(at('open/data'), { recursive: true });
      await mkdir(at('safe/data'), { recursive: true });
      await chmod(at('open'), 0o777);
      await symlink(at('open/data'), at('link'));
      await symlink(at('safe/data'), at('open/hop'));
      await symlink(at('open/hop'), at('chain'));
      await symlink(at('open'), at('through'));
      expect(() => securePrivateFolder(at(way))).toThrow(expect.objectContaining({ code: 'file_exposed' }));
    },
  );

  it('takes one that links lead to which nobody else can change', async () => {
    await mkdir(at('safe/data'), { recursive: true, mode: 0o700 });
    await symlink('safe/data', at('link'));
    expect(securePrivateFolder(at('link'))).toBeUndefined();
  });
});
