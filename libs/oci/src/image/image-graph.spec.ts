import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { type Descriptor, mediaTypes } from '@airdock/core/oci/manifest';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { checkKinds, describeImage, type ImageGraph, isAttestation, totalSize, walkImage } from './image-graph.js';

/** Documents by digest, as a bundle has them. */
class Store {
  readonly #documents = new Map<Digest, Buffer>();

  add(document: unknown, mediaType: string, more: Partial<Descriptor> = {}): Descriptor {
    const bytes = Buffer.from(JSON.stringify(document));
    this.#documents.set(digestOf(bytes), bytes);
    return { mediaType, digest: digestOf(bytes), size: bytes.byteLength, ...more };
  }

  image(layers: readonly Descriptor[], more: Partial<Descriptor> = {}, config: object = configOf(layers.length)) {
    const parts = { config: this.add(config, mediaTypes.ociConfig), layers };
    return this.add({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, ...parts }, mediaTypes.ociManifest, more);
  }

  index(manifests: readonly Descriptor[], more: Partial<Descriptor> = {}) {
    return this.add({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests }, mediaTypes.ociIndex, more);
  }

  read = async (digest: Digest): Promise<Buffer> => this.#documents.get(digest) ?? expect.fail(`no ${digest}`);
  walk = (root: Descriptor) => walkImage(root, this.read);
}

const configOf = (layers: number, platform: object = { os: 'linux', architecture: 'amd64' }) => ({
  ...platform,
  rootfs: { type: 'layers', diff_ids: Array.from({ length: layers }, (_, index) => digestOf(`plain ${index}`)) },
});
const layer = (text: string, more: Partial<Descriptor> = {}): Descriptor => ({
  mediaType: mediaTypes.ociLayerGzip,
  digest: digestOf(text),
  size: text.length,
  ...more,
});
const digests = (list: readonly Descriptor[]) => list.map(({ digest }) => digest);

