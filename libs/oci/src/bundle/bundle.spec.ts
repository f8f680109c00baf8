import { execFile } from 'node:child_process';
import { appendFile, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { promisify } from 'node:util';
import { gunzipSync, gzipSync } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import type { Descriptor } from '@airdock/core/oci/manifest';
import {
  addArtifact,
  breakConfig,
  buildDockerArchive,
  buildOciArchive,
  buildOciLayout,
  buildRandomFile,
  flipByteIn,
  type MemberHeader,
  makeImage,
  makeIndex,
  truncateFile,
  withMember,
} from '@airdock/testing/bundles';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LayerCache } from '../compression/layer-cache.js';
import type { ImageSource } from '../image/image-source.js';
import { openBundle } from './bundle.js';

const run = promisify(execFile);
const pause = { name: 'k8s.gcr.io/pause:3.2', layers: [{ files: { pause: 'static binary' } }] };
const base = { files: { 'bin/sh': 'shell' } };

let dir: TempDir;
let file: string;
let workDir: string;
beforeEach(async () => {
  dir = await tempDir('bundle');
  file = join(dir.path, 'bundle.tar');
  workDir = join(dir.path, 'work');
});
afterEach(async () => {
  for (const source of opened.splice(0)) await source[Symbol.asyncDispose]();
  await dir.remove();
});

const opened: ImageSource[] = [];
async function open(path = file): Promise<ImageSource> {
  const source = await openBundle(path, { workDir });
  opened.push(source);
  return source;
}
const failure = async (work: Promise<ImageSource>): Promise<AppError> => {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(AppError);
  return error as AppError;
};
const left = () => readdir(workDir, { recursive: true }).catch(() => []);

