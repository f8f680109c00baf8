import { execFileSync } from 'node:child_process';
import { mkdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { identityOf, openRegularFile, readRegularFile } from './regular-file.js';

describe('openRegularFile', () => {
  let dir: TempDir;
  let folder: string;
  beforeEach(async () => {
    dir = await tempDir('regular-file');
    folder = join(dir.path, 'stick');
    await mkdir(join(folder, 'inner'), { recursive: true });
    await writeFile(join(dir.path, 'secret'), 'secret');
    await writeFile(join(folder, 'file'), 'content');
    await writeFile(join(folder, 'inner/file'), 'inner');
  });
  afterEach(() => dir.remove());

  const read = async (path: string, options = {}): Promise<string> => {
    const chunks: Buffer[] = [];
    for await (const chunk of readRegularFile(path, options)) chunks.push(chunk);
    return Buffer.concat(chunks).toString();
  };

  it('reads a file of the folder, in part too', async () => {
    expect(await read(join(folder, 'file'))).toBe('content');
    expect(await read(join(folder, 'inner/file'), { inside: folder, start: 1, end: 3 })).toBe('nn');
    expect(await read(join(folder, 'file'), { start: 3, end: 3 })).toBe('');
    await expect(read(join(folder, 'none'))).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('opens nothing else: no link, no pipe, no device, no folder, nothing outside of the folder', async () => {
    await symlink('file', join(folder, 'link'));
    await symlink(join(dir.path, 'secret'), join(folder, 'out'));
    await symlink(dir.path, join(folder, 'up'));
    execFileSync('mkfifo', [join(folder, 'pipe')]);
    for (const name of ['link', 'out', 'pipe', 'inner', 'up/secret', '../secret'])
      await expect(read(join(folder, name), { inside: folder }), name).rejects.toMatchObject({ code: 'bundle_unsafe' });
    await expect(read('/dev/zero', { inside: '/dev', code: 'backup_store_unsafe' })).rejects.toMatchObject({
      code: 'backup_store_unsafe',
    });
  });

  it('sees that another file has the name, or another folder', async () => {
    const { handle, status } = await openRegularFile(join(folder, 'file'));
    await handle.close();
    await writeFile(join(folder, 'new'), 'other');
    await rename(join(folder, 'new'), join(folder, 'file'));
    await expect(read(join(folder, 'file'), { identity: identityOf(status) })).rejects.toMatchObject({
      code: 'bundle_unsafe',
    });
    await rm(join(folder, 'inner'), { recursive: true });
    await symlink(dir.path, join(folder, 'inner'));
    await expect(read(join(folder, 'inner/secret'), { inside: folder })).rejects.toMatchObject({
      code: 'bundle_unsafe',
    });
  });
});
