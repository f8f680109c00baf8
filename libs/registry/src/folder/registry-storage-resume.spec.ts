import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { digestOf } from '@airdock/core/oci/digest';
import { LayerCache } from '@airdock/oci/compression/layer-cache';
import type { BlobReader } from '@airdock/oci/image/image-source';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { spawnSource } from '@airdock/testing/source-process';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RegistryStorage, storageMarker } from './registry-storage.js';

const run = promisify(execFile);
const MiB = 1024 * 1024;
const piece = 4 * MiB;
const bytes = randomBytes(60_000_001);
const descriptor = { mediaType: 'application/octet-stream', digest: digestOf(bytes), size: bytes.length };

let dir: TempDir;
let root: string;
let source: string;
beforeEach(async () => {
  dir = await tempDir('resume');
  [root, source] = [join(dir.path, 'storage'), join(dir.path, 'source')];
  await writeFile(source, bytes);
  await makeStorage(root);
});
afterEach(() => dir.remove());

async function makeStorage(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, storageMarker), 'id');
}

async function open(folder = root): Promise<RegistryStorage> {
  const storage = await RegistryStorage.open({ folder, id: 'id' });
  if (!storage) throw new Error('the folder is no storage');
  return storage;
}

const incoming = (folder = root) => readdir(join(folder, 'airdock-incoming'));
const blobFile = () =>
  join(root, 'docker/registry/v2/blobs/sha256', descriptor.digest.slice(7, 9), descriptor.digest.slice(7), 'data');
const isPlaced = async () => (await readFile(blobFile())).equals(bytes);

/** Counts what is read of the source. */
function countingReader() {
  const read = { bytes: 0, starts: [] as number[] };
  const reader = async (): Promise<BlobReader> => ({
    size: bytes.length,
    open: ({ start } = { start: 0 }) => {
      read.starts.push(start);
      return createReadStream(source, { start }).on('data', (chunk) => {
        read.bytes += chunk.length;
      });
    },
  });
  return { read, reader };
}

/** Places the blob in a process that kills itself in the middle. Returns how many bytes it had read. */
async function placeAndDie(): Promise<number> {
  const at = 40_000_000;
  const child = spawnSource(`
    const { RegistryStorage } = await import(${JSON.stringify(new URL('./registry-storage.ts', import.meta.url).href)});
    const storage = await RegistryStorage.open({ folder: ${JSON.stringify(root)}, id: 'id' });
    let count = 0;
    const onBytes = (bytes) => { count += bytes; if (count > ${at}) process.kill(process.pid, 'SIGKILL'); };
    const file = { path: ${JSON.stringify(source)}, offset: 0 };
    await storage.place('a/b', ${JSON.stringify(descriptor)}, async () => ({ size: ${bytes.length}, file }), { onBytes });`);
  const signal = await new Promise((resolve) => child.on('close', (_code, how) => resolve(how)));
  expect(signal).toBe('SIGKILL');
  expect(await incoming()).toHaveLength(1);
  return at;
}

describe('a copy whose process was killed', () => {
  it('is continued after the last whole piece', async () => {
    const at = await placeAndDie();
    const { read, reader } = countingReader();
    let count = 0;
    await (await open()).place('a/b', descriptor, reader, {
      onBytes: (more) => {
        count += more;
      },
    });
    // One piece was being written, one being filled.
    expect(read.starts).toEqual([expect.toSatisfy((start: number) => start % piece === 0 && start > at - 2 * piece)]);
    expect(read.bytes).toBe(bytes.length - (read.starts[0] as number));
    expect(count).toBe(bytes.length);
    expect(await isPlaced()).toBe(true);
    expect(await incoming()).toEqual([]);
  });

  it('is continued by one of two who want the same blob', async () => {
    await placeAndDie();
    const readers = [countingReader(), countingReader()];
    const storage = await open();
    await Promise.all(readers.map(({ reader }, index) => storage.place(`a/r${index}`, descriptor, reader)));
    expect(readers.filter(({ read }) => (read.starts[0] as number) > 0)).toHaveLength(1);
    expect(await isPlaced()).toBe(true);
    expect(await incoming()).toEqual([]);
  });

  it('is done again from the beginning where its part is damaged', async () => {
    await placeAndDie();
    const [name] = await incoming();
    const part = join(root, 'airdock-incoming', name as string);
    const left = await readFile(part);
    left[1000] = (left[1000] as number) ^ 1;
    await writeFile(part, left);
    const { read, reader } = countingReader();
    await (await open()).place('a/b', descriptor, reader);
    expect(read.starts).toEqual([expect.any(Number), 0]);
    expect(await isPlaced()).toBe(true);
    expect(await incoming()).toEqual([]);
  });

  it('fails when the source is wrong too, and leaves nothing', async () => {
    await placeAndDie();
    await writeFile(source, bytes.toReversed());
    await expect((await open()).place('a/b', descriptor, countingReader().reader)).rejects.toMatchObject({
      code: 'digest_mismatch',
    });
    expect(await incoming()).toEqual([]);
  });
});

it('continues a copy that was aborted in the same process', async () => {
  const stop = new AbortController();
  let count = 0;
  const onBytes = (more: number) => {
    count += more;
    if (count > 40_000_000) stop.abort(new Error('enough'));
  };
  const storage = await open();
  await expect(
    storage.place('a/b', descriptor, countingReader().reader, { signal: stop.signal, onBytes }),
  ).rejects.toThrow('enough');
  const { read, reader } = countingReader();
  await storage.place('a/b', descriptor, reader);
  expect(read.starts[0]).toBeGreaterThan(40_000_000 - 3 * piece);
  expect(await isPlaced()).toBe(true);
});

/** A file system of 20 MB; undefined when none may be mounted here. */
async function smallDisk(): Promise<(AsyncDisposable & { path: string }) | undefined> {
  const path = join(dir.path, 'small');
  await mkdir(path);
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', path]).catch(() => undefined);
  return mounted && { path, [Symbol.asyncDispose]: async () => void (await run('umount', [path])) };
}

describe('a full disk', () => {
  it('ends a copy with its own error, and nothing of it stays', async (context) => {
    await using disk = await smallDisk();
    if (!disk) return context.skip('no file system can be mounted');
    await makeStorage(disk.path);
    const storage = await open(disk.path);
    for (const file of [{ path: source, offset: 0 }, undefined]) {
      const reader = async () => ({ ...(await countingReader().reader()), file });
      await expect(storage.place('a/b', descriptor, reader)).rejects.toMatchObject({ code: 'space_insufficient' });
      expect(await incoming(disk.path)).toEqual([]);
    }
  });

  it.for([
    [30, 'the layer itself'],
    [12, 'the program'],
    [8, 'the result'],
  ] as const)('ends the compression of %d MB, where %s does not fit', async ([megabytes], context) => {
    await using disk = await smallDisk();
    if (!disk) return context.skip('no file system can be mounted');
    const layer = bytes.subarray(0, megabytes * 1_000_000);
    for (const programs of [undefined, []]) {
      const cache = new LayerCache(join(disk.path, 'layers'), programs);
      const reader = {
        size: layer.length,
        file: { path: source, offset: 0 },
        open: () => createReadStream(source, { end: layer.length - 1 }),
      };
      await expect(cache.get(digestOf(layer), 'layer.tar', reader)).rejects.toMatchObject({
        code: 'space_insufficient',
      });
      expect(await readdir(disk.path)).toEqual([]);
    }
  });
});
