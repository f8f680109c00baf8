import { execFile } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import { buildDockerArchive, buildOciArchive, flipByteIn, makeImage, makeIndex } from '@airdock/testing/bundles';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openBundle } from './bundle.js';
import { writeDockerArchive } from './docker-archive-writer.js';

const run = promisify(execFile);
const amd64 = { os: 'linux', architecture: 'amd64' };
const arm64 = { os: 'linux', architecture: 'arm64' };
const base = { files: { 'bin/sh': 'shell' } };

let dir: TempDir;
let file: string;
let out: string;
beforeEach(async () => {
  dir = await tempDir('writer');
  file = join(dir.path, 'bundle.tar');
  out = join(dir.path, 'out.tar');
});
afterEach(() => dir.remove());

const open = (path = file) => openBundle(path, { workDir: join(dir.path, 'work') });

describe('writeDockerArchive', () => {
  it('writes images of any source so that skopeo finds the same configuration and layers', async () => {
    const images = await Promise.all(
      ['a', 'b'].map((name) =>
        makeImage({ name: `reg.site/${name}:1`, layers: [base, { randomBytes: 2_500_000, seed: name }] }),
      ),
    );
    await buildDockerArchive(file, images);
    const source = await open();
    const toLoad = source.images.map((image) => ({
      image,
      repoTags: image.names.map((name) => name.replace('reg.site', 'localhost:5100')),
    }));
    await pipeline(writeDockerArchive(source, toLoad, amd64), createWriteStream(out));
    // Reading all layers, skopeo checks them against the diff IDs of the configuration.
    for (const [index, name] of ['a', 'b'].entries()) {
      const target = join(dir.path, name);
      await run('skopeo', [
        'copy',
        '--insecure-policy',
        `docker-archive:${out}:localhost:5100/${name}:1`,
        `dir:${target}`,
      ]);
      const { stdout } = await run('skopeo', ['inspect', '--config', '--raw', `dir:${target}`]);
      expect(stdout).toBe(images[index]?.config.toString());
    }
    const { stdout } = await run('tar', ['-tf', out]);
    expect(stdout.match(/layer\.tar/g)).toHaveLength(3);
    expect((await open(out)).images.map(({ names }) => names)).toEqual([
      ['localhost:5100/a:1'],
      ['localhost:5100/b:1'],
    ]);
  });

  it('takes the platform that is asked for, and says when it is not there', async () => {
    const images = await Promise.all(
      [amd64, arm64].map((platform) => makeImage({ name: [], layers: [base], platform })),
    );
    await buildOciArchive(file, [makeIndex('reg.site/a:1', images, { attestation: true })]);
    const source = await open();
    const toLoad = source.images.map((image) => ({ image, repoTags: ['localhost:5100/a:1'] }));
    await pipeline(writeDockerArchive(source, toLoad, arm64), createWriteStream(out));
    expect((await open(out)).images[0]).toMatchObject({
      platforms: [{ architecture: 'arm64' }],
      configDigests: [images[1]?.configDigest],
    });
    const missing = pipeline(
      writeDockerArchive(source, toLoad, { os: 'linux', architecture: 's390x' }),
      createWriteStream(out),
    );
    await expect(missing).rejects.toMatchObject({
      code: 'image_not_found',
      message: expect.stringContaining('linux/s390x'),
    });
  });

  it('breaks off when a layer is damaged, when aborted, and when the reader goes away', async () => {
    const image = await makeImage({ name: 'reg.site/a:1', layers: [{ randomBytes: 20_000_000 }] });
    await buildOciArchive(file, [image]);
    const source = await open();
    const toLoad = source.images.map((item) => ({ image: item, repoTags: ['localhost:5100/a:1'] }));
    for await (const chunk of writeDockerArchive(source, toLoad, amd64)) {
      expect((chunk as Buffer).byteLength).toBeGreaterThan(0);
      break;
    }
    const aborted = pipeline(
      writeDockerArchive(source, toLoad, amd64, AbortSignal.abort(new Error('enough'))),
      createWriteStream(out),
    );
    await expect(aborted).rejects.toThrow('enough');
    await flipByteIn(file, image.layers[0]?.gzip ?? Buffer.alloc(0));
    await expect(pipeline(writeDockerArchive(source, toLoad, amd64), createWriteStream(out))).rejects.toMatchObject({
      code: 'digest_mismatch',
    });
  });
});
