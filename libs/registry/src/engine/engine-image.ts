import { createWriteStream } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { AppError } from '@airdock/core/errors';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { walkImage } from '@airdock/oci/image/image-graph';
import { extract } from 'tar-stream';

/** Where images have the registry: Docker Hub's and those of distributions. */
const programPaths = new Set(['bin/registry', 'usr/bin/registry', 'usr/local/bin/registry', 'usr/bin/docker-registry']);
const maxProgramBytes = 512 * 1024 * 1024;
const architectures: Record<string, string> = { x64: 'amd64', arm64: 'arm64' };

/**
 * Takes the registry's program, which cannot be run yet, out of an image in a file, such as `docker save registry:2`
 * writes, for this machine's architecture. Throws what `openBundle` throws, and `registry_engine_missing` when the
 * image has no such program.
 */
export async function extractEngine(
  imageFile: string,
  target: string,
  { workDir, signal }: { workDir: string; signal?: AbortSignal },
): Promise<void> {
  await using source = await openBundle(imageFile, { workDir, ...(signal && { signal }) });
  const [image] = source.images;
  if (!image) throw new AppError('registry_engine_missing', { detail: `${imageFile} holds no image` });
  const graph = await walkImage(await source.prepare(image, { signal }), (digest) => source.readManifest(digest));
  const wanted = architectures[process.arch];
  const { manifest } =
    graph.images.find(({ descriptor }) => descriptor.platform?.architecture === wanted) ?? graph.images[0] ?? {};
  const part = `${target}.part`;
  await mkdir(dirname(target), { recursive: true });
  try {
    // Upper layers win.
    for (const layer of manifest?.layers.toReversed() ?? []) {
      const content = (await source.blob(layer)).open();
      const decompress = /gzip/.test(layer.mediaType)
        ? [createGunzip()]
        : /zstd/.test(layer.mediaType)
          ? [createZstdDecompress()]
          : [];
      if (await extractProgram(content, decompress, part, signal)) {
        await rename(part, target);
        return;
      }
    }
  } finally {
    await rm(part, { force: true });
  }
  throw new AppError('registry_engine_missing', { detail: `${imageFile} has none of ${[...programPaths].join(', ')}` });
}

async function extractProgram(
  content: NodeJS.ReadableStream,
  decompress: NodeJS.ReadWriteStream[],
  target: string,
  signal?: AbortSignal,
): Promise<boolean> {
  let found = false;
  const members = extract();
  const fed = pipeline([content, ...decompress, members], { signal });
  // Reported below, when the members have ended.
  fed.catch(() => undefined);
  for await (const entry of members) {
    const { name, type, size } = entry.header;
    if (type !== 'file' || !programPaths.has(name.replace(/^(\.?\/)+/, ''))) {
      entry.resume();
      continue;
    }
    if (size > maxProgramBytes) throw new AppError('registry_engine_missing', { detail: `${name} has ${size} bytes` });
    await pipeline(entry, createWriteStream(target, { mode: 0o600 }));
    found = true;
  }
  await fed;
  return found;
}
