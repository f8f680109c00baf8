import { mkdir, readdir, readlink, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tempDir, waitFor } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { packageServer } from './package-server.js';

const noKey = () => Promise.reject(new Error('nothing is to be signed'));

/** Of this process. */
const openFiles = async () =>
  Promise.all((await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')));

describe('packageServer', () => {
  it('gives the files of its folders, in ranges if wanted, and nothing else', async () => {
    await using folder = await tempDir('packages');
    const [own, other] = [join(folder.path, 'own'), join(folder.path, 'other')];
    await mkdir(join(own, 'pool'), { recursive: true });
    await mkdir(other);
    await writeFile(join(own, 'pool', 'docker-ce_5%3a20.10+x~y.deb'), '0123456789');
    await writeFile(join(own, '.secret'), 'x');
    await writeFile(join(other, 'secret'), 'x');
    await symlink('pool/docker-ce_5%3a20.10+x~y.deb', join(own, 'latest.deb'));
    await symlink(join(other, 'secret'), join(own, 'out'));
    await symlink(other, join(own, 'way-out'));
    await using server = await packageServer(
      [{ name: 'own', format: 'apt', folder: own, distributions: [], components: ['main'] }],
      noKey,
    );
    const get = (url: string, headers = {}) => server.inject({ url, headers });

    const file = '/own/pool/docker-ce_5%253a20.10%2bx~y.deb';
    expect(await get(file)).toMatchObject({ statusCode: 200, body: '0123456789', headers: { 'content-length': '10' } });
    expect(await get(file, { range: 'bytes=2-4' })).toMatchObject({ statusCode: 206, body: '234' });
    expect(await server.inject({ method: 'HEAD', url: file })).toMatchObject({
      statusCode: 200,
      body: '',
      headers: { 'content-length': '10' },
    });
    expect((await get('/own/latest.deb')).body).toBe('0123456789');
    const refused = [
      '/own/out',
      '/own/way-out/secret',
      '/own/../other/secret',
      '/own/%2e%2e/other/secret',
      '/own/..%2fother%2fsecret',
      '/own//etc/passwd',
      '/own/.secret',
    ];
    for (const url of [...refused, '/own/', '/own/pool', '/own', '/other/secret', '/own/%00', '/nothing/x']) {
      const { statusCode, body } = await get(url);
      expect([url, statusCode === 404 || statusCode === 403 || statusCode === 400, body]).toEqual([url, true, '']);
    }
    // Nothing of it stays open.
    await waitFor(async () => !(await openFiles()).some((path) => path.startsWith(folder.path)), {
      what: 'the files to be closed',
    });
    for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'] as const)
      expect((await server.inject({ method, url: file })).statusCode).toBe(405);
  });
});
