import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ownHeader } from '@airdock/core/host/host-file';
import { connectSsh } from '@airdock/ssh/connection/connect';
import { type SshConnection } from '@airdock/ssh/connection/connection';
import { parseHostKey } from '@airdock/ssh/connection/keys';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { type Sshd, startSshd } from '@airdock/testing/sshd';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { HostFiles } from './host-files.js';

let sshd: Sshd;
let connection: SshConnection;
let folder: TempDir;
let files: HostFiles;
let path: string;
let count = 0;

beforeAll(async () => {
  [sshd, folder] = await Promise.all([startSshd(), tempDir('host-files')]);
  const { port, user: username, privateKey } = sshd;
  connection = await connectSsh({
    address: '127.0.0.1',
    port,
    username,
    privateKey,
    hostKeyFingerprint: parseHostKey(sshd.hostKeys.ed25519),
  });
  files = new HostFiles(connection, new AbortController().signal);
});
beforeEach(() => {
  path = join(folder.path, `it's ${++count}`, 'x.conf');
});
afterAll(async () => {
  await connection?.close();
  await sshd?.stop();
  await folder?.remove();
});

const around = async () => (await readdir(join(path, '..')).catch((): string[] => [])).sort();
async function withFile(text: string | Buffer): Promise<void> {
  await mkdir(join(path, '..'), { recursive: true });
  await writeFile(path, text);
}

describe('HostFiles', () => {
  it('reads text as it is, and tells an empty file from none', async () => {
    expect(await files.read(path)).toEqual({ path, text: null, isPending: false, isKept: false });
    for (const text of ['', 'a', 'a\n\n', '  ☃ \r\n']) {
      await withFile(text);
      expect((await files.read(path)).text).toBe(text);
    }
  });

  it('answers once with what it has read ahead, and lets nobody overwrite what was changed since', async () => {
    await withFile('old');
    const absent = `${path}.absent`;
    files.readAhead([path, absent, join(path, '..')]);
    const before = await files.read(path);
    await withFile('changed');
    expect([before.text, (await files.read(absent)).text]).toEqual(['old', null]);
    await expect(files.read(join(path, '..'))).rejects.toMatchObject({ code: 'host_file_refused' });
    await expect(files.write(before, 'new', { hasHeader: true })).rejects.toMatchObject({ code: 'host_file_refused' });
    expect((await files.read(path)).text).toBe('changed');
  });

  it('refuses what cannot be merged: no UTF-8, too large, a folder', async () => {
    for (const content of [Buffer.from([0x61, 0xff]), Buffer.alloc(600_000, 0x61)]) {
      await withFile(content);
      await expect(files.read(path)).rejects.toMatchObject({ code: 'host_file_refused' });
    }
    await expect(files.read(folder.path)).rejects.toMatchObject({ code: 'host_file_refused' });
  });

  it('makes a file with its folder, and marks one that cannot say whose it is', async () => {
    await files.write(await files.read(path), '{}\n', { hasHeader: false });
    expect(await around()).toEqual(['.airdock-created', 'x.conf', 'x.conf.airdock-created']);
    await files.write(await files.read(path), '{"a":1}\n', { hasHeader: false });
    expect(await around()).toEqual(['.airdock-created', 'x.conf', 'x.conf.airdock-created']);
    expect(await readFile(path, 'utf8')).toBe('{"a":1}\n');
  });

  it('keeps mode and old text, only once, and no file of its own', async () => {
    await withFile('old');
    await chmod(path, 0o640);
    await files.write(await files.read(path), `${ownHeader}\nnew`, { hasHeader: true });
    await files.write(await files.read(path), 'newer', { hasHeader: true });
    await files.write(await files.read(path), 'newest', { hasHeader: true });
    expect(await around()).toEqual(['x.conf', 'x.conf.airdock-before']);
    expect([await readFile(path, 'utf8'), await readFile(`${path}.airdock-before`, 'utf8')]).toEqual(['newest', 'old']);
    expect((await stat(path)).mode & 0o777).toBe(0o640);
  });

  it('writes nothing over a file that someone else changed meanwhile', async () => {
    await withFile('old');
    const before = await files.read(path);
    await writeFile(path, 'theirs');
    await expect(files.write(before, 'ours', { hasHeader: true })).rejects.toMatchObject({ code: 'host_file_refused' });
    expect([await around(), await readFile(path, 'utf8')]).toEqual([['x.conf'], 'theirs']);
  });

  it('changes what a link leads to', async () => {
    await withFile('');
    const target = join(path, '../target');
    await writeFile(target, 'old');
    await connection.run(['rm', path]);
    await symlink('target', path);
    await files.write(await files.read(path), 'new', { hasHeader: true, pending: true });
    expect(await around()).toEqual(['target', 'target.airdock-before', 'target.airdock-pending', 'x.conf']);
    expect(await files.read(path)).toMatchObject({ text: 'new', isPending: true, isKept: true });
    await files.settle(path);
    expect(await files.read(path)).toMatchObject({ text: 'new', isPending: false });
  });

  it('takes a change back without a trace', async () => {
    const none = await files.read(path);
    await files.write(none, '{}', { hasHeader: false, pending: true });
    await files.restore(none);
    expect(await around()).toEqual([]);
    await withFile('old');
    const old = await files.read(path);
    await files.write(old, 'new', { hasHeader: false, pending: true });
    await files.restore(old);
    expect([await around(), await readFile(path, 'utf8')]).toEqual([['x.conf'], 'old']);
    await files.write(old, 'new', { hasHeader: false });
    const second = await files.read(path);
    await files.write(second, 'newer', { hasHeader: false, pending: true });
    await files.restore(second);
    expect([await readFile(path, 'utf8'), await readFile(`${path}.airdock-before`, 'utf8')]).toEqual(['new', 'old']);
    // A run that ended before its file was taken over: what was there before Airdock comes back.
    await files.write(await files.read(path), 'newest', { hasHeader: false, pending: true });
    await files.restore(await files.read(path));
    expect([await around(), await readFile(path, 'utf8')]).toEqual([['x.conf'], 'old']);
  });

  it('is taken out of a file: its own, one that it made, and one that others have changed since', async () => {
    await files.write(await files.read(path), '{"a":1}', { hasHeader: false });
    await files.revert(await files.read(path), null);
    expect(await around()).toEqual([]);
    await withFile('old');
    await chmod(path, 0o640);
    await files.write(await files.read(path), 'new', { hasHeader: false });
    await files.revert(await files.read(path), await files.before(path));
    expect([await around(), await readFile(path, 'utf8'), (await stat(path)).mode & 0o777]).toEqual([
      ['x.conf'],
      'old',
      0o640,
    ]);
    await files.write(await files.read(path), 'new', { hasHeader: false });
    await files.revert(await files.read(path), 'changed');
    expect([await around(), await readFile(path, 'utf8'), (await stat(path)).mode & 0o777]).toEqual([
      ['x.conf'],
      'changed',
      0o640,
    ]);
    const seen = await files.read(path);
    await writeFile(path, 'theirs');
    await expect(files.revert(seen, null)).rejects.toMatchObject({ code: 'host_file_refused' });
    expect(await readFile(path, 'utf8')).toBe('theirs');
  });
});
