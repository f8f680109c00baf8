import { execFile } from 'node:child_process';
import { mkdir, open, readdir, readFile, rm, stat, symlink, truncate, utimes, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { type Descriptor, mediaTypes, parseManifest } from '@airdock/core/oci/manifest';
import { layerCacheIn, openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import {
  addArtifact,
  buildDockerArchive,
  buildOciArchive,
  buildOciLayout,
  makeImage,
  makeIndex,
  type TestImage,
} from '@airdock/testing/bundles';
import { startRegistry, type TempDir, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { spawnSource } from '@airdock/testing/source-process';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { copyImages } from '../copy/copy-image.js';
import { type Garbage, RegistryCollector, type SweepOptions, type SweepStep } from './registry-collector.js';
import { RegistryStorage } from './registry-storage.js';

const run = promisify(execFile);
const hourMs = 60 * 60 * 1000;
const steps: SweepStep[] = ['looked', 'unlinked', 'lookedAgain', 'setAside', 'settled', 'condemned', 'removed'];
const base = { randomBytes: 300_000, seed: 'base' };

let dir: TempDir;
let server: TestRegistry;
let readOnly: TestRegistry;
let registry: RegistryClient;
let reader: RegistryClient;
let collector: RegistryCollector;
beforeEach(async () => {
  dir = await tempDir('collect');
  server = await startRegistry();
  readOnly = await startRegistry({ storageDir: server.storageDir, readOnly: true });
  registry = new RegistryClient(server.url);
  reader = new RegistryClient(readOnly.url);
  collector = new RegistryCollector(server.storageDir);
});
afterEach(async () => {
  await Promise.all([registry.close(), reader.close()]);
  await readOnly.stop();
  await server.stop();
  await dir.remove();
});

const tree = () => join(server.storageDir, 'docker/registry/v2');
const blobFile = (digest: string) => join(tree(), 'blobs/sha256', digest.slice(7, 9), digest.slice(7), 'data');
const files = async (folder = tree()) =>
  (await readdir(folder, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));

/** Everything was pushed so long ago. */
async function age(hours = 3): Promise<void> {
  const then = new Date(Date.now() - hours * hourMs);
  for (const path of await files()) await utimes(path, then, then);
}

const options = (more: Partial<SweepOptions> = {}): SweepOptions => ({
  protectMs: 2 * hourMs,
  uploadMs: 168 * hourMs,
  needed: async () => new Set(),
  owner: 'test',
  settleMs: 0,
  ...more,
});

async function collect(more: Partial<SweepOptions> = {}): Promise<Garbage> {
  const sweep = await collector.sweep(options(more));
  await sweep.remove();
  return sweep.freed;
}

/**
 * Pushes a bundle as Airdock does: every image under its name below `repository`, or the repositories of its own name.
 */
async function push(
  file: string,
  { placed = false, names }: { placed?: boolean; names?: string[] } = {},
): Promise<Digest[]> {
  await using source = await openBundle(file, { workDir: join(dir.path, 'work') });
  const id = placed ? await RegistryStorage.enable(server.storageDir, registry) : undefined;
  const storage = id ? await RegistryStorage.open({ folder: server.storageDir, id }) : undefined;
  const images = source.images.map((image) => ({
    image,
    names: (names ?? image.names.map((name) => name.replace(/^[^/]+\//, ''))).map((name) => {
      const [repository = '', tag] = name.split(':');
      return { repository, tag };
    }),
  }));
  const copied = await copyImages({ source, images, registry, storage });
  return copied.map(({ digest, error }) => {
    if (error || !digest) throw error ?? new Error('no digest');
    return digest;
  });
}

async function pushImage(image: TestImage, name: string): Promise<Digest> {
  const file = join(dir.path, `${name.replaceAll(/[/:]/g, '-')}.tar`);
  await buildOciArchive(file, [{ ...image, names: [`reg.site/${name}`] }]);
  const [digest] = await push(file);
  return digest as Digest;
}

/**
 * Reads all of an image as a host does, from the read-only registry, and checks every digest. Returns the digest of its
 * root.
 */
async function pull(name: string): Promise<Digest> {
  const at = name.includes('@') ? name.indexOf('@') : name.lastIndexOf(':');
  const repository = name.slice(0, at);
  const pullManifest = async (reference: string): Promise<Digest> => {
    const found = await reader.getManifest(repository, reference);
    if (!found) throw new AppError('image_not_found', { detail: `${repository} ${reference}` });
    const document = parseManifest(found.bytes, found.mediaType);
    if (document.kind === 'index') for (const child of document.manifests) await pullManifest(child.digest);
    else
      for (const { digest } of [document.config, ...document.layers]) {
        const chunks: Buffer[] = [];
        for await (const chunk of await reader.getBlob(repository, digest)) chunks.push(chunk as Buffer);
        expect(digestOf(Buffer.concat(chunks))).toBe(digest);
      }
    return found.digest;
  };
  return pullManifest(name.slice(at + 1));
}

const isThere = async (digest: string) => (await stat(blobFile(digest)).catch(() => undefined)) !== undefined;
const left = async () => readdir(join(server.storageDir, 'airdock-garbage')).catch(() => []);

const manifestOf = ({ config, configDigest, layers }: TestImage): Buffer =>
  Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.ociManifest,
      config: { mediaType: mediaTypes.ociConfig, digest: configDigest, size: config.byteLength },
      layers: layers.map(({ gzip, digest }) => ({ mediaType: mediaTypes.ociLayerGzip, digest, size: gzip.byteLength })),
    }),
  );

/**
 * A push by Docker: it asks for each blob, sends what is missing, and then the manifest, which is accepted or refused.
 */
class DockerPush {
  constructor(
    private readonly image: TestImage,
    private readonly repository: string,
  ) {}

  async blobs(): Promise<void> {
    const { config, configDigest, layers } = this.image;
    for (const [digest, bytes] of [
      [configDigest, config] as const,
      ...layers.map((layer) => [layer.digest, layer.gzip] as const),
    ]) {
      const url = `${server.url}/v2/${this.repository}/blobs`;
      if ((await fetch(`${url}/${digest}`, { method: 'HEAD' })).ok) continue;
      const location = (await fetch(`${url}/uploads/`, { method: 'POST' })).headers.get('location') ?? '';
      const target = new URL(location, server.url);
      target.searchParams.set('digest', digest);
      const put = await fetch(target, {
        method: 'PUT',
        body: new Uint8Array(bytes),
        headers: { 'content-type': 'application/octet-stream' },
      });
      if (put.status !== 201) throw new Error(`the upload was answered with ${put.status}`);
    }
  }

  /** Status, and the registry's code when it refuses. */
  async manifest(tag: string): Promise<{ status: number; code?: string }> {
    const put = await fetch(`${server.url}/v2/${this.repository}/manifests/${tag}`, {
      method: 'PUT',
      body: new Uint8Array(manifestOf(this.image)),
      headers: { 'content-type': mediaTypes.ociManifest },
    });
    const { errors } = (put.ok ? {} : await put.json()) as { errors?: { code: string }[] };
    return { status: put.status, ...(errors ? { code: errors[0]?.code ?? '' } : {}) };
  }
}

/** An image whose tag now leads to another one. Returns the image that is garbage now. */
async function replaced(name = 'app:1'): Promise<{ old: TestImage; oldDigest: Digest; digest: Digest }> {
  const old = await makeImage({ name: [], layers: [base, { randomBytes: 200_000, seed: `old ${name}` }] });
  const oldDigest = await pushImage(old, name);
  const digest = await pushImage(
    await makeImage({ name: [], layers: [base, { randomBytes: 100_000, seed: `new ${name}` }] }),
    name,
  );
  await age();
  return { old, oldDigest, digest };
}

describe('a collection', () => {
  it('frees what no tag leads to any more, and nothing else; the estimate was what is freed', async () => {
    const { old, oldDigest, digest } = await replaced();
    const estimate = await collector.estimate(options());
    const oldLayer = old.layers[1];
    // Manifest, configuration and one of the two layers, which also have links; the tag knew the manifest as well.
    expect(estimate).toMatchObject({ blobs: 3, revisions: 1, links: 3, uploads: 0 });
    expect(estimate.largest[0]).toEqual({
      repository: 'app',
      digest: oldLayer?.digest,
      bytes: oldLayer?.gzip.byteLength,
    });
    expect(estimate.repositories).toEqual([
      { repository: 'app', bytes: estimate.bytes, revisions: 1, links: 3, uploads: 0 },
    ]);
    expect(await isThere(oldLayer?.digest ?? '')).toBe(true);
    expect(await collect()).toEqual(estimate);
    expect(await pull('app:1')).toBe(digest);
    expect(await registry.headManifest('app', oldDigest)).toBeUndefined();
    expect(await registry.headBlob('app', oldLayer?.digest as Digest)).toBeUndefined();
    for (const gone of [oldDigest, old.configDigest, oldLayer?.digest ?? '']) expect(await isThere(gone)).toBe(false);
    expect(await left()).toEqual([]);
    expect(await collector.estimate(options())).toMatchObject({
      blobs: 0,
      bytes: 0,
      revisions: 0,
      links: 0,
      uploads: 0,
      repositories: [],
    });
  });

  it('keeps every child of a tagged index, and frees an index and its other children when only one child has a tag', async () => {
    const images = await Promise.all(
      ['amd64', 'arm64'].map((architecture) =>
        makeImage({
          name: [],
          layers: [base, { randomBytes: 9000, seed: architecture }],
          platform: { os: 'linux', architecture },
        }),
      ),
    );
    const [file, other] = [join(dir.path, 'index.tar'), join(dir.path, 'other.tar')];
    const [root] = await buildOciArchive(file, [makeIndex('reg.site/multi:1', images, { attestation: true })]);
    await push(file);
    await buildOciArchive(other, [makeIndex('reg.site/single:1', images)]);
    const [single] = await push(other, { names: ['single:1'] });
    const child = digestOf(manifestOf(images[0] as TestImage));
    await registry.putManifest('single', 'amd64', manifestOf(images[0] as TestImage), mediaTypes.ociManifest);
    await registry.deleteTag('single', '1');
    await age();
    const freed = await collect();
    expect(await pull('multi:1')).toBe(root?.digest);
    expect(await pull('single:amd64')).toBe(child);
    expect(await registry.headManifest('single', single as Digest)).toBeUndefined();
    expect(await registry.headManifest('single', digestOf(manifestOf(images[1] as TestImage)))).toBeUndefined();
    // The other repository needs the arm64 image: here only its links went.
    expect(freed.repositories).toEqual([expect.objectContaining({ repository: 'single' })]);
    expect(await isThere(images[1]?.layers[1]?.digest ?? '')).toBe(true);
  });

  it('keeps referrers with their subject, lists of referrers and signatures by their tags, and frees referrers with their subject', async () => {
    const folder = join(dir.path, 'layout');
    const [root] = await buildOciLayout(folder, [await makeImage({ name: 'reg.site/app:1', layers: [base] })]);
    const sbom = await addArtifact(folder, {
      type: 'application/spdx+json',
      text: 'parts',
      subject: root as Descriptor,
    });
    const proof = await addArtifact(folder, { type: 'application/x-proof', text: 'signed parts', subject: sbom });
    const content = (digest: string) => readFile(join(folder, 'blobs/sha256', digest.slice(7)));
    await push(folder);
    const list = `sha256-${digestHex(root?.digest as Digest)}`;
    // As a registry with the referrers API has it: nothing but the subject leads to them.
    const listed = (await registry.headManifest('app', list))?.digest as Digest;
    await registry.deleteTag('app', list);
    await registry.deleteTag('app', `sha256-${digestHex(sbom.digest)}`);
    await registry.putManifest('app', `${list}.sig`, await content(proof.digest), mediaTypes.ociManifest);
    await registry.deleteTag('app', `${list}.sig`);
    await registry.putManifest('app', proof.digest, await content(proof.digest), mediaTypes.ociManifest);
    await registry.putManifest('app', sbom.digest, await content(sbom.digest), mediaTypes.ociManifest);
    await age();
    await collect();
    expect(await registry.headManifest('app', listed)).toBeUndefined();
    expect(await pull(`app@${sbom.digest}`)).toBe(sbom.digest);
    expect(await pull(`app@${proof.digest}`)).toBe(proof.digest);
    await registry.deleteTag('app', '1');
    await age();
    await collect();
    for (const { digest } of [sbom, proof, root as Descriptor]) expect(await isThere(digest)).toBe(false);
    expect(await registry.listRepositories()).toEqual([]);

    await push(folder);
    await age();
    expect(await collect()).toMatchObject({ blobs: 0, revisions: 0 });
    expect(await pull(`app:${list}`)).toBe(listed);
  });

  it('keeps what it is told to, also where a link to it is missing, with all that it consists of', async () => {
    const { oldDigest, old } = await replaced();
    const needed = async () => new Set([oldDigest]);
    expect(await collect({ needed })).toMatchObject({ blobs: 0, revisions: 0, links: 0 });
    expect(await pull(`app@${oldDigest}`)).toBe(oldDigest);
    await registry.deleteManifest('app', oldDigest);
    expect(await collect({ needed })).toMatchObject({ blobs: 0 });
    expect(await isThere(old.layers[1]?.digest ?? '')).toBe(true);
  });

  it('does not touch what is younger than the window: images without a tag, mounted layers, blobs without an image', async () => {
    const { oldDigest, old } = await replaced();
    const upload = await makeImage({ name: [], layers: [{ randomBytes: 5000, seed: 'under way' }] });
    await new DockerPush(upload, 'new').blobs();
    expect(await registry.mountBlob('other', old.layers[1]?.digest as Digest, 'app')).toBe(true);
    const revision = join(tree(), `repositories/app/_manifests/revisions/sha256/${oldDigest.slice(7)}/link`);
    await utimes(revision, new Date(), new Date());
    expect(await collect()).toMatchObject({ blobs: 0, revisions: 0, links: 0 });
    await age();
    await utimes(
      join(tree(), `repositories/other/_layers/sha256/${old.layers[1]?.digest.slice(7)}/link`),
      new Date(),
      new Date(),
    );
    // The layer stays for the one who mounted it.
    expect(await collect()).toMatchObject({ revisions: 1, blobs: 4 });
    expect(await isThere(old.layers[1]?.digest ?? '')).toBe(true);
    expect(await registry.headBlob('other', old.layers[1]?.digest as Digest)).toBeDefined();
  });

  it.each([
    { how: 'over HTTP', placed: false },
    { how: 'into its folder', placed: true },
  ])('lets the image be pushed again $how, and pulled', async ({ placed }) => {
    const file = join(dir.path, 'again.tar');
    await buildOciArchive(file, [
      await makeImage({ name: 'reg.site/again:1', layers: [base, { randomBytes: 50_000 }] }),
    ]);
    const [digest] = await push(file, { placed });
    await registry.deleteTag('again', '1');
    await age();
    expect((await collect()).blobs).toBeGreaterThanOrEqual(4);
    expect(await push(file, { placed })).toEqual([digest]);
    expect(await pull('again:1')).toBe(digest);
  });

  it('lets the cache of compressed layers tell which of its layers are gone, before their space is given back', async () => {
    const file = join(dir.path, 'saved.tar');
    await buildDockerArchive(
      file,
      await Promise.all(
        ['a', 'b'].map((name) =>
          makeImage({ name: `reg.site/${name}:1`, layers: [{ randomBytes: 2_000_000, seed: name }] }),
        ),
      ),
    );
    const digests = await push(file, { placed: true });
    const cache = join(dir.path, 'work/layers');
    expect(await readdir(cache)).toHaveLength(4);
    await registry.deleteTag('a', '1');
    await age();
    const cached = layerCacheIn(join(dir.path, 'work'));
    const id = (await RegistryStorage.enable(server.storageDir, registry)) as string;
    const storage = (await RegistryStorage.open({ folder: server.storageDir, id })) as RegistryStorage;
    const isGone = async (layer: { digest: Digest; size: number }) => !(await storage.hasBlob(layer));
    expect(await cached.forget(isGone)).toBe(0);
    const onStep = async (step: SweepStep) => {
      if (step === 'condemned') expect(await cached.forget(isGone)).toBe(1);
    };
    await collect({ onStep });
    expect(await readdir(cache)).toHaveLength(2);
    expect(await pull('b:1')).toBe(digests[1]);
    expect(await push(file, { placed: true })).toEqual(digests);
    expect(await pull('a:1')).toBe(digests[0]);
  });

  it('leaves what a push finds there, before it looks or while it does, since that is made young', async () => {
    const { old } = await replaced();
    const id = (await RegistryStorage.enable(server.storageDir, registry)) as string;
    const storage = (await RegistryStorage.open({ folder: server.storageDir, id })) as RegistryStorage;
    const layer = { mediaType: '', digest: old.layers[1]?.digest as Digest, size: old.layers[1]?.gzip.byteLength ?? 0 };
    const config = { mediaType: '', digest: old.configDigest, size: old.config.byteLength };
    expect(await storage.keep('app', layer)).toBe(true);
    const found: boolean[] = [];
    const onStep = async (step: SweepStep) => {
      if (step === 'looked') found.push(await storage.keep('app', config));
      if (step === 'unlinked') found.push(await storage.has('app', config));
    };
    expect(await collect({ onStep })).toMatchObject({ blobs: 1, revisions: 1 });
    expect(found).toEqual([true, true]);
    expect(await Promise.all([layer, config].map((blob) => storage.has('app', blob)))).toEqual([true, true]);
    await age();
    expect(await collect()).toMatchObject({ blobs: 2 });
    expect(await storage.keep('app', config)).toBe(false);
  });

  it('removes uploads that nobody has sent anything to for a week, but for those that someone has open', async () => {
    const begin = async () =>
      (await fetch(`${server.url}/v2/app/blobs/uploads/`, { method: 'POST' })).headers.get('docker-upload-uuid') ?? '';
    const [abandoned, written, recent] = [await begin(), await begin(), await begin()];
    await age(24 * 8);
    const folder = join(tree(), 'repositories/app/_uploads');
    for (const id of [abandoned, written]) await writeFile(join(folder, id, 'data'), 'half');
    for (const id of [abandoned, written]) await utimes(join(folder, id, 'data'), new Date(0), new Date(0));
    await utimes(join(folder, recent, 'startedat'), new Date(Date.now() - 24 * hourMs), new Date());
    await using _writer = await open(join(folder, written, 'data'), 'a');
    expect(await collector.estimate(options())).toMatchObject({ uploads: 1, blobs: 0 });
    expect((await collect()).uploads).toBe(1);
    expect((await readdir(folder)).sort()).toEqual([written, recent].sort());
  });

  it('is refused while a manifest cannot be read, by its name, and then nothing goes', async () => {
    const { digest, oldDigest } = await replaced();
    const before = (await files()).length;
    const bytes = await readFile(blobFile(digest));
    await truncate(blobFile(digest), 20);
    await age();
    await expect(collect()).rejects.toMatchObject({
      code: 'registry_damaged',
      details: { damaged: [expect.stringContaining(`app:1: ${digest}`)] },
    });
    await expect(collector.estimate(options())).rejects.toMatchObject({ code: 'registry_damaged' });
    await writeFile(blobFile(digest), bytes);
    await writeFile(join(tree(), 'repositories/app/_manifests/tags/1/current/link'), 'nonsense');
    await age();
    await expect(collect()).rejects.toMatchObject({ details: { damaged: ['app:1 leads to "nonsense"'] } });
    await writeFile(join(tree(), 'repositories/app/_manifests/tags/1/current/link'), digest);
    await age();
    expect(await files()).toHaveLength(before);
    await collect();
    expect(await isThere(oldDigest)).toBe(false);
    expect(await pull('app:1')).toBe(digest);
  });

  it('goes on while hosts pull what stays', async () => {
    const { digest } = await replaced();
    let isOver = false;
    let pulls = 0;
    const pulling = (async () => {
      while (!isOver) {
        expect(await pull('app:1')).toBe(digest);
        pulls += 1;
      }
    })();
    // Each step waits for a pull that began in it.
    const onStep = async () => {
      const before = pulls;
      while (pulls < before + 2) await Promise.race([pulling, new Promise((resolve) => setTimeout(resolve, 1))]);
    };
    await collect({ onStep });
    isOver = true;
    await pulling;
    expect(pulls).toBeGreaterThan(10);
  });

  it('brings everything back when it is stopped before the end, and finishes once the last look is done', async () => {
    for (const step of steps) {
      const { oldDigest } = await replaced();
      const before = (await files()).sort();
      const stop = new AbortController();
      const sweep = collect({
        signal: stop.signal,
        onStep: (done) => void (done === step && stop.abort(new AppError('job_cancelled'))),
      });
      if (steps.indexOf(step) < steps.indexOf('condemned')) {
        await expect(sweep).rejects.toMatchObject({ code: 'job_cancelled' });
        expect((await files()).sort()).toEqual(before);
        expect(await pull(`app@${oldDigest}`)).toBe(oldDigest);
        await collect();
      } else expect((await sweep).blobs).toBe(3);
      expect(await isThere(oldDigest)).toBe(false);
      expect(await left()).toEqual([]);
    }
  });
});

describe('what a registry that was taken over has put where collections set things aside', () => {
  const garbage = () => join(server.storageDir, 'airdock-garbage');
  it.each(['', 'aside', 'condemned'])('leads nobody elsewhere: airdock-garbage/%s', async (name) => {
    const outside = join(dir.path, 'outside');
    for (const path of ['empty', 'aside/empty', 'condemned/empty'])
      await mkdir(join(outside, path), { recursive: true });
    for (const path of ['secrets.key', 'aside/secrets.key', 'condemned/secrets.key'])
      await writeFile(join(outside, path), '');
    const before = await readdir(outside, { recursive: true });
    if (name) await mkdir(garbage());
    await symlink(outside, join(garbage(), name));
    await collector.hasLeftovers();
    await collector.recover(async () => undefined);
    expect(await readdir(outside, { recursive: true })).toEqual(before);
    expect(await collector.hasLeftovers()).toBe(false);
  });

  it.each(['', 'null', '{"freed":{}}', '{"id":1}'])(
    'is no record of a sweep, and keeps the next one from nothing: %j',
    async (text) => {
      await mkdir(join(garbage(), 'condemned'), { recursive: true });
      await writeFile(join(garbage(), 'condemned/sweep.json'), text);
      const seen: unknown[] = [];
      await collector.recover(async (sweep) => void seen.push(sweep));
      expect([seen, await collector.hasLeftovers()]).toEqual([[], false]);
    },
  );
});

describe('a push beside a collection', () => {
  const cases = steps.flatMap((from, index) => steps.slice(index).map((to) => ({ from, to })));

  it.each(cases)(
    'that looks for its blobs after $from and sends its manifest after $to ends complete, or refused',
    async ({ from, to }) => {
      const { old, oldDigest, digest } = await replaced();
      const docker = new DockerPush(old, 'app');
      let answer: { status: number; code?: string } | undefined;
      await collect({
        onStep: async (step) => {
          if (step === from) await docker.blobs();
          if (step === to) answer = await docker.manifest('again');
        },
      });
      if (answer?.status !== 201) {
        expect(answer).toEqual({ status: 400, code: 'MANIFEST_BLOB_UNKNOWN' });
        await docker.blobs();
        expect((await docker.manifest('again')).status).toBe(201);
      }
      expect(await pull('app:again')).toBe(oldDigest);
      expect(await pull('app:1')).toBe(digest);
      await age();
      await collect();
      expect(await pull('app:again')).toBe(oldDigest);
      expect(await left()).toEqual([]);
    },
  );

  it('is refused only when it relied on what was unlinked', async () => {
    const { old } = await replaced();
    const docker = new DockerPush(old, 'app');
    const answers: unknown[] = [];
    await docker.blobs();
    await collect({
      onStep: async (step) => void (step === 'unlinked' && answers.push(await docker.manifest('again'))),
    });
    expect(answers).toEqual([{ status: 400, code: 'MANIFEST_BLOB_UNKNOWN' }]);
  });

  it('that had its manifest accepted before keeps everything, at any step before the last look', async () => {
    for (const step of steps.slice(0, steps.indexOf('settled'))) {
      const repository = `app-${step.toLowerCase()}`;
      const { old, oldDigest } = await replaced(`${repository}:1`);
      // What the registry had begun to do before the links went: it writes the tag at the end.
      const link = async () => {
        for (const [path, text] of [
          [`_manifests/revisions/sha256/${oldDigest.slice(7)}/link`, oldDigest],
          ['_manifests/tags/late/current/link', oldDigest],
        ] as const) {
          const file = join(tree(), 'repositories', repository, path);
          await mkdir(dirname(file), { recursive: true });
          await writeFile(file, text);
        }
      };
      await collect({
        onStep: async (done) => {
          if (done === step) await link();
          // The second look has seen it.
          if (done === 'lookedAgain' && step === 'unlinked') expect(await pull(`${repository}:late`)).toBe(oldDigest);
        },
      });
      expect(await pull(`${repository}:late`)).toBe(oldDigest);
      expect(await isThere(old.layers[1]?.digest ?? '')).toBe(true);
    }
  });
});

describe('a collection whose process was killed', () => {
  it.each(steps)('after it has %s is ended by the next one: every tag pulls, and the garbage is gone', async (step) => {
    const { old, oldDigest, digest } = await replaced();
    const expected = await collector.estimate(options());
    const child = spawnSource(`
      const { RegistryCollector } = await import(${JSON.stringify(new URL('./registry-collector.ts', import.meta.url).href)});
      const collector = new RegistryCollector(${JSON.stringify(server.storageDir)});
      const onStep = (step) => { if (step === '${step}') process.kill(process.pid, 'SIGKILL'); };
      const sweep = await collector.sweep({ protectMs: ${2 * hourMs}, uploadMs: ${hourMs}, needed: async () => new Set(), owner: 'killed', settleMs: 0, onStep });
      await sweep.remove();`);
    const signal = await new Promise((resolve) => child.on('close', (_code, how) => resolve(how)));
    expect(signal).toBe('SIGKILL');
    expect(await pull('app:1')).toBe(digest);
    const isSetAside = steps.indexOf(step) < steps.indexOf('condemned');
    const known: Garbage[] = [];
    await collector.recover(async ({ owner, freed }) => {
      expect(owner).toBe('killed');
      known.push(freed);
    });
    expect(await collector.hasLeftovers()).toBe(false);
    if (isSetAside) expect(await pull(`app@${oldDigest}`)).toBe(oldDigest);
    expect(known).toEqual(step === 'condemned' ? [expected] : []);
    const freed = await collect();
    expect(freed).toMatchObject(isSetAside ? expected : { blobs: 0, bytes: 0 });
    expect(await pull('app:1')).toBe(digest);
    for (const gone of [oldDigest, old.configDigest, old.layers[1]?.digest ?? ''])
      expect(await isThere(gone)).toBe(false);
  });
});

describe('a collection on a disk that is full', () => {
  let canMount: boolean;
  beforeEach(async (context) => {
    canMount = await run('mount', ['-t', 'tmpfs', '-o', 'size=20m,nr_inodes=900', 'tmpfs', server.storageDir]).then(
      () => true,
      () => false,
    );
    if (!canMount) context.skip('no file system can be mounted');
  });
  afterEach(async () => {
    if (canMount) await run('umount', ['--lazy', server.storageDir]);
  });
  /** Garbage in eight repositories, and an image that stays. */
  const garbage = async () => {
    for (let index = 0; index < 8; index++) {
      await pushImage(
        await makeImage({ name: [], layers: [{ randomBytes: 50_000, seed: `old ${index}` }] }),
        `team-${index}/app:1`,
      );
      await registry.deleteTag(`team-${index}/app`, '1');
    }
    const kept = await pushImage(await makeImage({ name: [], layers: [base] }), 'kept:1');
    await age();
    return kept;
  };
  /** Leaves so many files to be made. */
  const leave = async (count: number) => {
    await run('sh', [
      '-c',
      'mkdir "$0/full"; i=0; while true >"$0/full/$i"; do i=$((i+1)); done',
      server.storageDir,
    ]).catch(() => undefined);
    for (const name of (await readdir(join(server.storageDir, 'full'))).slice(0, count))
      await rm(join(server.storageDir, 'full', name));
  };

  it.each([18, 40, 80])('frees as much at a time as there are files for: %i', async (count) => {
    const kept = await garbage();
    const estimate = await collector.estimate(options());
    await leave(count);
    const sweeps: Garbage[] = [];
    for (let isPartial = true; isPartial; ) {
      expect(sweeps.length).toBeLessThan(20);
      const sweep = await collector.sweep(options());
      await sweep.remove();
      sweeps.push(sweep.freed);
      isPartial = sweep.isPartial;
    }
    expect(sweeps.length).toBeGreaterThan(1);
    for (const what of ['blobs', 'bytes', 'revisions', 'links'] as const)
      expect(sweeps.reduce((sum, freed) => sum + freed[what], 0)).toBe(estimate[what]);
    expect(await pull('kept:1')).toBe(kept);
    expect(await left()).toEqual([]);
    expect(await collector.estimate(options())).toMatchObject({ blobs: 0, revisions: 0, links: 0 });
  });

  it.each([
    ['file', () => leave(0)],
    ['room for a folder', () => leave(5)],
    ['byte', () => run('sh', ['-c', 'cat /dev/zero >"$0/full" || true', server.storageDir])],
  ])('says so where there is no %s, and has changed nothing', async (_, fill) => {
    const kept = await garbage();
    const before = await files();
    const estimate = await collector.estimate(options());
    await fill();
    await expect(collector.sweep(options())).rejects.toMatchObject({ code: 'space_insufficient' });
    expect(await files()).toEqual(before);
    expect(await left()).toEqual([]);
    await rm(join(server.storageDir, 'full'), { recursive: true });
    expect(await collect()).toEqual(estimate);
    expect(await pull('kept:1')).toBe(kept);
  });
});
