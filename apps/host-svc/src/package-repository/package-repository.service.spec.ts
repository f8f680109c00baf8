import { mkdir, writeFile } from 'node:fs/promises';
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
    for (const path of ['flat', 'suites/dists/bookworm', 'el/9/repodata', 'bare', 'bare-el']) await mkdir(at(path), { recursive: true });
    for (const path of ['flat/Packages', 'suites/dists/bookworm/Release', 'el/9/repodata/repomd.xml', 'bare/a_1_all.deb', 'bare-el/a.rpm'])
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
    const config = loadConfig({ file: '/dev/null', environment: {}, overrides: { dataDir: at('data'), 'packages.repositories': repositories } });
    const service = new PackageRepositoryService(config);
    const states = async () => Object.fromEntries((await service.list()).map(({ name, state }) => [name, state]));
    const unusable = { bare: 'metadata_missing', 'bare-el': 'metadata_missing', nowhere: 'folder_unreadable', 'other-suite': 'metadata_missing' };
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
});
