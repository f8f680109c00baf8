/**
 * Every bundle of the generator through the library as the product uses it: opened, and copied into a registry over
 * HTTP and in its folder.
 */
import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { AppError } from '@airdock/core/errors';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { copyImages, failureOf } from '@airdock/registry/copy/copy-image';
import { RegistryStorage } from '@airdock/registry/folder/registry-storage';
import { startRegistry, type TempDir, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { hostileBundles } from '../fixtures/hostile-bundles.js';

const maxGrowthBytes = 300 * 1024 * 1024;
// What making the bundles leaves in memory is not what is measured.
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;
collectGarbage();
const baseBytes = process.memoryUsage.rss();
let peakBytes = 0;

async function watchingMemory<T>(work: () => Promise<T>): Promise<T> {
  collectGarbage();
  const sample = () => {
    peakBytes = Math.max(peakBytes, process.memoryUsage.rss());
  };
  const sampling = setInterval(sample, 10);
  try {
    return await work();
  } finally {
    sample();
    clearInterval(sampling);
  }
}

it('there are enough of them, and each has its own name', () => {
  expect(new Set(hostileBundles.map(({ name }) => name)).size).toBe(hostileBundles.length);
  expect(hostileBundles.filter(({ code }) => code).length).toBeGreaterThan(100);
});

describe.each([
  ['over HTTP', hostileBundles, false],
  // What is refused when it is opened never gets as far as a registry.
  ['in its folder', hostileBundles.filter(({ stage }) => stage === 'push'), true],
] as const)('copied into a registry %s, a bundle', (_way, bundles, isPlaced) => {
  let folder: TempDir;
  let server: TestRegistry;
  let registry: RegistryClient;
  let storage: RegistryStorage | undefined;
  const visible: string[] = [];
  beforeAll(async () => {
    folder = await tempDir('hostile');
    server = await startRegistry();
    registry = new RegistryClient(server.url);
    const id = isPlaced ? await RegistryStorage.enable(server.storageDir, registry) : undefined;
    if (id) storage = await RegistryStorage.open({ folder: server.storageDir, id });
    if (isPlaced && !storage) throw new Error('the registry does not keep its blobs where it should');
    // What a path out of the bundle or of the work folder would hit.
    for (const name of ['evil', 'etc/shadow', 'etc/passwd', 'up/evil', 'up/etc/shadow', 'up/manifest.json']) {
      await mkdir(join(folder.path, name, '..'), { recursive: true });
      await writeFile(join(folder.path, name), 'canary');
    }
  });
  afterAll(async () => {
    await registry?.close();
    await server?.stop();
    await folder?.remove();
  });

  const bundle = () => join(folder.path, 'up', 'in', 'bundle');
  const workDir = () => join(folder.path, 'up', 'work');
  beforeEach(() => mkdir(join(bundle(), '..'), { recursive: true }));
  afterEach(async () => {
    for (const path of [bundle(), workDir()]) await rm(path, { recursive: true, force: true });
  });

  /** All there is outside of the work folder. */
  const outside = async () => {
    const entries = (await readdir(folder.path, { recursive: true }))
      .filter((name) => !/^up\/work(\/|$)/.test(name))
      .sort();
    return Promise.all(
      entries.map(async (name) => [
        name,
        await stat(join(folder.path, name)).then((status) => status.isFile() && [status.size, status.mtimeMs]),
      ]),
    );
  };
  const tags = async () => {
    const found: string[] = [];
    for (const repository of await registry.listRepositories())
      for (const tag of await registry.listTags(repository)) found.push(`${repository}:${tag}`);
    return found.sort();
  };
  /**
   * Files of copies that ended in the middle. Of a session that was cancelled distribution 2 keeps the state of the
   * hash; the session is gone.
   */
  const halves = async () =>
    (await readdir(server.storageDir, { recursive: true })).filter((name) =>
      /\/_uploads\/.*\/(data|startedat)$|\.part$|airdock-incoming\//.test(name),
    );

  async function copy(index: number): Promise<void> {
    await using source = await openBundle(bundle(), { workDir: workDir() });
    const images = source.images.map((image, number) => ({
      image,
      names: [{ repository: `bundle-${index}/image-${number}`, tag: 'v1' }],
    }));
    const failure = failureOf(await copyImages({ source, images, registry, storage, retry: { attempts: 1 } }));
    if (failure) throw failure;
    visible.push(...images.flatMap(({ names }) => names.map(({ repository, tag }) => `${repository}:${tag}`)));
  }

  it.each(bundles.map((bundleCase, index) => ({ ...bundleCase, index, outcome: bundleCase.code ?? 'is taken' })))(
    '$name: $outcome',
    async ({ index, code, stage, details, write }) => {
      await write(bundle());
      const before = await outside();
      const count = visible.length;
      const error = await watchingMemory(() => copy(index)).then(
        () => undefined,
        (reason: unknown) => reason,
      );
      if (code === undefined && error !== undefined) throw error;
      expect(error instanceof AppError ? error.code : error).toBe(code);
      if (details) expect((error as AppError).details).toMatchObject(details);
      expect(visible.length > count).toBe(code === undefined);
      expect(await tags()).toEqual([...visible].sort());
      expect(await halves()).toEqual([]);
      expect(await outside()).toEqual(before);
      const left = await readdir(workDir(), { recursive: true }).catch(() => []);
      // Complete layers of good images may stay for later runs.
      expect(
        left.filter((name) => !(code === undefined && /^layers(\/[0-9a-f]{64}\.tar\.gz(\.json)?)?$/.test(name))),
      ).toEqual([]);
      if (stage === 'read') expect(left).toEqual([]);
    },
  );
});

it('none of them takes much memory', () => {
  expect(peakBytes - baseBytes).toBeLessThan(maxGrowthBytes);
});