describe('what bundles are read', () => {
  it('reads a docker-archive with links between layers', async () => {
    const images = [
      await makeImage({ ...pause, layers: [base, ...pause.layers] }),
      await makeImage({ name: ['nginx:1.21', 'nginx:latest'], layers: [base, { randomBytes: 5000 }] }),
    ];
    await buildDockerArchive(file, images);
    const source = await open();
    expect(source.format).toBe('docker-archive');
    expect(source.images.map(({ names }) => names)).toEqual([
      ['k8s.gcr.io/pause:3.2'],
      ['docker.io/library/nginx:1.21', 'docker.io/library/nginx:latest'],
    ]);
    expect(source.images.map(({ configDigests }) => configDigests)).toEqual(
      images.map(({ configDigest }) => [configDigest]),
    );
    expect(await left()).toEqual([]);
  });

  it('gives a docker-archive the same digest every time, and compresses a layer once', async () => {
    await buildDockerArchive(file, [await makeImage({ ...pause, layers: [{ randomBytes: 3_000_000 }] })]);
    const digests = [];
    for (let round = 0; round < 2; round++) {
      const source = await open();
      const [image] = source.images;
      if (!image) throw new Error('no image');
      const done: number[] = [];
      const root = await source.prepare(image, { onProgress: (bytes) => done.push(bytes) });
      expect(done.at(-1)).toBe(image.sizeBytes);
      digests.push(root.digest);
      expect((await source.readManifest(root.digest)).byteLength).toBe(root.size);
    }
    expect(digests[0]).toBe(digests[1]);
    expect((await left()).filter((name) => name.endsWith('.tar.gz'))).toHaveLength(1);
  });

  it.each(['igzip', 'pigz', 'zlib'])('compresses with %s so that the layer comes out the same', async (program) => {
    const [layer] = (await makeImage({ ...pause, layers: [{ randomBytes: 3_000_000 }] })).layers;
    if (!layer) throw new Error('no layer');
    const reader = { size: layer.tar.byteLength, open: () => Readable.from([layer.tar], { objectMode: false }) };
    const digests = [];
    for (const folder of ['a', 'b']) {
      const compressed = await new LayerCache(join(workDir, folder), [program]).get(layer.diffId, 'layer.tar', reader);
      const bytes = await readFile(compressed.path);
      expect(digestOf(bytes)).toBe(compressed.digest);
      expect(digestOf(gunzipSync(bytes))).toBe(layer.diffId);
      digests.push(compressed.digest);
    }
    expect(digests[0]).toBe(digests[1]);
  });

  it('takes layers of a docker-archive that are compressed already as they are', async () => {
    const image = await makeImage(pause);
    await buildDockerArchive(file, [image], { gzipLayers: true });
    const source = await open();
    const [only] = source.images;
    const root = only && (await source.prepare(only));
    const manifest = JSON.parse(
      Buffer.from(await source.readManifest(root?.digest ?? image.configDigest)).toString(),
    ) as { layers: { digest: string }[] };
    expect(manifest.layers[0]?.digest).toBe(image.layers[0]?.digest);
    expect(await left()).toEqual([]);
  });

  it.each(['ref.name', 'containerd'] as const)('finds names in %s annotations of an OCI archive', async (names) => {
    const [root] = await buildOciArchive(file, [await makeImage(pause)], { names });
    const source = await open();
    expect(source.format).toBe('oci-archive');
    expect(source.images[0]).toMatchObject({ names: ['k8s.gcr.io/pause:3.2'], root });
  });

  it('reads a multi-platform image with its attestation', async () => {
    const images = await Promise.all(
      ['amd64', 'arm64'].map((architecture) => makeImage({ ...pause, platform: { os: 'linux', architecture } })),
    );
    const [root] = await buildOciArchive(file, [makeIndex('registry.k8s.io/pause:3.9', images, { attestation: true })]);
    const source = await open();
    expect(source.images[0]?.root).toEqual(root);
    expect(source.images[0]?.platforms.map(({ architecture }) => architecture)).toEqual(['amd64', 'arm64']);
  });

  it('takes the ID under which containerd keeps an image a second time for no name', async () => {
    const layout = join(dir.path, 'layout');
    await mkdir(layout);
    await buildOciArchive(file, [await makeImage(pause)], { names: 'containerd', withDockerManifest: true });
    await run('tar', ['-C', layout, '-xf', file]);
    const index = JSON.parse(await readFile(join(layout, 'index.json'), 'utf8')) as { manifests: Descriptor[] };
    const [named] = index.manifests;
    index.manifests.push({
      ...named,
      annotations: { 'io.containerd.image.name': `sha256:${'a'.repeat(64)}` },
    } as Descriptor);
    await writeFile(join(layout, 'index.json'), JSON.stringify(index));
    const source = await open(layout);
    expect(source.images).toMatchObject([{ names: ['k8s.gcr.io/pause:3.2'], root: { digest: named?.digest } }]);
  });

  it('prefers the OCI index of an archive that Docker 25 wrote, so that digests stay', async () => {
    const [root] = await buildOciArchive(file, [await makeImage(pause)], {
      names: 'containerd',
      withDockerManifest: true,
    });
    const source = await open();
    expect(source.images[0]?.root).toEqual(root);
  });

  it('takes the only platform that an export of containerd holds, with its own digest', async () => {
    const images = await Promise.all(
      ['amd64', 'arm64'].map((architecture) => makeImage({ ...pause, platform: { os: 'linux', architecture } })),
    );
    await buildOciArchive(file, [makeIndex('registry.k8s.io/pause:3.9', images)], {
      names: 'containerd',
      withDockerManifest: true,
      omitPlatforms: ['linux/arm64'],
    });
    const source = await open();
    expect(source.images[0]?.platforms).toEqual([{ os: 'linux', architecture: 'amd64', variant: undefined }]);
    expect(source.images[0]?.configDigests).toEqual([images[0]?.configDigest]);
  });

  it('reads a layout in a folder', async () => {
    const folder = join(dir.path, 'layout');
    const [root] = await buildOciLayout(folder, [await makeImage(pause)]);
    const source = await open(folder);
    expect(source.format).toBe('oci-layout');
    expect(source.images[0]?.root).toEqual(root);
  });

  it.each([
    ['gzip', async (path: string) => writeFile(path, gzipSync(await readFile(path)))],
    [
      'zstd',
      async (path: string) =>
        run('zstd', ['-q', '--rm', path, '-o', `${path}.z`]).then(() => rename(`${path}.z`, path)),
    ],
    ['xz', async (path: string) => run('xz', [path]).then(() => rename(`${path}.xz`, path))],
  ])('unpacks a bundle compressed with %s, and removes it when closed', async (_name, compress) => {
    await buildDockerArchive(file, [await makeImage(pause)]);
    await compress(file);
    const source = await open();
    expect(source.images[0]?.names).toEqual(['k8s.gcr.io/pause:3.2']);
    await source[Symbol.asyncDispose]();
    expect(await left()).toEqual([]);
  });

  it('reads all frames of a zstd file that was compressed in parallel', async () => {
    await buildDockerArchive(file, [await makeImage(pause)]);
    const tar = await readFile(file);
    await writeFile(`${file}.1`, tar.subarray(0, 2048));
    await writeFile(`${file}.2`, tar.subarray(2048));
    await run('zstd', ['-q', `${file}.1`, `${file}.2`]);
    await writeFile(file, Buffer.concat([await readFile(`${file}.1.zst`), await readFile(`${file}.2.zst`)]));
    const source = await open();
    expect(source.images).toHaveLength(1);
  });
});

