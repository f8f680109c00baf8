/**
 * Bundles that other tools really write, of which one entry is odd: what is whole is taken, and what is not is named
 * with its reason.
 */
import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { digestHex, digestOf } from '@airdock/core/oci/digest';
import { type Descriptor, mediaTypes } from '@airdock/core/oci/manifest';
import { buildDockerArchive, makeImage, type TestImage, writeTar } from '@airdock/testing/bundles';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { GivenNames } from '../image/image-names.js';
import { openBundle } from './bundle.js';

const run = promisify(execFile);
let dir: TempDir;
let file: string;
beforeEach(async () => {
  dir = await tempDir('odd-bundles');
  file = join(dir.path, 'bundle.tar');
});
afterEach(() => dir.remove());

const image = (seed: string, architecture = 'amd64'): Promise<TestImage> =>
  makeImage({ name: `quay.io/odd/${seed}:1`, layers: [{ files: { seed } }], platform: { os: 'linux', architecture } });
const jsonOf = (value: unknown) => Buffer.from(JSON.stringify(value));
const emptyConfig = 'application/vnd.oci.empty.v1+json';

/** An OCI layout as tools write it, entry by entry. */
class Layout {
  readonly blobs = new Map<string, Buffer>();
  readonly index: unknown[] = [];

  blob(content: Buffer, mediaType: string): Descriptor {
    const digest = digestOf(content);
    this.blobs.set(`blobs/sha256/${digestHex(digest)}`, content);
    return { mediaType, digest, size: content.byteLength };
  }

  manifest(fields: Record<string, unknown>): Descriptor {
    return this.blob(
      jsonOf({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, ...fields }),
      mediaTypes.ociManifest,
    );
  }

  image({ config, layers }: TestImage, fields: Record<string, unknown> = {}): Descriptor {
    const parts = {
      config: this.blob(config, mediaTypes.ociConfig),
      layers: layers.map(({ gzip }) => this.blob(gzip, mediaTypes.ociLayerGzip)),
    };
    return this.manifest({ ...parts, ...fields });
  }

  multi(...manifests: unknown[]): Descriptor {
    return this.blob(jsonOf({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests }), mediaTypes.ociIndex);
  }

  drop(...digests: string[]): void {
    for (const digest of digests) this.blobs.delete(`blobs/sha256/${digest.slice(7)}`);
  }

  name(descriptor: Descriptor, full?: string, ref?: string): this {
    const annotations = {
      ...(full && { 'io.containerd.image.name': full }),
      ...(ref && { 'org.opencontainers.image.ref.name': ref }),
    };
    this.index.push({ ...descriptor, annotations });
    return this;
  }

  /** With `docker` also as Docker since 25 writes it. */
  async write(
    docker?: { image: TestImage; tags: string[] | null }[],
    target = file,
    replaced: Record<string, string> = {},
  ): Promise<void> {
    const members = new Map(this.blobs);
    if (docker) {
      for (const each of docker) {
        members.set(`blobs/sha256/${digestHex(each.image.configDigest)}`, each.image.config);
        for (const { tar, diffId } of each.image.layers) members.set(`blobs/sha256/${digestHex(diffId)}`, tar);
      }
      const list = docker.map((each) => ({
        Config: `blobs/sha256/${digestHex(each.image.configDigest)}`,
        RepoTags: each.tags,
        Layers: each.image.layers.map(({ diffId }) => `./blobs/sha256/${digestHex(diffId)}`),
      }));
      members.set('manifest.json', jsonOf(list));
    }
    members.set('oci-layout', jsonOf({ imageLayoutVersion: '1.0.0' }));
    members.set('index.json', jsonOf({ schemaVersion: 2, manifests: this.index }));
    for (const [name, text] of Object.entries(replaced)) members.set(name, Buffer.from(text));
    await writeTar(
      target,
      [...members].map(([name, content]) => ({ header: { name }, content })),
    );
  }
}

