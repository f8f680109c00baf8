import { describe, expect, it } from 'vitest';
import { digestOf } from './digest.js';
import {
  filterIndex,
  formatPlatform,
  isIndexMediaType,
  isManifestMediaType,
  manifestReferences,
  maxManifestBytes,
  mediaTypes,
  parseEntries,
  parseImageConfig,
  parseManifest,
} from './manifest.js';

const [a, b, c, d] = ['a', 'b', 'c', 'd'].map((text) => digestOf(text)) as [string, string, string, string];
const references = (document: unknown) => manifestReferences(Buffer.from(JSON.stringify(document)));

describe('manifestReferences', () => {
  it('finds configuration and layers of an image, and its subject apart from them', () => {
    expect(
      references({ config: { digest: a }, layers: [{ digest: b }, { digest: c }], subject: { digest: d } }),
    ).toEqual({
      manifests: [],
      mentioned: [a, b, c],
      subject: d,
    });
  });

  it('finds the manifests of an index, and does not take a digest in their annotations for one', () => {
    const found = references({
      manifests: [{ digest: a, annotations: { 'vnd.docker.reference.digest': b } }, { digest: c }],
    });
    expect(found).toEqual({ manifests: [a, c], mentioned: [a, b, c], subject: undefined });
  });

  it('understands what Go would, and kinds that Airdock does not move', () => {
    expect(references({ Manifests: [{ Digest: a }], Subject: { digest: b } })).toEqual({
      manifests: [a],
      mentioned: [a],
      subject: b,
    });
    expect(references({ schemaVersion: 1, fsLayers: [{ blobSum: a }, { blobSum: b }] })).toMatchObject({
      mentioned: [a, b],
    });
    expect(references({ blobs: [{ digest: a }] })).toMatchObject({ mentioned: [a] });
    expect(manifestReferences(Buffer.from(`{"config":{"digest":"${a.replace('s', '\\u0073')}"}}`))).toMatchObject({
      mentioned: [a],
    });
  });

  it.each(['', '{', '[]', '"text"', 'null'])('refuses %j', (text) => {
    expect(() => manifestReferences(Buffer.from(text))).toThrow(expect.objectContaining({ code: 'bundle_corrupt' }));
  });
});

it('a document of very many values or keys is refused before it is parsed: not its bytes cost time, but what is in them', () => {
  const annotations = Object.fromEntries(Array.from({ length: 50_000 }, (_, index) => [index.toString(36), '']));
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [], annotations }));
  expect(() => parseManifest(bytes)).toThrow('an object with more than 10000 members');
  expect(() => parseManifest(Buffer.from(`{"schemaVersion":2,"manifests":[${'0,'.repeat(300_000)}0]}`))).toThrow(
    'more than 300000 values',
  );
  expect(() => parseImageConfig(Buffer.from(JSON.stringify(annotations)))).toThrow(
    'an image configuration is not valid',
  );
});

const descriptor = (text: string, more: object = {}) => ({
  mediaType: mediaTypes.ociLayerGzip,
  digest: digestOf(text),
  size: text.length,
  ...more,
});
const image = (more: object = {}) => ({
  schemaVersion: 2,
  config: descriptor('config', { mediaType: mediaTypes.ociConfig }),
  layers: [descriptor('one'), descriptor('two')],
  ...more,
});
const index = (more: object = {}) => ({
  schemaVersion: 2,
  manifests: [descriptor('amd64', { platform: { os: 'linux', architecture: 'amd64' } }), descriptor('arm64')],
  ...more,
});
const bytesOf = (document: unknown) => Buffer.from(JSON.stringify(document));
const parse = (document: unknown, mediaType?: string) => parseManifest(bytesOf(document), mediaType);
const coded = (code: string, detail = '') =>
  expect.objectContaining({ code, message: expect.stringContaining(detail) as string });