describe('walkImage', () => {
  it('names each part once, and what is referred to before what refers to it', async () => {
    const names = fc.uniqueArray(fc.stringMatching(/^[a-f]{1,3}$/), { minLength: 1, maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(fc.array(names, { minLength: 1, maxLength: 5 }), async (images) => {
        const store = new Store();
        const children = images.map((layers) => store.image(layers.map((name) => layer(name))));
        const root = store.index([store.index(children), ...children]);
        const { manifests, blobs, images: found } = await store.walk(root);
        expect(manifests.at(-1)?.digest).toBe(root.digest);
        expect(new Set(digests(manifests)).size).toBe(manifests.length);
        const at = new Map(digests(manifests).map((digest, index) => [digest, index]));
        expect(at.size).toBe(new Set(digests(children)).size + 2);
        expect(at.get(root.digest)).toBeGreaterThan(Math.max(...digests(children).map((one) => at.get(one) ?? 99)));
        expect(new Set(digests(found.map(({ descriptor }) => descriptor)))).toEqual(new Set(digests(children)));
        const all = new Set(images.flat().map((name) => digestOf(name)));
        expect(
          blobs
            .filter(({ mediaType }) => mediaType === mediaTypes.ociLayerGzip)
            .map(({ digest }) => digest)
            .sort(),
        ).toEqual([...all].sort());
      }),
      { numRuns: 40 },
    );
  });

  it('lets attestations travel, and takes none of them for an image, however deep', async () => {
    const store = new Store();
    const image = store.image([layer('a')]);
    const unknown = { platform: { os: 'unknown', architecture: 'unknown' } };
    const proof = store.image([layer('proof')], unknown);
    const nested = store.index([store.image([layer('sbom')])], {
      annotations: { 'vnd.docker.reference.type': 'attestation-manifest' },
    });
    expect([image, proof, nested].map(isAttestation)).toEqual([false, true, true]);
    const { images, manifests, blobs } = await store.walk(store.index([image, proof, nested]));
    expect(images.map(({ descriptor }) => descriptor.digest)).toEqual([image.digest]);
    expect(manifests).toHaveLength(5);
    expect(digests(blobs)).toEqual(expect.arrayContaining([digestOf('proof'), digestOf('sbom')]));
  });

  it('goes five indexes deep, and no deeper', async () => {
    const store = new Store();
    let root = store.image([layer('a')]);
    for (let depth = 0; depth < 5; depth++) root = store.index([root]);
    expect((await store.walk(root)).manifests).toHaveLength(6);
    await expect(store.walk(store.index([root]))).rejects.toMatchObject({
      code: 'bundle_corrupt',
      details: { detail: expect.stringContaining('nested too deep') },
    });
  });

  it('refuses what is not as its descriptor says, or means two things', async () => {
    const store = new Store();
    const image = store.image([layer('a')]);
    const larger = store.image([layer('a', { size: 2 })]);
    for (const root of [
      { ...image, size: image.size + 1 },
      { ...image, mediaType: mediaTypes.ociIndex },
      { ...image, mediaType: mediaTypes.dockerManifest },
      store.index([image, larger]),
    ])
      await expect(store.walk(root)).rejects.toMatchObject({ code: 'bundle_corrupt' });
    const chart = layer('chart', { mediaType: 'application/vnd.example' });
    await expect(store.walk(store.index([chart]))).rejects.toMatchObject({
      code: 'image_unsupported',
      details: { digest: chart.digest },
    });
  });
});

describe('checkKinds', () => {
  const graphOf = (layers: Descriptor[], config: Partial<Descriptor> = {}): ImageGraph => {
    const store = new Store();
    const manifest = {
      kind: 'image' as const,
      mediaType: mediaTypes.ociManifest,
      config: { ...store.add(configOf(1), mediaTypes.ociConfig), ...config },
      layers,
    };
    const descriptor = store.image(layers);
    return { manifests: [descriptor], blobs: [], images: [{ descriptor, manifest: manifest as never }] };
  };
  const ociLayer = 'application/vnd.oci.image.layer.v1.tar';

  it.each<[string, Partial<Descriptor>]>([
    ['layer_foreign', { mediaType: mediaTypes.dockerForeignLayer }],
    ['layer_foreign', { mediaType: 'application/vnd.oci.image.layer.nondistributable.v1.tar', urls: ['https://x/y'] }],
    ['image_unsupported', { urls: ['https://x/y'] }],
    ['layer_encrypted', { mediaType: `${ociLayer}+gzip+encrypted` }],
    ['compression_unsupported', { mediaType: `${ociLayer}+br` }],
    ['bundle_corrupt', { mediaType: mediaTypes.ociManifest }],
    ['bundle_corrupt', { mediaType: mediaTypes.ociConfig }],
  ])('refuses with %s a layer that is %j', (code, more) => {
    expect(() => checkKinds(graphOf([layer('a', more)]))).toThrow(expect.objectContaining({ code }));
  });

  it.each([mediaTypes.ociManifest, mediaTypes.ociIndex, mediaTypes.ociLayerGzip])(
    'refuses a configuration of type %s',
    (mediaType) => {
      expect(() => checkKinds(graphOf([layer('a')], { mediaType }))).toThrow(
        expect.objectContaining({ code: 'bundle_corrupt' }),
      );
    },
  );

  it.each([ociLayer, `${ociLayer}+gzip`, `${ociLayer}+zstd`, 'application/vnd.example+br'])(
    'takes a layer of type %s',
    (mediaType) => expect(() => checkKinds(graphOf([layer('a', { mediaType, urls: [] })]))).not.toThrow(),
  );

  it('tells where a vendor has its layer, as far as a message has room', () => {
    const urls = Array.from({ length: 20 }, () => `https://vendor.example/${'x'.repeat(3000)}`);
    const foreign = layer('a', { mediaType: mediaTypes.dockerForeignLayer, urls });
    try {
      checkKinds(graphOf([foreign]));
      expect.fail('it was taken');
    } catch (error) {
      const { details } = error as { details: { urls: string[] } };
      expect(details.urls.map((url) => url.length)).toEqual(Array.from({ length: 10 }, () => 2000));
    }
  });
});

describe('describeImage', () => {
  const describeRoot = async (store: Store, root: Descriptor, options = {}) =>
    describeImage(await store.walk(root), (config) => store.read(config.digest), options);

  it('tells platforms in the order of the index, which of them are of zstd, and the size of all', async () => {
    const store = new Store();
    const arm = store.image([layer('a')], {}, configOf(1, { os: 'linux', architecture: 'arm64', variant: 'v8' }));
    const amd = store.image([layer('b', { mediaType: 'application/vnd.oci.image.layer.v1.tar+zstd' })]);
    const root = store.index([arm, amd]);
    const facts = await describeRoot(store, root);
    const platforms = [
      { os: 'linux', architecture: 'arm64', variant: 'v8' },
      { os: 'linux', architecture: 'amd64' },
    ];
    expect(facts).toMatchObject({ platforms, zstdPlatforms: [platforms[1]] });
    const { manifests, blobs } = await store.walk(root);
    expect(facts.sizeBytes).toBe(totalSize(manifests) + totalSize(blobs));
    expect(facts.configDigests).toHaveLength(2);
  });

  it.each([
    ['no layers', { os: 'linux', architecture: 'amd64' }],
    ['no platform', { os: '', architecture: '', rootfs: { type: 'layers', diff_ids: [digestOf('x')] } }],
  ])('takes a configuration that speaks of %s for one that runs nowhere', async (_what, config) => {
    const store = new Store();
    expect(await describeRoot(store, store.image([layer('a')], {}, config))).toMatchObject({
      platforms: [],
      configDigests: [],
    });
  });

  it('refuses, when it is to be strict, a configuration of other layers than the manifest has', async () => {
    const store = new Store();
    const root = store.image([layer('a'), layer('b')], {}, configOf(1));
    expect(await describeRoot(store, root)).toMatchObject({ platforms: [{ architecture: 'amd64' }] });
    await expect(describeRoot(store, root, { strict: true })).rejects.toMatchObject({
      code: 'bundle_corrupt',
      details: { detail: expect.stringContaining('1 layers, its manifest of 2') },
    });
  });
});