async function open({ path = file, names, isStrict }: { path?: string; names?: GivenNames; isStrict?: boolean } = {}) {
  await using source = await openBundle(path, { workDir: join(dir.path, 'work'), names, isStrict });
  return {
    format: source.format,
    images: source.images.map((one) => ({
      names: [...one.names].sort(),
      digest: one.root?.digest,
      platforms: one.platforms.length,
      companions: one.companions?.length ?? 0,
    })),
    unusable: source.unusable.map(({ name, code }) => ({ name, code })),
  };
}

describe('an entry of index.json that is none', () => {
  const named = (annotations: object) => ({
    mediaType: mediaTypes.ociManifest,
    size: 5,
    digest: `sha256:${'a'.repeat(64)}`,
    annotations,
  });
  it.each([
    [
      'has a digest of another algorithm',
      { ...named({ 'io.containerd.image.name': 'q.io/x:1' }), digest: `sha512:${'a'.repeat(128)}` },
      'q.io/x:1',
      'digest_unsupported',
    ],
    ['has an annotation that is no text', named({ 'org.opencontainers.image.ref.name': 5 }), null, 'bundle_corrupt'],
    ['has no size', { ...named({ 'org.opencontainers.image.ref.name': 'x' }), size: undefined }, 'x', 'bundle_corrupt'],
    ['is null', null, null, 'bundle_corrupt'],
    ['is a list', [[1]], null, 'bundle_corrupt'],
  ])('and %s is named, and the others are taken', async (_, entry, name, code) => {
    const layout = new Layout();
    const root = layout.image(await image('whole'));
    layout.name(root, 'quay.io/odd/whole:1').index.unshift(entry);
    await layout.write();
    expect(await open()).toMatchObject({ images: [{ digest: root.digest }], unusable: [{ name, code }] });
    await expect(open({ isStrict: true })).rejects.toMatchObject({ code });
    layout.index.splice(1);
    await layout.write();
    await expect(open()).rejects.toMatchObject({ code });
  });
});

