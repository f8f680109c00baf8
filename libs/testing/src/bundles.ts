/**
 * Image bundles for specs and the demo, written independently of the code that reads them, the way Docker, containerd
 * and skopeo write them, and ways to break them. Everything is small and made in memory; random content is the same for
 * the same seed.
 */

import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, open, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { gzipSync } from 'node:zlib';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { type Descriptor, mediaTypes, type Platform } from '@airdock/core/oci/manifest';
import { type Header, pack } from 'tar-stream';

/** A tar member's header, as tar-stream takes it. */
export type MemberHeader = Partial<Header> & Pick<Header, 'name'>;

/** A layer: files by path, or one file of incompressible bytes. The same spec gives the same layer. */
export type LayerSpec = { files: Record<string, string> } | { randomBytes: number; seed?: string };

export interface ImageSpec {
  /** Full names; the first one is the main one. */
  name: string | readonly string[];
  layers: readonly LayerSpec[];
  /** Default linux/amd64. */
  platform?: Platform;
  cmd?: readonly string[];
}

export interface TestLayer {
  tar: Buffer;
  diffId: Digest;
  gzip: Buffer;
  digest: Digest;
}

export interface TestImage {
  names: string[];
  platform: Platform;
  config: Buffer;
  /** The image ID. */
  configDigest: Digest;
  layers: TestLayer[];
}

/** Several images under one name, one per platform. */
export interface TestIndex {
  names: string[];
  images: TestImage[];
  /** Adds a BuildKit attestation for the first image. */
  attestation?: boolean;
}

/** A time long ago, so that bundles are the same every time. */
const mtime = new Date(1_600_000_000_000);

/** `size` bytes that do not compress, from a seed. */
export function randomContent(size: number, seed = 'airdock'): Buffer {
  const block = createHash('shake256', { outputLength: Math.min(size, 1024 * 1024) })
    .update(seed)
    .digest();
  const content = Buffer.alloc(size);
  for (let at = 0, round = 0; at < size; at += block.byteLength, round++) {
    block.copy(content, at);
    content.writeUInt32LE(round, Math.min(at, Math.max(size - 4, 0)));
  }
  return content;
}

async function tarOf(entries: readonly { header: MemberHeader; content?: Buffer }[]): Promise<Buffer> {
  const tar = pack();
  const chunks: Buffer[] = [];
  const done = (async () => {
    for await (const chunk of tar) chunks.push(chunk as Buffer);
  })();
  for (const { header, content } of entries) tar.entry({ mtime, ...header }, content ?? '');
  tar.finalize();
  await done;
  return Buffer.concat(chunks);
}

async function makeLayer(spec: LayerSpec): Promise<TestLayer> {
  const files =
    'files' in spec
      ? Object.entries(spec.files).map(([name, text]) => [name, Buffer.from(text)] as const)
      : [['data.bin', randomContent(Math.max(spec.randomBytes, 4), spec.seed)] as const];
  const tar = await tarOf(files.map(([name, content]) => ({ header: { name, mode: 0o755 }, content })));
  const gzip = gzipSync(tar, { level: 1 });
  return { tar, diffId: digestOf(tar), gzip, digest: digestOf(gzip) };
}

/** An image in memory. */
export async function makeImage({
  name,
  layers: specs,
  platform = { os: 'linux', architecture: 'amd64' },
  cmd = ['/bin/true'],
}: ImageSpec): Promise<TestImage> {
  const layers = await Promise.all(specs.map(makeLayer));
  const config = Buffer.from(
    JSON.stringify({
      created: mtime.toISOString(),
      ...platform,
      config: { Cmd: cmd },
      rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
      history: layers.map(() => ({ created: mtime.toISOString(), created_by: 'airdock test' })),
    }),
  );
  return {
    names: typeof name === 'string' ? [name] : [...name],
    platform,
    config,
    configDigest: digestOf(config),
    layers,
  };
}

