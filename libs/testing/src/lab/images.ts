/** Real images that run, for bundles: made by the engine itself, since none can be pulled. */
import { execFile } from 'node:child_process';
import { createCipheriv, createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import type Docker from 'dockerode';
import { pack } from 'tar-stream';
import { findProgram, tempDir } from '../servers.js';
import type { LabEngine } from './engine.js';
import { labelsOf } from './owner.js';

const run = promisify(execFile);
const mtime = new Date('2024-01-01T00:00:00Z');

/** An image to make. All share the base layer. */
export interface ImageSpec {
  /** With tag, e.g. `k8s.gcr.io/pause:3.2`. */
  name: string;
  /** What its command prints; default `hello from NAME`. */
  says?: string;
  /** Further layers of these sizes, incompressible, the same for the same name. */
  layersBytes?: readonly number[];
}

/** Reads the engine's progress to its end; rejects with the error that the engine puts into it. */
export function followOutput(docker: Docker, stream: NodeJS.ReadableStream): Promise<void> {
  return new Promise((resolve, reject) => {
    docker.modem.followProgress(stream, (error: Error | null, output: { error?: string }[]) => {
      const failure = error ?? output?.map((line) => line.error).find(Boolean);
      if (failure) reject(failure instanceof Error ? failure : new Error(failure));
      else resolve();
    });
  });
}

/** A tar of files that belong to root. */
export async function tarOf(
  members: { name: string; content?: Buffer | string; linkTo?: string; mode?: number }[],
): Promise<Buffer> {
  const tar = pack();
  for (const { name, content, linkTo, mode = 0o755 } of members) {
    if (linkTo) tar.entry({ name, type: 'symlink', linkname: linkTo, mtime });
    else tar.entry({ name, mode, mtime }, content ?? '');
  }
  tar.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of tar) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** An image with a static busybox and its links. It stays in the engine. */
async function ensureBaseImage(docker: Docker): Promise<string> {
  const program = findProgram('busybox');
  if (!program) throw new Error('the Debian package busybox-static is missing, which the lab makes images of');
  const content = await readFile(program);
  const tag = createHash('sha256').update(content).digest('hex').slice(0, 12);
  const name = `airdock-lab/busybox:${tag}`;
  if ((await docker.listImages({ filters: { reference: [name] } })).length > 0) return name;
  const applets = (await run(program, ['--list'])).stdout
    .trim()
    .split('\n')
    .filter((applet) => applet !== 'busybox');
  const tar = await tarOf([
    { name: 'bin/busybox', content },
    ...applets.map((applet) => ({ name: `bin/${applet}`, linkTo: 'busybox' })),
  ]);
  await importTar(docker, tar, { repo: 'airdock-lab/busybox', tag });
  return name;
}

async function importTar(docker: Docker, tar: Buffer, target: { repo: string; tag: string }): Promise<void> {
  await followOutput(docker, await docker.importImage(Readable.from([tar]), target));
}

/** Bytes that do not compress, the same for the same seed. */
function noise(seed: string, sizeBytes: number): Buffer {
  return createCipheriv('aes-256-ctr', createHash('sha256').update(seed).digest(), Buffer.alloc(16)).update(
    Buffer.alloc(sizeBytes),
  );
}

/**
 * Makes the images with the classic builder; they go when the engine is stopped. An image with the same name loses it.
 */
export async function buildImages(engine: LabEngine, specs: readonly ImageSpec[]): Promise<void> {
  const base = await ensureBaseImage(engine.docker);
  for (const { name, says = `hello from ${name}`, layersBytes = [] } of specs) {
    const layers = layersBytes.map((sizeBytes, index) => ({
      name: `layer-${index}`,
      content: noise(`${name} ${index}`, sizeBytes),
      mode: 0o644,
    }));
    const copies = layers.map((layer) => `COPY ${layer.name} /data/${layer.name}`);
    const lines = [`FROM ${base}`, 'ENV PATH=/bin', ...copies, `COPY says /says`, `CMD ["/bin/cat", "/says"]`];
    const context = await tarOf([
      { name: 'Dockerfile', content: lines.join('\n') },
      { name: 'says', content: `${says}\n`, mode: 0o644 },
      ...layers,
    ]);
    const output = await engine.docker.buildImage(Readable.from([context]), {
      t: name,
      labels: labelsOf(engine.runId),
      forcerm: true,
      pull: false,
    });
    await followOutput(engine.docker, output);
  }
}

/** `docker save NAME... -o FILE`: several images in one docker-archive. */
export async function saveImages(engine: LabEngine, names: readonly string[], file: string): Promise<void> {
  const stream = await new Promise<NodeJS.ReadableStream>((resolve, reject) => {
    const statusCodes = { 200: true, 404: 'no such image', 500: 'server error' };
    const options = { path: '/images/get?', method: 'GET', options: { names }, isStream: true, statusCodes };
    engine.docker.modem.dial(options, (error, data) =>
      error ? reject(error as Error) : resolve(data as NodeJS.ReadableStream),
    );
  });
  await pipeline(stream, createWriteStream(file));
}

/**
 * Turns one image of a docker-archive into an OCI archive with skopeo: other layers (compressed), another manifest,
 * other digests. `imageName` is its name in the archive, `fullName` what the annotation
 * org.opencontainers.image.ref.name will say.
 */
export async function skopeoToOciArchive(
  dockerArchive: string,
  imageName: string,
  file: string,
  fullName: string,
): Promise<void> {
  await using dir = await tempDir('skopeo');
  const args = [
    '--insecure-policy',
    '--tmpdir',
    dir.path,
    'copy',
    '--quiet',
    `docker-archive:${dockerArchive}:${imageName}`,
    `oci-archive:${file}:${fullName}`,
  ];
  await run('skopeo', args, { timeout: 300_000 });
}