describe('what other tools write', () => {
  const layout = () => join(dir.path, 'layout');
  const pack = (folder: string, ...names: string[]) => run('tar', ['-C', folder, '-cf', file, ...names]);
  const compress = () => run('zstd', ['-q', '--rm', file, '-o', `${file}.zst`]).then(() => rename(`${file}.zst`, file));
  const names = (source: ImageSource) => source.images.map((image) => image.names);

  it('takes the images of a Zarf package, with signatures of images that are elsewhere as images', async () => {
    const [root] = await buildOciLayout(join(layout(), 'images'), [await makeImage(pause)]);
    const ref = { 'org.opencontainers.image.ref.name': `ghcr.io/other/app:sha256-${'5'.repeat(64)}.sig` };
    await addArtifact(join(layout(), 'images'), {
      type: 'application/vnd.dev.cosign.simplesigning.v1+json',
      text: 'signed',
      annotations: ref,
    });
    await writeFile(join(layout(), 'zarf.yaml'), 'kind: ZarfPackageConfig');
    await pack(layout(), 'zarf.yaml', 'images');
    await compress();
    const source = await open();
    expect(source.format).toBe('zarf-package');
    expect(names(source)).toEqual([['k8s.gcr.io/pause:3.2'], [ref['org.opencontainers.image.ref.name']]]);
    expect(source.images[0]?.root).toEqual(root);
    expect((await open(layout())).images).toHaveLength(2);
  });

  it.each(['dev.cosignproject.cosign', 'dev.hauler'])(
    'attaches the signatures of a haul whose kinds begin with %s to their image',
    async (prefix) => {
      const [root] = await buildOciLayout(
        layout(),
        [await makeImage({ ...pause, name: 'index.docker.io/library/pause:3.2' })],
        { names: 'containerd' },
      );
      const annotations = {
        kind: `${prefix}/sigs`,
        'io.containerd.image.name': 'index.docker.io/library/pause:3.2',
        'org.opencontainers.image.ref.name': 'library/pause:3.2',
      };
      const signature = await addArtifact(layout(), {
        type: 'application/vnd.dev.cosign.simplesigning.v1+json',
        text: 'signed',
        annotations,
      });
      await pack(layout(), '.');
      await compress();
      const source = await open();
      expect(names(source)).toEqual([['docker.io/library/pause:3.2']]);
      expect(source.images[0]?.companions).toEqual([
        { root: signature, subject: root?.digest, tag: `sha256-${digestHex(root?.digest as Digest)}.sig` },
      ]);
    },
  );

  it.each([
    ['split -b', ['-b', '60000', '-a', '3'], 'bundle.tar.'],
    ['split -d', ['-b', '60000', '-d'], 'bundle.tar.part'],
  ])('joins what %s made, and names a part that is missing', async (_tool, options, prefix) => {
    const image = await makeImage({ ...pause, layers: [{ randomBytes: 300_000 }] });
    await buildOciArchive(file, [image]);
    const whole = await readFile(file);
    await run('split', [...options, file, join(dir.path, prefix)]);
    await rm(file);
    const parts = (await readdir(dir.path)).filter((name) => name.startsWith(prefix)).sort();
    expect(parts.length).toBeGreaterThan(4);
    const first = join(dir.path, parts[0] ?? '');
    const source = await open(first);
    expect(names(source)).toEqual([['k8s.gcr.io/pause:3.2']]);
    const layer = image.layers[0];
    const reader = await source.blob({
      mediaType: '',
      digest: layer?.digest as Digest,
      size: layer?.gzip.byteLength ?? 0,
    });
    expect(digestOf(await buffer(reader.open()))).toBe(layer?.digest);
    expect(Buffer.concat([await buffer(reader.open({ start: 100_000 }))])).toEqual(layer?.gzip.subarray(100_000));
    expect(whole.byteLength).toBeGreaterThan(300_000);
    await rm(join(dir.path, parts[2] ?? ''));
    expect(await failure(open(first))).toMatchObject({ code: 'bundle_truncated', details: { missing: parts[2] } });
  });

  it('joins the parts of a Zarf package by the header that its first part is', async () => {
    await buildOciLayout(join(layout(), 'images'), [await makeImage(pause)]);
    await writeFile(join(layout(), 'zarf.yaml'), 'kind: ZarfPackageConfig');
    await pack(layout(), '.');
    await compress();
    const bytes = await readFile(file);
    const part = (number: number) => join(dir.path, `package.tar.zst.part00${number}`);
    await writeFile(
      part(0),
      JSON.stringify({ sha256Sum: digestHex(digestOf(bytes)), bytes: bytes.byteLength, count: 2 }),
    );
    await writeFile(part(1), bytes.subarray(0, 500));
    await writeFile(part(2), bytes.subarray(500));
    expect((await open(part(0))).format).toBe('zarf-package');
    await rm(part(2));
    expect((await failure(open(part(0)))).code).toBe('bundle_truncated');
  });

  it('names what has no name in the bundle by digest, image ID or tag, as it is told', async () => {
    const image = await makeImage(pause);
    const [root] = await buildOciArchive(file, [image], { names: 'tag-only' });
    for (const key of [root?.digest ?? '', '3.2'])
      expect(names(await openBundle(file, { workDir, names: { [key]: 'quay.io/given:1' } }))).toEqual([
        ['quay.io/given:1'],
      ]);
    await buildDockerArchive(file, [await makeImage({ ...pause, name: [] })]);
    expect(names(await openBundle(file, { workDir, names: { [image.configDigest]: ['pause:a', 'pause:b'] } }))).toEqual(
      [['docker.io/library/pause:a', 'docker.io/library/pause:b']],
    );
  });

  it('finds lists of images beside them', async () => {
    await buildOciLayout(layout(), [await makeImage(pause)]);
    await writeFile(join(layout(), 'kubernetes-images.txt'), '# Kubernetes\nk8s.gcr.io/pause:3.2\n\nnginx\n');
    await writeFile(join(layout(), 'images.txt'), 'These are the images of our product.\n');
    const lists = [
      { name: 'kubernetes-images.txt', images: ['k8s.gcr.io/pause:3.2', 'docker.io/library/nginx:latest'] },
    ];
    expect((await open(layout())).lists).toEqual(lists);
    await pack(layout(), 'oci-layout', 'index.json', 'blobs', 'images.txt', 'kubernetes-images.txt');
    expect((await open()).lists).toEqual(lists);
  });

  it('makes an index of the platforms that an export holds, when they are several', async () => {
    const images = await Promise.all(
      ['amd64', 'arm64', 's390x'].map((architecture) =>
        makeImage({ ...pause, platform: { os: 'linux', architecture } }),
      ),
    );
    await buildOciArchive(file, [makeIndex('registry.k8s.io/pause:3.9', images)], {
      names: 'containerd',
      withDockerManifest: true,
      omitPlatforms: ['linux/s390x'],
    });
    const source = await open();
    expect(source.images[0]?.platforms.map(({ architecture }) => architecture)).toEqual(['amd64', 'arm64']);
    expect((await source.readManifest(source.images[0]?.root?.digest as Digest)).byteLength).toBe(
      source.images[0]?.root?.size,
    );
  });
});

