import { truncate as cut, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { buildDockerArchive, buildOciArchive, makeImage, makeIndex } from '@airdock/testing/bundles';
import { startRegistry, type TempDir, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { blobPath, layerPath, registryRoot, revisionPath, tagPath } from '../folder/registry-layout.js';
import { RegistryStorage } from '../folder/registry-storage.js';
import { copyImages, type ImagePart } from './copy-image.js';
import { planCopy } from './plan-copy.js';

const retry = { delayMs: 1, maxDelayMs: 5 };
const repository = 'deep/app';

/** What a power cut, a bad disk or a full one leaves in the folder of a registry that runs; by the kind of file. */
const damages: Record<string, (path: string) => Promise<void>> = {
  'is empty': (path) => cut(path),
  'is cut off': async (path) => cut(path, Math.floor((await stat(path)).size / 2)),
  'has other bytes': async (path) => {
    const bytes = await readFile(path);
    await writeFile(
      path,
      bytes.map((byte) => byte ^ 1),
    );
  },
  'is gone': (path) => rm(path),
};
const hows = Object.keys(damages);
/** Of what is larger than what is read by a push the bytes are verified by verifications. */
const cases = [
  'root',
  'child',
  'config',
  'layer',
  'tag link',
  'revision link',
  'child revision link',
  'layer link',
].flatMap((what) =>
  hows
    .filter((how) => !((what === 'layer' || what === 'layer link') && how === 'has other bytes'))
    .map((how) => [what, how] as const),
);

describe.each(['placed in its folder', 'pushed over HTTP'])(
  'a registry whose storage is damaged, where blobs are %s',
  (way) => {
    let dir: TempDir;
    let server: TestRegistry;
    let registry: RegistryClient;
    let folder: RegistryStorage;
    let file: string;
    let parts: ImagePart[];
    let root: Digest;

    const options = async () => {
      const source = await openBundle(file, { workDir: join(dir.path, 'work') });
      const images = source.images.map((image) => ({ image, names: [{ repository, tag: '1' }] }));
      return {
        source,
        images,
        registry,
        retry,
        ...(way.startsWith('placed') ? { storage: folder } : { repairs: folder }),
      };
    };
    const push = async ({ repairs = true } = {}) => {
      const given = await options();
      await using _source = given.source;
      const [copied] = await copyImages(repairs ? given : { ...given, repairs: undefined });
      return copied;
    };
    const plan = async () => {
      const given = await options();
      await using _source = given.source;
      return (await planCopy(given)).images[0]?.state;
    };
    /** Everything that a pull of the image gets, by GET. */
    const pull = async () => {
      const digests: Digest[] = [];
      expect((await registry.getManifest(repository, '1'))?.digest).toBe(root);
      for (const { digest, kind } of parts) {
        const chunks: Buffer[] = [];
        if (kind === 'manifest')
          chunks.push((await registry.getManifest(repository, digest))?.bytes ?? Buffer.alloc(0));
        else for await (const chunk of await registry.getBlob(repository, digest)) chunks.push(chunk as Buffer);
        digests.push(digestOf(Buffer.concat(chunks)));
      }
      expect(digests).toEqual(parts.map(({ digest }) => digest));
    };
    const fileOf = (what: string): string => {
      const manifests = parts.filter(({ kind }) => kind === 'manifest').map(({ digest }) => digest);
      const ofKind = (wanted: ImagePart['kind']) =>
        parts.filter(({ kind }) => kind === wanted).toSorted((a, b) => b.size - a.size)[0]?.digest as Digest;
      const child = manifests.find((digest) => digest !== root) ?? root;
      const paths: Record<string, string> = {
        root: `${blobPath(root)}/data`,
        child: `${blobPath(child)}/data`,
        config: `${blobPath(ofKind('config'))}/data`,
        layer: `${blobPath(ofKind('layer'))}/data`,
        'tag link': `${tagPath(repository, '1')}/current/link`,
        'revision link': `${revisionPath(repository, root)}/link`,
        'child revision link': `${revisionPath(repository, child)}/link`,
        'layer link': `${layerPath(repository, ofKind('layer'))}/link`,
      };
      return join(registryRoot(server.storageDir), paths[what] ?? '');
    };

    beforeEach(async () => {
      dir = await tempDir('damaged');
      server = await startRegistry();
      registry = new RegistryClient(server.url);
      const id = (await RegistryStorage.enable(server.storageDir, registry)) as string;
      folder = (await RegistryStorage.open({ folder: server.storageDir, id })) as RegistryStorage;
      file = join(dir.path, 'bundle.tar');
      const platforms = await Promise.all(
        ['amd64', 'arm64'].map((architecture) =>
          makeImage({
            name: [],
            layers: [{ randomBytes: 200_000, seed: architecture }],
            platform: { os: 'linux', architecture },
          }),
        ),
      );
      await buildOciArchive(file, [makeIndex('reg.site/app:1', platforms)]);
      const copied = await push();
      if (copied?.error) throw copied.error;
      parts = copied?.parts ?? [];
      root = copied?.digest as Digest;
      await pull();
    });
    afterEach(async () => {
      await registry.close();
      await server.stop();
      await dir.remove();
    });

    it.each(cases)('is mended by the next push when a file of the kind %s %s', async (what, how) => {
      expect(await plan()).toBe('present');
      await damages[how]?.(fileOf(what));
      await expect(pull()).rejects.toBeDefined();
      expect(await plan()).not.toBe('present');
      const copied = await push();
      expect([copied?.error, copied?.digest]).toEqual([undefined, root]);
      await pull();
      expect(await plan()).toBe('present');
    });

    it('that nobody else can mend is not told to have the image', async () => {
      if (way.startsWith('placed')) return;
      for (const [what, how] of [
        ['root', 'is empty'],
        ['child', 'is cut off'],
        ['layer', 'is cut off'],
      ] as const) {
        const bytes = await readFile(fileOf(what));
        await damages[how]?.(fileOf(what));
        const copied = await push({ repairs: false });
        expect(copied?.error, what).toMatchObject({
          code: expect.stringMatching(/images_damaged|registry_rejected|registry_unavailable/) as string,
        });
        await writeFile(fileOf(what), bytes);
        await pull();
      }
    });

    it('is mended with layers that are compressed for it, which may be second names of its own files', async () => {
      await buildDockerArchive(file, [
        await makeImage({ name: 'reg.site/app:1', layers: [{ randomBytes: 300_000, seed: 'x' }] }),
      ]);
      const copied = await push();
      expect(copied?.error).toBeUndefined();
      parts = copied?.parts ?? [];
      root = copied?.digest as Digest;
      await pull();
      for (const how of ['is empty', 'is cut off', 'is gone']) {
        await damages[how]?.(fileOf('layer'));
        expect((await push())?.error, how).toBeUndefined();
        await pull();
      }
    });
  },
);
