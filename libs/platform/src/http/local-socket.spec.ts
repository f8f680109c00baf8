import { execFile } from 'node:child_process';
import { chmod, mkdir, stat } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { listenLocally } from './local-socket.js';

/** A group that exists on every Debian. */
const group = { name: 'daemon', id: 1 };

// Only root can become another user.
describe.runIf(process.getuid?.() === 0)('the socket of the API in a folder of its own', () => {
  let folder: TempDir;
  let server: Server;
  beforeEach(async () => {
    folder = await tempDir('local-socket');
    await chmod(folder.path, 0o755);
    server = createServer((_, response) => response.end('airdock'));
  });
  afterEach(async () => {
    server.close();
    await folder.remove();
  });

  /** As a local user without rights, but those of the groups. */
  async function call(path: string, groups: number[]): Promise<{ code: number; stdout: string }> {
    const rights = [
      '--reuid=65534',
      '--regid=65534',
      groups.length > 0 ? `--groups=${groups.join(',')}` : '--clear-groups',
      '--no-new-privs',
    ];
    const curl = ['curl', '-sS', '--max-time', '10', '--unix-socket', path, 'http://localhost/'];
    return promisify(execFile)('setpriv', [...rights, ...curl], { cwd: '/' }).then(
      ({ stdout }) => ({ code: 0, stdout }),
      (error: { code: number; stdout: string }) => error,
    );
  }
  async function listen(path: string): Promise<void> {
    const umask = process.umask(0o077);
    try {
      await listenLocally(server, { path, group: group.name });
    } finally {
      process.umask(umask);
    }
  }

  it('is reached by the group when the folder is made for it, and by nobody else', async () => {
    const path = join(folder.path, 'run/airdock/api.sock');
    await listen(path);
    expect(await call(path, [group.id])).toMatchObject({ code: 0, stdout: 'airdock' });
    expect(await call(path, [])).toMatchObject({ code: 7, stdout: '' });
    for (const made of ['run', 'run/airdock']) {
      const { mode, gid } = await stat(join(folder.path, made));
      expect([made, mode & 0o7777, gid]).toEqual([made, 0o750, group.id]);
    }
  });

  it('leaves the rights of a folder that was there as they are', async () => {
    await mkdir(join(folder.path, 'there'), { mode: 0o700 });
    const path = join(folder.path, 'there/api.sock');
    await listen(path);
    const { mode, gid } = await stat(join(folder.path, 'there'));
    expect([mode & 0o7777, gid]).toEqual([0o700, process.getgid?.()]);
    expect((await call(path, [group.id])).code).toBe(7);
  });
});