/** Images for several platforms as one index. */
export const makeIndex = (
  name: string | readonly string[],
  images: readonly TestImage[],
  options: { attestation?: boolean } = {},
): TestIndex => ({
  names: typeof name === 'string' ? [name] : [...name],
  images: [...images],
  ...options,
});

/** A tar of these members, in their order. */
export async function writeTar(
  file: string,
  entries: readonly { header: MemberHeader; content?: Buffer }[],
): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  const tar = pack();
  const written = pipeline(tar, createWriteStream(file));
  for (const { header, content } of entries) {
    await new Promise<void>((resolve, reject) => {
      tar.entry({ mtime, ...header }, content ?? '', (error) => (error ? reject(error) : resolve()));
    });
  }
  tar.finalize();
  await written;
}

export interface DockerArchiveOptions {
  /** Layers go in already compressed, as podman and kaniko can do. */
  gzipLayers?: boolean;
}

/**
 * A docker-archive as Docker 20 writes it: `<id>/layer.tar`, links for layers that occurred before, `manifest.json` and
 * `repositories`.
 */
export async function buildDockerArchive(
  file: string,
  images: readonly TestImage[],
  { gzipLayers = false }: DockerArchiveOptions = {},
): Promise<void> {
  const entries: { header: MemberHeader; content?: Buffer }[] = [];
  const firstHome = new Map<Digest, string>();
  const manifest: unknown[] = [];
  const repositories: Record<string, Record<string, string>> = {};
  for (const { names, config, configDigest, layers } of images) {
    let chain = '';
    const members = layers.map(({ tar, gzip, diffId }, index) => {
      chain = digestHex(digestOf(`${configDigest} ${chain} ${diffId} ${index}`));
      const home = firstHome.get(diffId);
      entries.push(
        { header: { name: `${chain}/`, type: 'directory' } },
        { header: { name: `${chain}/VERSION` }, content: Buffer.from('1.0') },
      );
      entries.push({ header: { name: `${chain}/json` }, content: Buffer.from(JSON.stringify({ id: chain })) });
      if (home)
        entries.push({ header: { name: `${chain}/layer.tar`, type: 'symlink', linkname: `../${home}/layer.tar` } });
      else {
        firstHome.set(diffId, chain);
        entries.push({ header: { name: `${chain}/layer.tar` }, content: gzipLayers ? gzip : tar });
      }
      return `${chain}/layer.tar`;
    });
    entries.push({ header: { name: `${digestHex(configDigest)}.json` }, content: config });
    manifest.push({
      Config: `${digestHex(configDigest)}.json`,
      RepoTags: names.length ? names : null,
      Layers: members,
    });
    for (const name of names) {
      const colon = name.lastIndexOf(':');
      repositories[name.slice(0, colon)] = { ...repositories[name.slice(0, colon)], [name.slice(colon + 1)]: chain };
    }
  }
  entries.push({ header: { name: 'manifest.json' }, content: Buffer.from(JSON.stringify(manifest)) });
  entries.push({ header: { name: 'repositories' }, content: Buffer.from(JSON.stringify(repositories)) });
  await writeTar(file, entries);
}

export interface OciOptions {
  /** Which annotation carries the name. Default `ref.name` in full, as skopeo writes it. */
  names?: 'ref.name' | 'containerd' | 'tag-only' | 'none';
  /** Adds Docker's manifest.json, as `docker save` does since 25 and `ctr images export` always did. */
  withDockerManifest?: boolean;
  /** Leaves the content of these platforms (`linux/arm64`) out of an index, as exports of one platform do. */
  omitPlatforms?: readonly string[];
}

interface Layout {
  files: Map<string, Buffer>;
  /** Roots, in the order of the images given. */
  roots: Descriptor[];
}

