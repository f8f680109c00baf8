import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { loadConfig } from '@airdock/platform/config';
import { tempDir, waitFor } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { PackageRepositoryService } from './package-repository.service.js';
import { PackageServer } from './package-server.js';

describe('PackageRepositoryService', () => {
  it('says of each folder whether hosts can use it, and what to do if not', async () => {
    await using folder = await tempDir('repositories');
    const at = (path: string) => join(folder.path, path);
    for (const path of ['flat', 'suites/dists/bookworm', 'el/9/repodata', 'bare', 'bare-el'])
      await mkdir(at(path), { recursive: true });
    for (const path of [
      'flat/Packages',
      'suites/dists/bookworm/Release',
      'el/9/repodata/repomd.xml',
      'bare/a_1_all.deb',
      'bare-el/a.rpm',
    ])
      await writeFile(at(path), '');
    const repositories = [
      { name: 'flat', format: 'apt' },
      { name: 'suites', format: 'apt', distributions: ['bookworm'] },
      { name: 'el', format: 'yum', distributions: ['9'] },
      { name: 'bare', format: 'apt' },
      { name: 'bare-el', format: 'yum' },
      { name: 'nowhere', format: 'yum' },
      { name: 'other-suite', format: 'apt', folder: at('suites'), distributions: ['bookworm', 'trixie'] },
    ].map((one) => ({ folder: at(one.name), ...one }));
    const config = loadConfig({
      file: '/dev/null',
      environment: {},
      overrides: { dataDir: at('data'), 'packages.repositories': repositories },
    });
    const service = new PackageRepositoryService(config);
    const states = async () => Object.fromEntries((await service.list()).map(({ name, state }) => [name, state]));
    const unusable = {
      bare: 'metadata_missing',
      'bare-el': 'metadata_missing',
      nowhere: 'folder_unreadable',
      'other-suite': 'metadata_missing',
    };
    expect(await states()).toEqual({ flat: 'not_served', suites: 'not_served', el: 'not_served', ...unusable });

    const server = new PackageServer(config, service);
    server.onApplicationBootstrap();
    try {
      await waitFor(async () => (await states()).flat === 'ready', { what: 'the packages to be served' });
      expect(await states()).toEqual({ flat: 'ready', suites: 'ready', el: 'ready', ...unusable });
      const steps = Object.fromEntries((await service.list()).map(({ name, nextStep }) => [name, nextStep]));
      expect([steps.flat, steps.bare, steps['bare-el']]).toEqual([
        null,
        `Make it: cd ${at('bare')} && apt-ftparchive packages . >Packages`,
        `Make it: createrepo_c ${at('bare-el')}`,
      ]);
    } finally {
      await server.beforeApplicationShutdown();
    }
    expect((await states()).flat).toBe('not_served');
  });

  it('takes one that never answers for no server, removes what a dead one has left, and finds no metadata outside of the folder', async () => {
    await using folder = await tempDir('repositories');
    const at = (path: string) => join(folder.path, path);
    for (const path of ['flat', 'linked', 'data/run/packages']) await mkdir(at(path), { recursive: true });
    await writeFile(at('flat/Packages'), '');
    await symlink(at('flat/Packages'), at('linked/Packages'));
    const repositories = ['flat', 'linked'].map((name) => ({ name, format: 'apt', folder: at(name) }));
    const config = loadConfig({
      file: '/dev/null',
      environment: {},
      overrides: { dataDir: at('data'), 'packages.repositories': repositories },
    });
    const service = new PackageRepositoryService(config);
    const states = async () => (await service.list()).map(({ state }) => state);

    const hanging = createServer(() => undefined).listen(at('data/run/packages/1.sock'));
    await once(hanging, 'listening');
    const listener = `require('net').createServer().listen(process.argv[1].replace('PID', process.pid), () => process.kill(process.pid, 'SIGKILL'))`;
    const killed = spawn(process.execPath, ['-e', listener, at('data/run/packages/PID.sock')], { stdio: 'ignore' });
    await once(killed, 'exit');
    expect((await readdir(at('data/run/packages'))).toSorted()).toEqual(['1.sock', `${killed.pid}.sock`]);
    expect(await states()).toEqual(['not_served', 'metadata_missing']);

    const server = new PackageServer(config, service);
    server.onApplicationBootstrap();
    try {
      await waitFor(async () => (await states())[0] === 'ready', { what: 'the packages to be served' });
      expect((await readdir(at('data/run/packages'))).toSorted()).toEqual(['1.sock', `${process.pid}.sock`]);
    } finally {
      await server.beforeApplicationShutdown();
      hanging.close();
    }
  });
});
