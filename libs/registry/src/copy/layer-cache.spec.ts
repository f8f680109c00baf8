import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { digestOfFile } from '@airdock/disk/files/hash-pool';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { LayerCache } from '@airdock/oci/compression/layer-cache';
import type { BlobReader } from '@airdock/oci/image/image-source';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { buildDockerArchive, makeImage } from '@airdock/testing/bundles';
import { startRegistry, type TempDir, tempDir } from '@airdock/testing/servers';
import { spawnSource } from '@airdock/testing/source-process';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { copyImages } from './copy-image.js';

const run = promisify(execFile);
const MiB = 1024 * 1024;

let dir: TempDir;
let plain: string;
let diffId: Digest;
beforeEach(async () => {
  dir = await tempDir('layers');
  plain = join(dir.path, 'plain');
});
afterEach(() => dir.remove());

/** Half noise, half zeros, at an odd place of a file as in a tar. */
async function makeLayer(size: number): Promise<BlobReader> {
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; at += 2 * MiB) randomBytes(Math.min(MiB, size - at)).copy(bytes, at);
  await writeFile(plain, Buffer.concat([Buffer.alloc(512), bytes]));
  diffId = digestOf(bytes);
  return {
    size,
    file: { path: plain, offset: 512 },
    open: ({ start } = { start: 0 }) => createReadStream(plain, { start: 512 + start }),
  };
}

const cacheIn = (name: string, programs?: string[]) => new LayerCache(join(dir.path, name), programs);