describe('one odd entry', () => {
  const odd: [string, string, (layout: Layout) => Promise<Descriptor>][] = [
    [
      'a layer that is missing',
      'bundle_corrupt',
      async (layout) => {
        const one = await image('holed');
        const root = layout.image(one);
        layout.drop(one.layers[0]?.digest ?? '');
        return root;
      },
    ],
    [
      'a manifest that is missing',
      'bundle_corrupt',
      async (layout) => {
        const root = layout.image(await image('gone'));
        layout.drop(root.digest);
        return root;
      },
    ],
    [
      'an encrypted layer',
      'layer_encrypted',
      async (layout) => {
        const one = await image('secret');
        const layers = one.layers.map(({ gzip }) => layout.blob(gzip, `${mediaTypes.ociLayerGzip}+encrypted`));
        return layout.image(one, { layers });
      },
    ],
    [
      'a foreign layer',
      'layer_foreign',
      async (layout) => {
        const one = await image('windows');
        return layout.image(one, {
          layers: one.layers.map(({ gzip }) => layout.blob(gzip, mediaTypes.dockerForeignLayer)),
        });
      },
    ],
    [
      'a configuration of other layers',
      'bundle_corrupt',
      async (layout) => layout.image(await image('none'), { layers: [] }),
    ],
    [
      'bytes of another digest',
      'digest_mismatch',
      async (layout) => {
        const root = layout.image(await image('flipped'));
        layout.blobs.set(`blobs/sha256/${root.digest.slice(7)}`, Buffer.from('x'.repeat(root.size)));
        return root;
      },
    ],
  ];
  it.each(odd)('%s is named, and the others are taken', async (_, code, add) => {
    const layout = new Layout();
    const whole = layout.image(await image('whole'));
    layout.name(whole, 'quay.io/odd/whole:1').name(await add(layout), 'quay.io/odd/odd:1');
    await layout.write();
    expect(await open()).toMatchObject({
      images: [{ names: ['quay.io/odd/whole:1'], digest: whole.digest }],
      unusable: [{ name: 'quay.io/odd/odd:1', code }],
    });
    await expect(open({ isStrict: true })).rejects.toMatchObject({ code, details: { image: 'quay.io/odd/odd:1' } });
  });

  it.each(odd)('%s alone refuses the bundle with that reason', async (_, code, add) => {
    const layout = new Layout();
    await layout.name(await add(layout), 'quay.io/odd/odd:1').write();
    await expect(open()).rejects.toMatchObject({ code });
  });

  it('of a docker-archive is named too, and a name that is none', async () => {
    const [whole, holed] = [await image('whole'), await image('holed')];
    await buildDockerArchive(file, [whole, { ...holed, names: ['quay.io/odd/holed:1'] }]);
    const members = await untar(file);
    const gone = [...members.keys()].find((name) => members.get(name)?.equals(holed.layers[0]?.tar ?? Buffer.alloc(0)));
    members.delete(gone ?? '');
    members.set(
      'manifest.json',
      Buffer.from(
        members
          .get('manifest.json')
          ?.toString()
          .replace('"quay.io/odd/whole:1"', '"quay.io/odd/whole:1","quay.io/ODD:1"') ?? '',
      ),
    );
    await writeTar(
      file,
      [...members].map(([name, content]) => ({ header: { name }, content })),
    );
    expect(await open()).toMatchObject({
      images: [{ names: ['quay.io/odd/whole:1'] }],
      unusable: [
        { name: 'quay.io/ODD:1', code: 'reference_invalid' },
        { name: 'quay.io/odd/holed:1', code: 'bundle_corrupt' },
      ],
    });
  });

  it('is what Go writes for nothing: null for lists, maps and pointers', async () => {
    const layout = new Layout();
    const config = layout.blob(Buffer.from('{}'), emptyConfig);
    layout.name(
      layout.manifest({ artifactType: 'application/vnd.odd', config, layers: null, subject: null, annotations: null }),
      'quay.io/odd/artifact:1',
    );
    layout.name({ ...layout.image(await image('urls')), urls: undefined, platform: undefined }, 'quay.io/odd/urls:1');
    (layout.index[1] as Record<string, unknown>).platform = null;
    (layout.index[1] as Record<string, unknown>).urls = null;
    await layout.write();
    expect(await open()).toMatchObject({
      images: [
        { names: ['quay.io/odd/artifact:1'], platforms: 0 },
        { names: ['quay.io/odd/urls:1'], platforms: 1 },
      ],
      unusable: [],
    });
  });
});

describe('a part of a multi-platform image', () => {
  async function sparse(layout: Layout) {
    const [amd, arm] = [await image('multi'), await image('multi-arm', 'arm64')];
    const children = [
      { ...layout.image(amd), platform: { os: 'linux', architecture: 'amd64' } },
      { ...layout.image(arm), platform: { os: 'linux', architecture: 'arm64', variant: 'v8' } },
    ] as const;
    const root = layout.multi(...children);
    layout.drop(children[1].digest, arm.configDigest, ...arm.layers.map(({ digest }) => digest));
    return { amd, root, only: children[0] };
  }

  it('is taken as what is there, whoever wrote it, and says what is not', async () => {
    const layout = new Layout();
    const { root, only } = await sparse(layout);
    await layout.name(root, 'quay.io/odd/multi:1').write();
    await expect(open({ isStrict: true })).rejects.toMatchObject({ code: 'platforms_absent' });
    expect(await open()).toMatchObject({
      images: [{ names: ['quay.io/odd/multi:1'], digest: only.digest }],
      unusable: [{ name: 'quay.io/odd/multi:1', code: 'platforms_absent' }],
    });
  });

  it('is one image under the three names that the CRI keeps', async () => {
    const layout = new Layout();
    const { amd, root, only } = await sparse(layout);
    for (const name of ['quay.io/odd/multi:1', `quay.io/odd/multi@${root.digest}`, amd.configDigest])
      layout.name(root, name);
    await layout.write([
      { image: amd, tags: ['quay.io/odd/multi:1', `quay.io/odd/multi@${root.digest}`, amd.configDigest] },
    ]);
    expect(await open({ isStrict: true })).toMatchObject({
      images: [{ names: ['quay.io/odd/multi:1'], digest: only.digest }],
      unusable: [{ name: 'quay.io/odd/multi:1', code: 'platforms_absent' }],
    });
  });

  it('keeps its tag when its name demands the digest of the whole', async () => {
    const layout = new Layout();
    const one = layout.image(await image('pinned'));
    const [whole, other] = [digestOf('whole'), digestOf('other')];
    layout
      .name(one, undefined, `quay.io/odd/pinned:1@${whole}`)
      .name(layout.image(await image('lost')), `quay.io/odd/lost@${other}`);
    const right = layout.image(await image('right'));
    layout.name(right, `quay.io/odd/right:1@${right.digest}`);
    await layout.write();
    expect(await open()).toMatchObject({
      images: [
        { names: ['quay.io/odd/pinned:1'], digest: one.digest },
        { names: ['quay.io/odd/right:1'], digest: right.digest },
      ],
      unusable: [
        { name: `quay.io/odd/pinned:1@${whole}`, code: 'digest_mismatch' },
        { name: `quay.io/odd/lost@${other}`, code: 'digest_mismatch' },
      ],
    });
  });
});

