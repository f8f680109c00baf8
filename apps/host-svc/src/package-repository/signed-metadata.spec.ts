import { execFileSync } from 'node:child_process';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { packageServer } from './package-server.js';
import { RepositoryKey } from './repository-key.js';

describe('signed metadata', () => {
  let folder: TempDir;
  const at = (path: string) => join(folder.path, path);
  beforeEach(async () => {
    folder = await tempDir('signed-metadata');
    for (const path of [
      'own/dists/x',
      'own/dists/real',
      'own/flat',
      'own/9/repodata',
      'outside/dists/x',
      'outside/repodata',
    ])
      await mkdir(at(path), { recursive: true });
    for (const path of ['secret', 'dists/x/Release', 'Packages', 'repodata/repomd.xml'])
      await writeFile(at(`outside/${path}`), 'top secret');
  });
  afterEach(() => folder.remove());

  /** The status of each answer, and whether it speaks of the secret. */
  async function ask(
    format: 'apt' | 'yum',
    distributions: string[],
    files: string[],
  ): Promise<Record<string, number | string>> {
    const key = await RepositoryKey.open(at('key.asc'));
    await using server = await packageServer(
      [{ name: 'own', format, folder: at('own'), distributions, components: ['main'] }],
      async () => key,
    );
    const answers: Record<string, number | string> = {};
    for (const file of files) {
      const { statusCode, body } = await server.inject({ url: `/own/${file}` });
      answers[file] = statusCode === 200 ? body : statusCode;
    }
    return answers;
  }

  it.each(['Release', 'InRelease'])(
    'is not made of a link that leads out of the folder, nor of a pipe: %s',
    async (source) => {
      const files = ['dists/x/Release', 'dists/x/InRelease', 'dists/x/Release.gpg'];
      const nothing = Object.fromEntries(files.map((file) => [file, 404]));
      await symlink(at('outside/secret'), at(`own/dists/x/${source}`));
      expect(await ask('apt', ['x'], files)).toEqual(nothing);
      execFileSync('rm', [at(`own/dists/x/${source}`)]);
      execFileSync('mkfifo', [at(`own/dists/x/${source}`)]);
      expect(await ask('apt', ['x'], files)).toEqual(nothing);
    },
  );

  it('is not made of a folder that leads out of the folder, but of links within it', async () => {
    await symlink(at('outside/dists/x'), at('own/dists/out'));
    await writeFile(at('own/dists/real/Release'), 'Suite: real\n');
    await symlink('real', at('own/dists/stable'));
    const answers = await ask(
      'apt',
      ['out', 'stable'],
      ['dists/out/Release', 'dists/out/InRelease', 'dists/stable/Release'],
    );
    expect(answers).toEqual({
      'dists/out/Release': 404,
      'dists/out/InRelease': 404,
      'dists/stable/Release': 'Suite: real\n',
    });
  });

  it('of a flat folder and of yum has nothing of outside either', async () => {
    await symlink(at('outside/Packages'), at('own/Packages'));
    await symlink(at('outside/repodata/repomd.xml'), at('own/9/repodata/repomd.xml'));
    expect(await ask('apt', [], ['Release', 'InRelease'])).toEqual({ Release: 404, InRelease: 404 });
    expect(await ask('yum', ['9'], ['9/repodata/repomd.xml.asc', '9/repodata/repomd.xml'])).toEqual({
      '9/repodata/repomd.xml.asc': 404,
      '9/repodata/repomd.xml': 404,
    });
  });
});