describe('what is refused', () => {
  it.each<[string, MemberHeader]>([
    ['a name that leaves the archive', { name: '../evil' }],
    ['a name that leaves it later', { name: 'a/../../evil' }],
    ['an absolute name', { name: '/etc/cron.d/evil' }],
    ['a name with control characters', { name: 'a\u001b[2Jb' }],
    ['an absolute link', { name: 'layer.tar', type: 'symlink', linkname: '/etc/shadow' }],
    ['a link that leaves the archive', { name: 'a/layer.tar', type: 'symlink', linkname: '../../etc/shadow' }],
    ['a hard link that leaves the archive', { name: 'layer.tar', type: 'link', linkname: '../shadow' }],
    ['a device', { name: 'sda', type: 'block-device' }],
    ['a pipe', { name: 'pipe', type: 'fifo' }],
    ['a second manifest.json', { name: './manifest.json' }],
  ])('refuses %s', async (_what, header) => {
    await buildDockerArchive(file, [await makeImage(pause)]);
    await withMember(file, header);
    expect((await failure(open())).code).toBe('bundle_unsafe');
    expect(await left()).toEqual([]);
  });

  it('finds nothing behind a loop of links', async () => {
    const image = await makeImage(pause);
    await buildDockerArchive(file, [image]);
    await rename(file, `${file}.2`);
    await writeFile(file, '');
    const { pack } = await import('tar-stream');
    const tar = pack();
    const config = `${digestHex(image.configDigest)}.json`;
    tar.entry({ name: 'a', type: 'symlink', linkname: 'b' });
    tar.entry({ name: 'b', type: 'symlink', linkname: 'a' });
    tar.entry({ name: config }, image.config);
    tar.entry({ name: 'manifest.json' }, JSON.stringify([{ Config: config, RepoTags: image.names, Layers: ['a'] }]));
    tar.finalize();
    for await (const chunk of tar) await appendFile(file, chunk as Buffer);
    expect(await failure(open())).toMatchObject({ code: 'bundle_corrupt', details: { member: 'a' } });
  });

  it('says how many bytes a truncated bundle lacks', async () => {
    await buildDockerArchive(file, [await makeImage({ ...pause, layers: [{ randomBytes: 100_000 }] })]);
    await truncateFile(file, 50_000);
    const error = await failure(open());
    expect(error.code).toBe('bundle_truncated');
    expect(error.details.missingBytes).toBeGreaterThan(50_000);
  });

  it('calls a bundle that was cut between two members truncated too', async () => {
    await buildOciArchive(file, [await makeImage(pause)]);
    // index.json is the last member: its header, its content in one or more blocks, and the end of the archive.
    await truncateFile(file, (await readFile(file)).lastIndexOf('index.json'));
    expect((await failure(open())).code).toBe('bundle_truncated');
  });

  it('calls a truncated compressed bundle truncated', async () => {
    await buildDockerArchive(file, [await makeImage({ ...pause, layers: [{ randomBytes: 100_000 }] })]);
    const tar = await readFile(file);
    for (const compressed of [
      gzipSync(tar),
      (await run('zstd', ['-qc', file], { encoding: 'buffer' })).stdout,
      (await run('xz', ['-c', file], { encoding: 'buffer' })).stdout,
    ]) {
      await writeFile(file, compressed.subarray(0, 60_000));
      expect((await failure(open())).code).toBe('bundle_truncated');
    }
    expect(await left()).toEqual([]);
  });

  it('does not even begin to unpack what is no tar', async () => {
    await writeFile(file, gzipSync(Buffer.alloc(100_000)));
    expect((await failure(open())).code).toBe('bundle_format_unknown');
    expect(await left()).toEqual([]);
  });

  it('refuses files that are no bundles, whatever they are', async () => {
    await buildRandomFile(file);
    expect((await failure(open())).code).toBe('bundle_format_unknown');
    for (const content of ['', 'short', Buffer.alloc(4096)]) {
      await writeFile(file, content);
      expect((await failure(open())).code).toBe('bundle_format_unknown');
    }
    await rm(file);
    expect((await failure(open())).code).toBe('bundle_not_found');
    expect((await failure(openBundle('/dev/zero', { workDir }))).code).toBe('bundle_format_unknown');
    expect((await failure(openBundle(dir.path, { workDir }))).code).toBe('bundle_format_unknown');
  });

  it('refuses a configuration that does not have the digest of its name', async () => {
    const image = await makeImage(pause);
    await buildDockerArchive(file, [image]);
    await breakConfig(file, image);
    expect((await failure(open())).code).toBe('digest_mismatch');
  });

  it('refuses an OCI manifest that does not have its digest', async () => {
    const image = await makeImage(pause);
    await buildOciArchive(file, [image]);
    await flipByteIn(
      file,
      Buffer.from(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config"`),
    );
    expect((await failure(open())).code).toBe('digest_mismatch');
  });

  it('names the layer of a docker-archive that is damaged, and keeps nothing of it', async () => {
    const image = await makeImage({ ...pause, layers: [{ randomBytes: 2_000_000 }] });
    await buildDockerArchive(file, [image]);
    await flipByteIn(file, image.layers[0]?.tar ?? Buffer.alloc(0));
    const source = await open();
    const [only] = source.images;
    if (!only) throw new Error('no image');
    await expect(source.prepare(only)).rejects.toMatchObject({
      code: 'digest_mismatch',
      details: { member: expect.stringContaining('layer.tar') },
    });
    expect(await left()).toEqual([]);
  });

  it('names the blob that an OCI bundle lacks, and one of the wrong size', async () => {
    const image = await makeImage(pause);
    const folder = join(dir.path, 'layout');
    await buildOciLayout(folder, [image]);
    const blob = `blobs/sha256/${digestHex(image.layers[0]?.digest ?? image.configDigest)}`;
    await appendFile(join(folder, blob), 'x');
    expect(await failure(openBundle(folder, { workDir }))).toMatchObject({
      code: 'bundle_corrupt',
      details: { member: blob },
    });
    await rm(join(folder, blob));
    expect(await failure(openBundle(folder, { workDir }))).toMatchObject({
      code: 'bundle_corrupt',
      details: { member: blob },
    });
    await symlink('/etc/hostname', join(folder, blob));
    expect((await failure(openBundle(folder, { workDir }))).code).toBe('bundle_unsafe');
  });

  it('takes an index of which a platform is missing as what is there, unless it is strict', async () => {
    const images = await Promise.all(
      ['amd64', 'arm64'].map((architecture) => makeImage({ ...pause, platform: { os: 'linux', architecture } })),
    );
    await buildOciArchive(file, [makeIndex('registry.k8s.io/pause:3.9', images)], { omitPlatforms: ['linux/arm64'] });
    const source = await open();
    expect(source.images.map(({ platforms }) => platforms.map(({ architecture }) => architecture))).toEqual([
      ['amd64'],
    ]);
    expect(source.unusable).toMatchObject([
      { code: 'platforms_absent', detail: expect.stringContaining('linux/arm64') },
    ]);
    expect((await failure(openBundle(file, { workDir, isStrict: true }))).code).toBe('platforms_absent');
  });

  it.each(['tag-only', 'none'] as const)('refuses images whose name is %s', async (names) => {
    const [root] = await buildOciArchive(file, [await makeImage(pause)], { names });
    expect(await failure(open())).toMatchObject({ code: 'image_name_missing', details: { digest: root?.digest } });
  });

  it('refuses an image that was saved by its ID', async () => {
    const image = await makeImage({ ...pause, name: [] });
    await buildDockerArchive(file, [image]);
    expect(await failure(open())).toMatchObject({
      code: 'image_name_missing',
      details: { digest: image.configDigest },
    });
  });

  it('stops when it is told to', async () => {
    await buildDockerArchive(file, [await makeImage(pause)]);
    await expect(
      openBundle(file, { workDir, signal: AbortSignal.abort(new AppError('job_cancelled')) }),
    ).rejects.toMatchObject({ code: 'job_cancelled' });
  });
});