describe('two lists of one archive', () => {
  it('give an image from the other where one has it only in part, or not at all, or without its name', async () => {
    const [partial, unlisted, nameless, both] = [
      await image('partial'),
      await image('unlisted'),
      await image('nameless'),
      await image('both'),
    ];
    const layout = new Layout();
    layout.name(layout.image(partial, { layers: [] }), 'quay.io/odd/partial:1');
    const keeps = layout.image(nameless);
    layout.name(keeps).name(layout.image(both), 'quay.io/odd/both:1');
    await layout.write([
      { image: partial, tags: ['quay.io/odd/partial:1'] },
      { image: unlisted, tags: ['quay.io/odd/unlisted:1'] },
      { image: nameless, tags: ['quay.io/odd/nameless:1'] },
      { image: both, tags: ['quay.io/odd/both:1', 'quay.io/odd/both:latest'] },
    ]);
    const { images, unusable } = await open();
    expect(unusable).toEqual([]);
    expect(Object.fromEntries(images.map(({ names, digest }) => [names.join(), digest]))).toEqual({
      'quay.io/odd/nameless:1': keeps.digest,
      'quay.io/odd/both:1,quay.io/odd/both:latest': expect.any(String),
      'quay.io/odd/partial:1': undefined,
      'quay.io/odd/unlisted:1': undefined,
    });
  });

  describe('of which one cannot be read', () => {
    const bothLists = async (replaced: Record<string, string>) => {
      const one = await image('one');
      const layout = new Layout();
      const root = layout.image(one);
      await layout.name(root, 'quay.io/odd/one:1').write([{ image: one, tags: ['quay.io/odd/one:1'] }], file, replaced);
      return root.digest;
    };
    const texts = [
      ...[
        'null',
        '{}',
        '"x"',
        '7',
        'true',
        '',
        ' ',
        '[',
        '[{"Config": "a',
        '{"manifests": [',
        '\u0000',
        '<html>',
        '\uFEFF[]',
        '{"name": "an app"}',
      ],
      ...['{"manifests": 5}', '{"a": 1, "a": 2}', 'null null', `"${'x'.repeat(2_000)}"`, '['.repeat(200)],
    ];
    it.each([...texts, '{"schemaVersion": 2, "manifests": []}'])(
      'say so, and the images come from index.json: %#',
      async (text) => {
        const digest = await bothLists({ 'manifest.json': text });
        expect(await open()).toMatchObject({
          images: [{ names: ['quay.io/odd/one:1'], digest }],
          unusable: [{ name: null }],
        });
        await expect(open({ isStrict: true })).rejects.toMatchObject({
          details: { detail: expect.stringContaining('manifest.json cannot be read') },
        });
      },
    );

    it.each([...texts, '[]'])('say so, and the images come from manifest.json: %#', async (text) => {
      await bothLists({ 'index.json': text });
      expect(await open()).toMatchObject({
        images: [{ names: ['quay.io/odd/one:1'], digest: undefined }],
        unusable: [{ name: null }],
      });
      await expect(open({ isStrict: true })).rejects.toMatchObject({
        details: { detail: expect.stringContaining('index.json cannot be read') },
      });
    });

    it('or is of another version of the layout', async () => {
      await bothLists({ 'oci-layout': '{"imageLayoutVersion":"9.0.0"}' });
      expect(await open()).toMatchObject({
        images: [{ digest: undefined }],
        unusable: [{ name: null, code: 'bundle_format_unknown' }],
      });
    });

    it('and neither the other', async () => {
      await bothLists({ 'manifest.json': 'null', 'index.json': 'null' });
      await expect(open()).rejects.toMatchObject({
        code: 'bundle_corrupt',
        details: { detail: expect.stringContaining('and 1 more') },
      });
    });

    it.each(['[]', '{"schemaVersion": 2, "manifests": []}'])(
      'and one that is empty is none that cannot be read: %s',
      async (text) => {
        await bothLists({ [text === '[]' ? 'manifest.json' : 'index.json']: text });
        expect(await open()).toMatchObject({ images: [{ names: ['quay.io/odd/one:1'] }], unusable: [] });
      },
    );

    it.each(['null', '[]', '{"Config": 7, "RepoTags": ["quay.io/odd/seven:1"]}', '{"Image": {}}', '"x"'])(
      'or has an entry that is none beside one that is whole: %s',
      async (entry) => {
        const one = await image('one');
        const path = `blobs/sha256/${digestHex(one.configDigest)}`;
        const whole = JSON.stringify({
          Config: path,
          RepoTags: ['quay.io/odd/one:1'],
          Layers: one.layers.map(({ diffId }) => `blobs/sha256/${digestHex(diffId)}`),
        });
        await bothLists({
          'manifest.json': `[${entry}, ${whole}]`,
          'index.json': '{"schemaVersion": 2, "manifests": []}',
        });
        const name = entry.includes('seven') ? 'quay.io/odd/seven:1' : null;
        expect(await open()).toMatchObject({ images: [{ names: ['quay.io/odd/one:1'] }], unusable: [{ name }] });
        await expect(open({ isStrict: true })).rejects.toMatchObject({
          code: expect.stringMatching(/^bundle_(?:corrupt|format_unknown)$/),
        });
      },
    );
  });

  it('do not give one name to two images', async () => {
    const [one, other] = [await image('one'), await image('other')];
    const layout = new Layout();
    layout.name(layout.image(one), 'quay.io/odd/same:1');
    await layout.write([{ image: other, tags: ['quay.io/odd/same:1'] }]);
    expect(await open()).toMatchObject({
      images: [{ names: ['quay.io/odd/same:1'] }],
      unusable: [{ name: 'quay.io/odd/same:1', code: 'image_name_ambiguous' }],
    });
  });

  it('leave the digest of a named image as it is beside a nameless one, which a digest names', async () => {
    const [named, nameless] = [await image('named'), await image('nameless')];
    const layout = new Layout();
    const [first, second] = [layout.image(named), layout.image(nameless)];
    layout.name(first, 'quay.io/odd/named:1', '1').name(second, nameless.configDigest);
    await layout.write([
      { image: named, tags: ['quay.io/odd/named:1'] },
      { image: nameless, tags: null },
    ]);
    expect(await open()).toMatchObject({
      images: [{ digest: first.digest }],
      unusable: [{ code: 'image_name_missing' }],
    });
    expect(await open({ names: { [second.digest]: 'quay.io/odd/given:1' } })).toMatchObject({
      images: [{ digest: first.digest }, { names: ['quay.io/odd/given:1'], digest: second.digest }],
      unusable: [],
    });
  });
});