function layoutOf(
  images: readonly (TestImage | TestIndex)[],
  { names = 'ref.name', withDockerManifest = false, omitPlatforms = [] }: OciOptions,
): Layout {
  const files = new Map<string, Buffer>([['oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')]]);
  const roots: Descriptor[] = [];
  const entries: Descriptor[] = [];
  const docker: unknown[] = [];
  const add = (content: Buffer, mediaType: string): Descriptor => {
    const digest = digestOf(content);
    files.set(`blobs/sha256/${digestHex(digest)}`, content);
    return { mediaType, digest, size: content.byteLength };
  };
  const addImage = ({ config, layers, platform }: TestImage): Descriptor => {
    const omitted = omitPlatforms.includes(`${platform.os}/${platform.architecture}`);
    const keep = (content: Buffer, mediaType: string) =>
      omitted ? { mediaType, digest: digestOf(content), size: content.byteLength } : add(content, mediaType);
    const manifest = {
      schemaVersion: 2,
      mediaType: mediaTypes.ociManifest,
      config: keep(config, mediaTypes.ociConfig),
      layers: layers.map(({ gzip }) => keep(gzip, mediaTypes.ociLayerGzip)),
    };
    return keep(Buffer.from(JSON.stringify(manifest)), mediaTypes.ociManifest);
  };
  for (const image of images) {
    let root: Descriptor;
    if ('images' in image) {
      const children: Descriptor[] = image.images.map((child) => ({ ...addImage(child), platform: child.platform }));
      const [subject] = children;
      if (image.attestation && subject) {
        const statement = add(
          Buffer.from(JSON.stringify({ predicate: subject.digest })),
          'application/vnd.in-toto+json',
        );
        const config = add(
          Buffer.from('{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'),
          mediaTypes.ociConfig,
        );
        const document = { schemaVersion: 2, mediaType: mediaTypes.ociManifest, config, layers: [statement] };
        children.push({
          ...add(Buffer.from(JSON.stringify(document)), mediaTypes.ociManifest),
          platform: { os: 'unknown', architecture: 'unknown' },
          annotations: {
            'vnd.docker.reference.type': 'attestation-manifest',
            'vnd.docker.reference.digest': subject.digest,
          },
        });
      }
      root = add(
        Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests: children })),
        mediaTypes.ociIndex,
      );
    } else root = addImage(image);
    roots.push(root);
    for (const name of image.names) entries.push({ ...root, annotations: nameAnnotations(name, names) });
    const [shown] =
      'images' in image
        ? image.images.filter(({ platform }) => !omitPlatforms.includes(`${platform.os}/${platform.architecture}`))
        : [image];
    if (shown)
      docker.push({
        Config: `blobs/sha256/${digestHex(shown.configDigest)}`,
        RepoTags: image.names,
        Layers: shown.layers.map(({ digest }) => `blobs/sha256/${digestHex(digest)}`),
      });
  }
  files.set(
    'index.json',
    Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests: entries })),
  );
  if (withDockerManifest) files.set('manifest.json', Buffer.from(JSON.stringify(docker)));
  return { files, roots };
}

function nameAnnotations(name: string, style: NonNullable<OciOptions['names']>): Record<string, string> {
  const tag = name.slice(name.lastIndexOf(':') + 1);
  if (style === 'none') return {};
  if (style === 'tag-only') return { 'org.opencontainers.image.ref.name': tag };
  if (style === 'containerd') return { 'io.containerd.image.name': name, 'org.opencontainers.image.ref.name': tag };
  return { 'org.opencontainers.image.ref.name': name };
}

/** An OCI archive. Returns the roots, in the order of the images. */
export async function buildOciArchive(
  file: string,
  images: readonly (TestImage | TestIndex)[],
  options: OciOptions = {},
): Promise<Descriptor[]> {
  const { files, roots } = layoutOf(images, options);
  await writeTar(
    file,
    [...files].map(([name, content]) => ({ header: { name }, content })),
  );
  return roots;
}

/** An OCI layout in a folder. Returns the roots, in the order of the images. */
export async function buildOciLayout(
  dir: string,
  images: readonly (TestImage | TestIndex)[],
  options: OciOptions = {},
): Promise<Descriptor[]> {
  const { files, roots } = layoutOf(images, options);
  await mkdir(join(dir, 'blobs', 'sha256'), { recursive: true });
  for (const [name, content] of files) await writeFile(join(dir, name), content);
  return roots;
}