describe('LayerCache', () => {
  it.each(['igzip', 'pigz', 'zlib'])(
    'makes the same bytes of a file and of a stream with %s, which gzip reads as one',
    async (program) => {
      const reader = await makeLayer(64 * MiB);
      const { size, open } = reader;
      const fromFile = await cacheIn('a', [program]).get(diffId, 'layer.tar', reader);
      const fromStream = await cacheIn('b', [program]).get(diffId, 'layer.tar', { size, open });
      expect(fromFile.digest).toBe(fromStream.digest);
      expect(await digestOfFile(fromFile.path)).toBe(fromFile.digest);
      await run('sh', ['-c', 'gzip -dc < "$1" > "$2"', 'sh', fromFile.path, `${plain}.again`]);
      expect(await digestOfFile(`${plain}.again`)).toBe(diffId);
      expect((await readdir(join(dir.path, 'a'))).sort()).toEqual([
        `${diffId.slice(7)}.tar.gz`,
        `${diffId.slice(7)}.tar.gz.json`,
      ]);
    },
  );

  it('compresses a layer without any bytes', async () => {
    const { path } = await cacheIn('a').get(digestOf(''), 'layer.tar', { size: 0, open: () => Readable.from([]) });
    expect((await run('gzip', ['-dc', path])).stdout).toBe('');
  });

  it('makes layers of several members that skopeo unpacks to their diff IDs', async () => {
    const file = join(dir.path, 'bundle.tar');
    const image = await makeImage({ name: 'docker.io/library/large:1', layers: [{ randomBytes: 40_000_000 }] });
    await buildDockerArchive(file, [image]);
    await using server = await startRegistry();
    const registry = new RegistryClient(server.url);
    const source = await openBundle(file, { workDir: join(dir.path, 'work') });
    const images = source.images.map((item) => ({ image: item, names: [{ repository: 'large', tag: '1' }] }));
    expect((await copyImages({ source, registry, images })).map(({ error }) => error)).toEqual([undefined]);
    const target = join(dir.path, 'unpacked.tar');
    const flags = ['--insecure-policy', '--src-tls-verify=false'];
    await run('skopeo', [
      'copy',
      ...flags,
      `docker://localhost:${server.port}/large:1`,
      `docker-archive:${target}:large:1`,
    ]);
    const { stdout } = await run('tar', ['-tf', target]);
    expect(stdout.split('\n')).toContain(`${image.layers[0]?.diffId.slice(7)}.tar`);
    await registry.close();
  });

  it('keeps what earlier versions have compressed', async () => {
    const reader = await makeLayer(1000);
    await mkdir(join(dir.path, 'a'));
    const path = join(dir.path, 'a', `${diffId.slice(7)}.tar.gz`);
    await writeFile(path, 'compressed');
    await writeFile(`${path}.json`, JSON.stringify({ digest: digestOf('compressed'), size: 10, engine: 'igzip' }));
    expect(await cacheIn('a').get(diffId, 'layer.tar', reader)).toEqual({
      path,
      digest: digestOf('compressed'),
      size: 10,
    });
  });

  it('refuses another layer than it was told, and leaves nothing of it', async () => {
    const reader = await makeLayer(40 * MiB);
    const other = digestOf('other');
    await expect(cacheIn('a').get(other, 'layer.tar', reader)).rejects.toMatchObject({
      code: 'digest_mismatch',
      details: { member: 'layer.tar', actual: diffId },
    });
    expect(await readdir(dir.path)).not.toContain('a');
  });

  describe('after its process was killed', () => {
    const size = 160 * MiB;
    let reader: BlobReader;
    let child: ReturnType<typeof spawnSource>;
    const folder = () => join(dir.path, 'killed');
    const partOf = async () =>
      join(folder(), (await readdir(folder())).find((name) => name.endsWith('.part')) as string);

    beforeEach(async () => {
      reader = await makeLayer(size);
      child = spawnSource(`
        const { LayerCache } = await import(${JSON.stringify(new URL('../../../oci/src/compression/layer-cache.ts', import.meta.url).href)});
        let count = 0;
        const onBytes = (bytes) => { count += bytes; if (count > ${150 * MiB}) process.kill(process.pid, 'SIGKILL'); };
        const file = { path: ${JSON.stringify(plain)}, offset: 512 };
        await new LayerCache(${JSON.stringify(folder())}).get(${JSON.stringify(diffId)}, 'layer.tar', { size: ${size}, file }, { onBytes });`);
      await new Promise((resolve) => child.on('close', resolve));
    });

    const again = async () => {
      expect(child.signalCode).toBe('SIGKILL');
      const counts: number[] = [];
      const layer = await cacheIn('killed').get(diffId, 'layer.tar', reader, {
        onBytes: (count) => counts.push(count),
      });
      expect(await digestOfFile(layer.path)).toBe(layer.digest);
      expect(layer.digest).toBe((await cacheIn('whole').get(diffId, 'layer.tar', reader)).digest);
      expect((await readdir(folder())).filter((name) => name.endsWith('.part'))).toEqual([]);
      expect(counts.reduce((sum, count) => sum + count)).toBe(size);
      return counts;
    };

    it('goes on after the members that were done, with the same result', async () => {
      // What was done counts at once.
      expect((await again())[0]).toBeGreaterThanOrEqual(32 * MiB);
    });

    it('begins anew where the part is not what its journal says', async () => {
      const layer = join(await partOf(), 'layer');
      const bytes = await readFile(layer);
      bytes[1000] = (bytes[1000] as number) ^ 1;
      await writeFile(layer, bytes);
      expect((await again())[0]).toBeLessThan(32 * MiB);
    });

    it('begins anew where the source is another one than then', async () => {
      const bytes = await readFile(plain);
      bytes[5000] = (bytes[5000] as number) ^ 1;
      await writeFile(plain, bytes);
      diffId = digestOf(bytes.subarray(512));
      // The part of the first layer, under the name of the second.
      const part = await partOf();
      await run('sh', ['-c', 'mv "$1" "$2"', 'sh', part, part.replace(/[0-9a-f]{64}/, diffId.slice(7))]);
      expect((await again())[0]).toBeLessThan(32 * MiB);
    });
  });

  it('stops when told, and goes on in the same process', async () => {
    const reader = await makeLayer(160 * MiB);
    const stop = new AbortController();
    let count = 0;
    const onBytes = (bytes: number) => {
      count += bytes;
      if (count > 150 * MiB) stop.abort(new Error('enough'));
    };
    await expect(cacheIn('a').get(diffId, 'layer.tar', reader, { signal: stop.signal, onBytes })).rejects.toThrow(
      'enough',
    );
    const counts: number[] = [];
    const { digest, path } = await cacheIn('a').get(diffId, 'layer.tar', reader, {
      onBytes: (bytes) => counts.push(bytes),
    });
    expect(counts[0]).toBeGreaterThanOrEqual(32 * MiB);
    expect(await digestOfFile(path)).toBe(digest);
    await rm(path);
  });
});