it('takes a name that the bundle gives to two images from both, until `names` says which is which', async () => {
  const layout = new Layout();
  const roots = [layout.image(await image('a')), layout.image(await image('b', 'arm64'))];
  for (const root of roots) layout.name(root, 'quay.io/odd/twice:1');
  await layout.write();
  await expect(open()).rejects.toMatchObject({ code: 'image_name_ambiguous' });
  const names = {
    [roots[0]?.digest ?? '']: 'quay.io/odd/twice:1',
    [roots[1]?.digest ?? '']: 'quay.io/odd/twice:1-arm64',
  };
  expect(await open({ names })).toMatchObject({
    images: [{ names: ['quay.io/odd/twice:1'] }, { names: ['quay.io/odd/twice:1-arm64'] }],
    unusable: [],
  });
});

describe('signatures and referrers travel with their image', () => {
  const referrer = (layout: Layout, subject: Descriptor, text: string) =>
    layout.manifest({
      artifactType: 'application/vnd.dev.sigstore.bundle.v0.3+json',
      config: layout.blob(Buffer.from('{}'), emptyConfig),
      layers: [layout.blob(Buffer.from(text), 'application/octet-stream')],
      subject: { mediaType: subject.mediaType, digest: subject.digest, size: subject.size },
    });

  it('when they are among the blobs and in no list, and when they speak of each other', async () => {
    const layout = new Layout();
    const root = layout.image(await image('signed'));
    referrer(layout, referrer(layout, root, 'sbom'), 'signature of the sbom');
    layout.blob(jsonOf({ subject: 'no manifest' }), 'application/json');
    await layout.name(root, 'quay.io/odd/signed:1').write();
    expect(await open()).toMatchObject({ images: [{ companions: 2 }], unusable: [] });
  });

  it('when their only name is the bare tag that cosign gives them', async () => {
    const layout = new Layout();
    const root = layout.image(await image('signed'));
    const signature = layout.manifest({
      config: layout.blob(Buffer.from('{}'), mediaTypes.ociConfig),
      layers: [layout.blob(Buffer.from('sig'), 'application/vnd.dev.cosign.simplesigning.v1+json')],
    });
    layout.name(root, 'quay.io/odd/signed:1').name(signature, undefined, `sha256-${digestHex(root.digest)}.sig`);
    await layout.write();
    expect(await open()).toMatchObject({ images: [{ names: ['quay.io/odd/signed:1'], companions: 1 }], unusable: [] });
  });

  it.each([
    [
      'says two sizes of one blob',
      (layout: Layout, subject: Descriptor) => ({
        config: { ...layout.blob(Buffer.from('{}'), emptyConfig), size: 3 },
        layers: [layout.blob(Buffer.from('{}'), emptyConfig)],
        subject,
      }),
    ],
    [
      'calls itself an index',
      (layout: Layout, subject: Descriptor) => ({
        mediaType: mediaTypes.ociIndex,
        config: layout.blob(Buffer.from('{}'), emptyConfig),
        layers: [],
        subject,
      }),
    ],
    [
      'is in no list, and its layer is encrypted',
      (layout: Layout, subject: Descriptor) => ({
        config: layout.blob(Buffer.from('{}'), emptyConfig),
        layers: [layout.blob(Buffer.from('l'), `${mediaTypes.ociLayer}+encrypted`)],
        subject,
      }),
    ],
  ])('and one that %s keeps nobody from his image', async (_, fields) => {
    const layout = new Layout();
    const root = layout.image(await image('signed'));
    layout.manifest(fields(layout, { mediaType: root.mediaType, digest: root.digest, size: root.size }));
    await layout.name(root, 'quay.io/odd/signed:1').write();
    const { images, unusable } = await open();
    expect(images).toMatchObject([{ names: ['quay.io/odd/signed:1'], companions: 0 }]);
    for (const { code } of unusable) expect(['bundle_corrupt', 'layer_encrypted']).toContain(code);
  });

  it('or are named when they are not whole', async () => {
    const layout = new Layout();
    const root = layout.image(await image('signed'));
    referrer(layout, root, 'lost');
    layout.drop(digestOf('lost'));
    await layout.name(root, 'quay.io/odd/signed:1').write();
    expect(await open()).toMatchObject({
      images: [{ companions: 0 }],
      unusable: [{ name: 'quay.io/odd/signed:1', code: 'bundle_corrupt' }],
    });
  });
});

