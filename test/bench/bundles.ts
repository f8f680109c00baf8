/** Bundles of the sizes that users carry, made once into a folder and kept between runs. */
import { createCipheriv, createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { finished, pipeline } from 'node:stream/promises';
import { gzipSync } from 'node:zlib';
import { pack } from 'tar-stream';

export interface BenchBundle {
  path: string;
  /** Full upstream names. */
  images: string[];
  /** What skopeo calls the place of an image. */
  source(name: string): string;
}

const mtime = new Date('2024-01-01T00:00:00Z');
const sha256 = (bytes: Uint8Array) => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

/** Bytes that do not compress, the same for the same seed. */
export function noise(seed: string, size: number): Buffer {
  return createCipheriv('aes-256-ctr', createHash('sha256').update(seed).digest(), Buffer.alloc(16)).update(
    Buffer.alloc(size),
  );
}

/** Programs and libraries of this machine, as base layers hold them; compresses as they do. */
async function programs(size: number, folders = ['/usr/lib', '/usr/bin', '/usr/share']): Promise<Buffer> {
  const bytes = Buffer.alloc(size);
  let filled = 0;
  for (const folder of folders) {
    for (const entry of (await readdir(folder, { recursive: true, withFileTypes: true })).filter((found) =>
      found.isFile(),
    )) {
      filled += (await readFile(join(entry.parentPath, entry.name))).copy(bytes, filled);
      if (filled === size) return bytes;
    }
  }
  return bytes.subarray(0, filled);
}

async function tarOf(name: string, content: Buffer): Promise<Buffer> {
  const tar = pack();
  tar.entry({ name, mtime }, content);
  tar.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of tar) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** Makes a bundle once: a run that is stopped leaves nothing that the next would take for complete. */
async function once(path: string, make: (fresh: string) => Promise<void>): Promise<void> {
  if (await stat(path).catch(() => undefined)) return;
  await rm(`${path}.new`, { recursive: true, force: true });
  await make(`${path}.new`);
  await rename(`${path}.new`, path);
}

const configOf = (diffIds: string[]) =>
  Buffer.from(
    JSON.stringify({ architecture: 'amd64', os: 'linux', config: {}, rootfs: { type: 'layers', diff_ids: diffIds } }),
  );

/**
 * As `docker save` writes: images on one uncompressed base layer of `baseBytes`, each with a small layer of its own.
 * `change` alters the last image's layer.
 */
export async function dockerArchive(
  folder: string,
  { images: count = 6, baseBytes = 580_000_000, change = '' } = {},
): Promise<BenchBundle> {
  const path = join(folder, `docker-archive-${count}-${baseBytes}-programs${change}.tar`);
  const images = Array.from({ length: count }, (_, index) => `docker.io/bench/saved-${index}:v1`);
  await once(path, async (fresh) => {
    const tar = pack();
    const written = pipeline(tar, createWriteStream(fresh));
    const add = (name: string, content: Buffer) =>
      new Promise<void>((resolve, reject) =>
        tar.entry({ name, mtime }, content, (error) => (error ? reject(error) : resolve())),
      );
    const base = await tarOf('usr/bin/base', await programs(baseBytes));
    await add('base/layer.tar', base);
    const manifest = [];
    for (const [index, name] of images.entries()) {
      const own = await tarOf('etc/own', noise(`own-${index}${index === count - 1 ? change : ''}`, 2_000_000));
      const config = configOf([sha256(base), sha256(own)]);
      const configName = `${sha256(config).slice(7)}.json`;
      await add(`own-${index}/layer.tar`, own);
      await add(configName, config);
      manifest.push({
        Config: configName,
        RepoTags: [name.replace('docker.io/', '')],
        Layers: ['base/layer.tar', `own-${index}/layer.tar`],
      });
    }
    await add('manifest.json', Buffer.from(JSON.stringify(manifest)));
    tar.finalize();
    await written;
  });
  return { path, images, source: (name) => `docker-archive:${path}:${name}` };
}

/** An OCI layout folder: `images` images, each with the shared layers and one of its own. */
export async function ociLayout(
  folder: string,
  {
    images: count = 40,
    sharedBytes = [200_000_000, 100_000_000, 100_000_000],
    ownBytes = 65_000_000,
    change = '',
  } = {},
): Promise<BenchBundle> {
  const path = join(folder, `oci-layout-${count}-${ownBytes}${change}`);
  const images = Array.from({ length: count }, (_, index) => `quay.io/bench/app-${count}-${index}:v1`);
  await once(path, async (fresh) => {
    const blobs = join(fresh, 'blobs/sha256');
    await mkdir(blobs, { recursive: true });
    const put = async (mediaType: string, bytes: Buffer) => {
      const digest = sha256(bytes);
      const file = createWriteStream(join(blobs, digest.slice(7)));
      file.end(bytes);
      await finished(file);
      return { mediaType, digest, size: bytes.byteLength };
    };
    const layer = async (seed: string, size: number) => {
      const tar = await tarOf(`usr/${seed}`, noise(seed, size));
      // Stored, not compressed: noise does not get smaller, and making the bundle should not take long.
      return {
        diffId: sha256(tar),
        descriptor: await put('application/vnd.oci.image.layer.v1.tar+gzip', gzipSync(tar, { level: 0 })),
      };
    };
    const shared = [];
    for (const [index, size] of sharedBytes.entries()) shared.push(await layer(`shared-${index}`, size));
    const manifests = [];
    for (const [index, name] of images.entries()) {
      const layers = [...shared, await layer(`own-${count}-${index}${index === count - 1 ? change : ''}`, ownBytes)];
      const config = await put(
        'application/vnd.oci.image.config.v1+json',
        configOf(layers.map(({ diffId }) => diffId)),
      );
      const mediaType = 'application/vnd.oci.image.manifest.v1+json';
      const manifest = Buffer.from(
        JSON.stringify({ schemaVersion: 2, mediaType, config, layers: layers.map(({ descriptor }) => descriptor) }),
      );
      manifests.push({
        ...(await put(mediaType, manifest)),
        annotations: { 'org.opencontainers.image.ref.name': name },
      });
    }
    await writeFile(join(fresh, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests }));
    await writeFile(join(fresh, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  });
  return { path, images, source: (name) => `oci:${path}:${name}` };
}

export const tinyImages = (folder: string): Promise<BenchBundle> =>
  ociLayout(folder, { images: 1000, sharedBytes: [20_000], ownBytes: 1_000 });