describe('parseManifest', () => {
  it('reads an image: its configuration, its layers in order, its subject and its annotations', () => {
    const document = image({
      mediaType: mediaTypes.ociManifest,
      subject: descriptor('subject'),
      annotations: { a: 'b' },
    });
    expect(parse(document)).toEqual({
      kind: 'manifest',
      mediaType: mediaTypes.ociManifest,
      config: document.config,
      layers: document.layers,
      subject: descriptor('subject'),
      annotations: { a: 'b' },
    });
  });

  it('reads an index, with the platforms of its manifests', () => {
    expect(parse(index())).toMatchObject({
      kind: 'index',
      mediaType: mediaTypes.ociIndex,
      manifests: [
        { digest: digestOf('amd64'), platform: { os: 'linux', architecture: 'amd64' } },
        { digest: digestOf('arm64') },
      ],
    });
  });

  it.each([
    ['of the document, whatever the response header says', { mediaType: mediaTypes.dockerManifest }, 'dockerManifest'],
    ['of the header, where the document says none', {}, 'dockerList'],
    ['of the header, where the document says an empty one', { mediaType: '' }, 'dockerList'],
    ['of the header, where Go wrote nothing', { mediaType: null }, 'dockerList'],
  ] as const)('takes the media type %s', (_, said, expected) =>
    expect(parse(image(said), mediaTypes.dockerList).mediaType).toBe(mediaTypes[expected]),
  );

  it('takes null for an empty list, an empty map and a pointer to nothing, as Go writes them', () => {
    const manifest = parse(image({ layers: null, subject: null, annotations: null }));
    expect(manifest).toMatchObject({ layers: [], subject: undefined, annotations: undefined });
    expect(parse(index({ manifests: null }))).toMatchObject({ kind: 'index', manifests: [] });
    const entry = descriptor('a', { platform: { os: null }, urls: null });
    expect(parse(index({ manifests: [entry] }))).toMatchObject({
      manifests: [{ platform: { os: '', architecture: '' } }],
    });
  });

  it.each([
    ['no JSON', Buffer.from('{'), 'not JSON'],
    ['no UTF-8', Buffer.from([0x22, 0xff, 0x22]), 'not JSON'],
    ['a key twice', Buffer.from('{"schemaVersion":2,"schemaVersion":2}'), 'not JSON that every reader'],
    ['no object', bytesOf([]), 'not valid'],
    ['nothing', bytesOf(null), 'not valid'],
    ['schema 1', bytesOf({ ...image(), schemaVersion: 1 }), 'not valid'],
    ['a manifest without a configuration', bytesOf({ ...image(), config: undefined }), 'not valid'],
    ['a negative size', bytesOf(image({ layers: [descriptor('a', { size: -1 })] })), 'not valid'],
    ['half a byte', bytesOf(image({ layers: [descriptor('a', { size: 0.5 })] })), 'not valid'],
    ['a size as text', bytesOf(image({ layers: [descriptor('a', { size: '1' })] })), 'not valid'],
    ['a short digest', bytesOf(image({ layers: [descriptor('a', { digest: 'sha256:ab' })] })), 'not a sha256 digest'],
    ['a long media type', bytesOf(image({ layers: [descriptor('a', { mediaType: 'a'.repeat(256) })] })), 'not valid'],
    ['too many layers', bytesOf(image({ layers: Array(10_001).fill(0) })), ''],
    ['a key that only Go takes for layers', bytesOf(image({ Layers: [] })), 'differs from a known one by its case'],
    ['such a key in a descriptor', bytesOf(image({ layers: [descriptor('a', { Size: 1 })] })), 'by its case'],
    ['such a key in an index', bytesOf(index({ MediaType: '' })), 'by its case'],
    ['an index with layers', bytesOf(index({ layers: [] })), 'is an index too'],
    ['an index with a configuration', bytesOf(index({ config: descriptor('a') })), 'is an index too'],
    ['too many bytes', Buffer.alloc(maxManifestBytes + 1, ' '), `at most ${maxManifestBytes}`],
  ])('refuses %s', (_, bytes, detail) => expect(() => parseManifest(bytes)).toThrow(coded('bundle_corrupt', detail)));

  it.each(['sha512:0a', 'blake3:abc', 'sha256+b64:AAA='])(
    'says of the digest %s that it is of another algorithm',
    (digest) => {
      expect(() => parse(image({ layers: [descriptor('a', { digest })] }))).toThrow(coded('digest_unsupported'));
      expect(() => parse(index({ manifests: [descriptor('a', { digest })] }))).toThrow(coded('digest_unsupported'));
    },
  );
});