describe('archives that Docker and skopeo load', () => {
  it.each([
    ['/', [{ header: { name: '/', type: 'directory' as const } }]],
    ['./', [{ header: { name: './', type: 'directory' as const } }]],
    ['.//', [{ header: { name: './/', type: 'directory' as const } }]],
  ])('may have a member for the root, called %s', async (_, before) => {
    await buildDockerArchive(file, [await image('root')]);
    await writeTar(file, [
      ...before,
      ...[...(await untar(file))].map(([name, content]) => ({ header: { name }, content })),
    ]);
    expect((await open()).images).toMatchObject([{ names: ['quay.io/odd/root:1'] }]);
  });

  it('may have the same member twice, but not two of one name', async () => {
    await buildDockerArchive(file, [await image('twice')]);
    const members = [...(await untar(file))].map(([name, content]) => ({ header: { name }, content }));
    const layer = members.find(({ header }) => header.name.endsWith('layer.tar')) as (typeof members)[0];
    await writeTar(file, [...members, layer, layer]);
    expect((await open()).images).toHaveLength(1);
    const other = Buffer.from(layer.content);
    other[other.byteLength - 1] = 1;
    await writeTar(file, [...members, { ...layer, content: other }]);
    await expect(open()).rejects.toMatchObject({ code: 'bundle_unsafe' });
    await writeTar(file, [...members, { ...layer, content: layer.content.subarray(0, 512) }]);
    await expect(open()).rejects.toMatchObject({ code: 'bundle_unsafe' });
  });

  it('are told from other files that are called manifest.json', async () => {
    for (const list of [[{ ImageIndex: null, Image: { Refs: [] } }], { name: 'an app', icons: [] }]) {
      await writeTar(file, [{ header: { name: 'manifest.json' }, content: jsonOf(list) }]);
      await expect(open()).rejects.toMatchObject({ code: 'bundle_format_unknown' });
    }
    await writeTar(file, [{ header: { name: 'manifest.json' }, content: jsonOf([{ Config: 7 }]) }]);
    await expect(open()).rejects.toMatchObject({ code: 'bundle_corrupt' });
  });
});