export interface ManifestParts {
  config: { type: string; content: string | Buffer };
  layers: readonly { type: string; content: string | Buffer }[];
  artifactType?: string;
  subject?: Descriptor | undefined;
  /** Of its entry in index.json: its name. */
  annotations?: Record<string, string> | undefined;
}

/** Adds a manifest of any kind to a layout in a folder. Returns its descriptor. */
export async function addManifest(
  dir: string,
  { config, layers, annotations, ...more }: ManifestParts,
): Promise<Descriptor> {
  const add = async (text: string | Buffer, mediaType: string): Promise<Descriptor> => {
    const content = Buffer.from(text);
    const digest = digestOf(content);
    await writeFile(join(dir, 'blobs/sha256', digestHex(digest)), content);
    return { mediaType, digest, size: content.byteLength };
  };
  const parts = {
    config: await add(config.content, config.type),
    layers: await Promise.all(layers.map(({ content, type }) => add(content, type))),
  };
  const root = await add(
    JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, ...more, ...parts }),
    mediaTypes.ociManifest,
  );
  const index = JSON.parse(await readFile(join(dir, 'index.json'), 'utf8')) as { manifests: Descriptor[] };
  index.manifests.push({ ...root, ...(annotations ? { annotations } : {}) });
  await writeFile(join(dir, 'index.json'), JSON.stringify(index));
  return root;
}

/**
 * Adds an artifact with one small layer to a layout in a folder: a signature, an SBOM, a chart. With a `subject` it is
 * a referrer, with `annotations` it has a name. Returns its descriptor.
 */
export function addArtifact(
  dir: string,
  {
    type,
    text,
    subject,
    annotations,
  }: { type: string; text: string; subject?: Descriptor; annotations?: Record<string, string> },
): Promise<Descriptor> {
  const config = { type: subject ? 'application/vnd.oci.empty.v1+json' : mediaTypes.ociConfig, content: '{}' };
  return addManifest(dir, {
    ...(subject ? { artifactType: type, subject } : {}),
    config,
    layers: [{ type, content: text }],
    annotations,
  });
}

/** Cuts a file after so many bytes; negative counts from its end. */
export async function truncateFile(file: string, bytes: number): Promise<void> {
  await truncate(file, bytes < 0 ? (await stat(file)).size + bytes : bytes);
}

/** Damages one byte in the middle of the first place where `content` stands in the file. */
export async function flipByteIn(file: string, content: Uint8Array): Promise<void> {
  const at = (await readFile(file)).indexOf(content);
  if (at < 0) throw new Error('the file does not contain this');
  const handle = await open(file, 'r+');
  try {
    const position = at + Math.floor(content.byteLength / 2);
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, position);
    await handle.write(Buffer.from([(buffer[0] ?? 0) ^ 0xff]), 0, 1, position);
  } finally {
    await handle.close();
  }
}

/**
 * Puts a member before all others of a tar, e.g. `{ name: '../evil' }` or `{ name: 'x', type: 'symlink', linkname:
 * '/etc/passwd' }`.
 */
export async function withMember(file: string, header: MemberHeader, content: Buffer = Buffer.alloc(0)): Promise<void> {
  const member = await tarOf([{ header, content }]);
  // Without the two blocks that end an archive.
  await writeFile(file, Buffer.concat([member.subarray(0, -1024), await readFile(file)]));
}

/** Makes the configuration of an image say other bytes than its digest promises, with the same length. */
export async function breakConfig(file: string, { config }: TestImage): Promise<void> {
  await flipByteIn(file, config);
}

/** A file that is no bundle. */
export async function buildRandomFile(file: string, bytes = 100_000): Promise<void> {
  await writeFile(file, randomContent(bytes, 'no bundle'));
}