describe('parseEntries', () => {
  it('gives all entries of an index that is valid', () =>
    expect(parseEntries(bytesOf(index()))).toEqual({
      manifests: (parse(index()) as { manifests: unknown }).manifests,
      odd: [],
    }));

  it('gives the valid entries of one that is not, and says of each other what it is called and why', () => {
    const odd = [
      descriptor('a', { digest: 'sha512:0a', annotations: { 'org.opencontainers.image.ref.name': 'ref' } }),
      {
        size: 'many',
        annotations: { 'io.containerd.image.name': 'full', 'org.opencontainers.image.ref.name': 'short' },
      },
      null,
      { digest: '', annotations: { 'io.containerd.image.name': 'x'.repeat(600) } },
    ];
    const [good] = index().manifests;
    const entries = parseEntries(bytesOf(index({ manifests: [odd[0], good, ...odd.slice(1)] })));
    expect(entries.manifests.map(({ digest }) => digest)).toEqual([digestOf('amd64')]);
    expect(entries.odd).toMatchObject([
      { name: 'ref', digest: 'sha512:0a', error: { code: 'digest_unsupported' } },
      { name: 'full', digest: null, error: { code: 'bundle_corrupt' } },
      { name: null, digest: null, error: { code: 'bundle_corrupt' } },
      { name: 'x'.repeat(512), digest: null, error: { code: 'bundle_corrupt' } },
    ]);
  });

  it.each([
    ['its version', index({ schemaVersion: 3, manifests: [{}] })],
    ['its list', index({ manifests: {} })],
    ['a key of it', index({ Annotations: {}, manifests: [{}] })],
    ['that it is a manifest', image()],
    ['that it is no object', [index()]],
    ['the number of entries', index({ manifests: Array(10_001).fill(null) })],
  ])('throws where %s is the reason', (_, document) =>
    expect(() => parseEntries(bytesOf(document))).toThrow(coded('bundle_corrupt')),
  );
});

describe('filterIndex', () => {
  const source = index({ annotations: { kept: 'yes' }, mediaType: mediaTypes.ociIndex });

  it('leaves everything but the manifests as it is, and those that are kept in their order', () => {
    const keep = new Set([digestOf('arm64')]);
    const filtered = filterIndex(bytesOf(source), (digest) => keep.has(digest));
    expect(JSON.parse(filtered.toString())).toEqual({ ...source, manifests: [source.manifests[1]] });
  });

  it('is the same bytes where all are kept', () =>
    expect(filterIndex(bytesOf(source), () => true)).toEqual(bytesOf(source)));
});

describe('parseImageConfig', () => {
  it('reads the platform and the layers', () =>
    expect(
      parseImageConfig(bytesOf({ os: 'linux', architecture: 'arm', variant: 'v7', rootfs: { diff_ids: ['a', 'b'] } })),
    ).toEqual({ platform: { os: 'linux', architecture: 'arm', variant: 'v7' }, diffIds: ['a', 'b'] }));

  it('is for linux/amd64 where it says nothing, and has no identities where it does not speak of layers', () => {
    expect(parseImageConfig(bytesOf({}))).toEqual({
      platform: { os: 'linux', architecture: 'amd64', variant: undefined },
      diffIds: undefined,
    });
    expect(parseImageConfig(bytesOf({ rootfs: {} })).diffIds).toEqual([]);
    expect(parseImageConfig(bytesOf({ rootfs: { diff_ids: null } })).diffIds).toEqual([]);
  });

  it('takes a key twice, unless every reader has to understand it alike', () => {
    const bytes = Buffer.from('{"os":"windows","os":"linux"}');
    expect(parseImageConfig(bytes).platform.os).toBe('linux');
    expect(() => parseImageConfig(bytes, { strict: true })).toThrow(coded('bundle_corrupt'));
  });

  it.each([[], null, { os: 1 }, { rootfs: { diff_ids: 'a' } }, { rootfs: { diff_ids: Array(10_001).fill('') } }])(
    'refuses %j',
    (document) => expect(() => parseImageConfig(bytesOf(document))).toThrow(coded('bundle_corrupt')),
  );
});

describe('media types', () => {
  it('of indexes are those of manifests too, and those of layers and configurations are neither', () => {
    const { ociIndex, ociManifest, dockerList, dockerManifest, ...others } = mediaTypes;
    for (const type of [ociIndex, dockerList])
      expect([isIndexMediaType(type), isManifestMediaType(type)]).toEqual([true, true]);
    for (const type of [ociManifest, dockerManifest])
      expect([isIndexMediaType(type), isManifestMediaType(type)]).toEqual([false, true]);
    for (const type of [...Object.values(others), '', ociManifest.toUpperCase()])
      expect([isIndexMediaType(type), isManifestMediaType(type)]).toEqual([false, false]);
  });
});

it.each([
  [{ os: 'linux', architecture: 'amd64' }, 'linux/amd64'],
  [{ os: 'linux', architecture: 'arm64', variant: 'v8' }, 'linux/arm64/v8'],
  [{ os: 'linux', architecture: 'amd64', variant: '' }, 'linux/amd64'],
])('formatPlatform writes %j as %s', (platform, text) => expect(formatPlatform(platform)).toBe(text));