it.each([
  ['archives in an archive', { 'images/a.tar': 'a', 'images/b.tar.zst': 'b' }, 'images/a.tar, images/b.tar.zst inside'],
  ['a folder in an archive', { 'release/oci-layout': '{}', 'release/index.json': '{}' }, 'in its folder release'],
  ['something else', { 'README.md': 'hello' }, 'neither manifest.json'],
])('says what it saw instead of a bundle: %s', async (_, members, detail) => {
  await writeTar(
    file,
    Object.entries(members).map(([name, text]) => ({ header: { name }, content: Buffer.from(text) })),
  );
  await expect(open()).rejects.toMatchObject({
    code: 'bundle_format_unknown',
    details: { detail: expect.stringContaining(detail) },
  });
});

it('says what it saw in a folder of bundles, or around one', async () => {
  const inner = join(dir.path, 'inner');
  await mkdir(join(inner, 'layout'), { recursive: true });
  await writeFile(join(inner, 'layout', 'oci-layout'), '{}');
  await writeFile(join(inner, 'layout', 'index.json'), '{}');
  await expect(open({ path: inner })).rejects.toMatchObject({
    details: { detail: expect.stringContaining('in its folder layout') },
  });
  await writeFile(join(inner, 'release.tar.gz'), '');
  await expect(open({ path: inner })).rejects.toMatchObject({
    details: { detail: expect.stringContaining('release.tar.gz inside') },
  });
});

describe('parts of a file', () => {
  const isOne = async (path: string) =>
    expect((await open({ path })).images).toMatchObject([{ names: ['quay.io/odd/split:1'] }]);
  beforeEach(async () =>
    buildDockerArchive(file, [await makeImage({ name: 'quay.io/odd/split:1', layers: [{ randomBytes: 100_000 }] })]),
  );

  it.each([
    ['-d, which goes on with 9000 after 89', ['-d', '-b', '1024'], 'b.tar.'],
    ['letters, which go on with zaaa after yz', ['-b', '150'], 'b.tar.'],
    ['-x', ['-x', '-b', '3000'], 'b.tar.'],
    ['an underscore', ['-b', '50000'], 'b.tar_'],
    ['nothing between', ['-b', '50000'], 'b.tar'],
    ['its own prefix', ['-b', '50000'], 'x'],
    ['numbers from 1', ['--numeric-suffixes=1', '-a', '3', '-b', '20000'], 'b.tar.'],
  ])('are joined as split writes them with %s', async (_, options, prefix) => {
    await run('split', [...options, file, join(dir.path, prefix)]);
    await rm(file);
    const [first = '', ...others] = (await readdir(dir.path)).filter((name) => name !== 'work').sort();
    expect(others.length).toBeGreaterThan(0);
    await isOne(join(dir.path, first));
    await isOne(join(dir.path, others.at(-1) ?? ''));
  });

  async function cut(count: number, nameOf: (index: number) => string): Promise<void> {
    const content = await readFile(file);
    const step = Math.ceil(content.byteLength / count);
    for (let index = 0; index < count; index++)
      await writeFile(join(dir.path, nameOf(index)), content.subarray(index * step, (index + 1) * step));
    await rm(file);
  }

  it.each([
    ['.part1 to .part12', (index: number) => `b.tar.part${index + 1}`],
    ['part01.tar', (index: number) => `b.part${String(index + 1).padStart(2, '0')}.tar`],
    ['7-Zip', (index: number) => `b.tar.${String(index + 1).padStart(3, '0')}`],
    ['capitals', (index: number) => `b.tar.A${'ABCDEFGHIJKL'[index]}`],
  ])('are joined as %s', async (_, nameOf) => {
    await cut(12, nameOf);
    await isOne(join(dir.path, nameOf(0)));
    await rename(join(dir.path, nameOf(5)), join(dir.path, 'elsewhere'));
    await expect(open({ path: join(dir.path, nameOf(0)) })).rejects.toMatchObject({
      code: 'bundle_truncated',
      details: { missing: nameOf(5) },
    });
  });

  it('are all there, whatever else begins with the name of the file', async () => {
    for (const [length, others] of [
      [2, ['gz', 'xz']],
      [3, ['asc', 'sig', 'zst', 'txt']],
      [4, ['json', 'yaml']],
    ] as const) {
      await run('split', ['-a', String(length), '-b', '50000', file, join(dir.path, 'c.tar.')]);
      for (const other of others) await writeFile(join(dir.path, `c.tar.${other}`), 'something else');
      await isOne(join(dir.path, `c.tar.${'a'.repeat(length)}`));
      for (const name of await readdir(dir.path)) if (name.startsWith('c.tar.')) await rm(join(dir.path, name));
    }
  });

  it('are not what only looks like them', async () => {
    const content = await readFile(file);
    for (const name of ['image-01.tar', 'image-02.tar', 'b.1', 'b.2', 'bundle.tar.2024'])
      await writeFile(join(dir.path, name), content);
    for (const name of ['image-01.tar', 'b.1', 'bundle.tar.2024', 'bundle.tar']) await isOne(join(dir.path, name));
  });
});

async function untar(path: string): Promise<Map<string, Buffer>> {
  const { stdout } = await run('tar', ['-tf', path]);
  const members = new Map<string, Buffer>();
  for (const name of stdout.split('\n').filter((line) => line !== '' && !line.endsWith('/'))) {
    const { stdout: content } = await run('tar', ['-xOf', path, '--', name], {
      encoding: 'buffer',
      maxBuffer: 10_000_000,
    });
    members.set(name, content);
  }
  return members;
}
