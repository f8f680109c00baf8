import { chmod, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { gunzipSync } from 'node:zlib';
import { digestOf } from '@airdock/core/oci/digest';
import { randomContent } from '@airdock/testing/bundles';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BlobReader } from '../image/image-source.js';
import { LayerCache } from './layer-cache.js';

let dir: TempDir;
beforeEach(async () => {
  dir = await tempDir('layer-cache');
});
afterEach(() => dir.remove());

const folder = () => join(dir.path, 'layers');
const cache = (programs: readonly string[] = []) => new LayerCache(folder(), programs);
const bytes = randomContent(300_000);
const diffId = digestOf(bytes);
const path = () => join(folder(), `${diffId.slice(7)}.tar.gz`);

/** A layer that counts how often it is read. */
function layer(content: Buffer = bytes) {
  const reader = {
    size: content.byteLength,
    opened: 0,
    open: () => {
      reader.opened += 1;
      return Readable.from([content.subarray(0, 1000), content.subarray(1000)], { objectMode: false });
    },
  } satisfies BlobReader & { opened: number };
  return reader;
}

describe('a layer', () => {
  it('that two want at once is compressed once, and both count all of its bytes', async () => {
    const [reader, layers] = [layer(), cache()];
    const counts = [0, 0];
    const both = await Promise.all(
      counts.map((_, index) =>
        layers.get(diffId, 'layer.tar', reader, {
          onBytes: (count) => {
            counts[index] = (counts[index] ?? 0) + count;
          },
        }),
      ),
    );
    expect(both[0]).toEqual(both[1]);
    expect([reader.opened, counts]).toEqual([1, [bytes.byteLength, bytes.byteLength]]);
    expect(gunzipSync(await readFile(path())).equals(bytes)).toBe(true);
    expect(both[0]?.digest).toBe(digestOf(await readFile(path())));
  });

  it('is found by the next process, and made again when its record or its file is damaged', async () => {
    const reader = layer();
    const made = await cache().get(diffId, 'layer.tar', reader);
    expect(await cache().find(diffId)).toEqual(made);
    expect(await cache().get(diffId, 'layer.tar', reader)).toEqual(made);
    expect(reader.opened).toBe(1);
    const damages = [
      () => writeFile(path(), 'short'),
      () => rm(path()),
      () => rm(`${path()}.json`),
      () => writeFile(`${path()}.json`, '{"digest":'),
      () => writeFile(`${path()}.json`, JSON.stringify({ digest: 'sha256:0', size: made.size })),
    ];
    for (const [index, damage] of damages.entries()) {
      await damage();
      expect(await cache().find(diffId)).toBeUndefined();
      expect(await cache().get(diffId, 'layer.tar', reader)).toEqual(made);
      expect(reader.opened).toBe(index + 2);
    }
  });

  it('that is another than it was said to be leaves nothing, not even for who waits beside', async () => {
    const layers = cache();
    const ask = () => layers.get(digestOf('other'), 'layer.tar', layer()).catch((error: unknown) => error);
    const refused = { code: 'digest_mismatch', details: expect.objectContaining({ actual: diffId }) };
    expect(await Promise.all([ask(), ask()])).toMatchObject([refused, refused]);
    expect(await readdir(dir.path)).toEqual([]);
    expect(await ask()).toMatchObject(refused);
  });

  it('is begun for nobody who has gone already, and its failure is the reason of that', async () => {
    const [reader, reason] = [layer(), new Error('cancelled')];
    await expect(cache().get(diffId, 'layer.tar', reader, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(reader.opened).toBe(0);
    const stop = new AbortController();
    const onBytes = () => stop.abort(reason);
    await expect(cache().get(diffId, 'layer.tar', reader, { signal: stop.signal, onBytes })).rejects.toBe(reason);
    expect(await readdir(folder())).toEqual([expect.stringMatching(/\.free\..*\.part$/)]);
    expect((await cache().get(diffId, 'layer.tar', reader)).size).toBeGreaterThan(0);
    expect((await readdir(folder())).filter((name) => name.endsWith('.part'))).toEqual([]);
  });

  it('cannot be read to its end: that is thrown, and the part is kept for the next try', async () => {
    const gone = new Error('the disk with the bundle is gone');
    const open = () =>
      Readable.from(
        (async function* () {
          yield bytes.subarray(0, 1000);
          throw gone;
        })(),
      );
    await expect(cache().get(diffId, 'layer.tar', { size: bytes.byteLength, open })).rejects.toBe(gone);
    expect((await readdir(folder())).filter((name) => name.endsWith('.part'))).toHaveLength(1);
    expect(gunzipSync(await readFile((await cache().get(diffId, 'layer.tar', layer())).path)).equals(bytes)).toBe(true);
  });
});

describe('a program that compresses', () => {
  const withProgram = async <T>(script: string, work: (layers: LayerCache) => Promise<T>): Promise<T> => {
    const { PATH } = process.env;
    await mkdir(join(dir.path, 'bin'), { recursive: true });
    await writeFile(join(dir.path, 'bin/pressgz'), `#!/bin/sh\n${script}\n`);
    await chmod(join(dir.path, 'bin/pressgz'), 0o755);
    process.env.PATH = `${join(dir.path, 'bin')}:${PATH}`;
    try {
      return await work(cache(['none-such', 'pressgz']));
    } finally {
      process.env.PATH = PATH;
    }
  };

  it('is asked for the fastest, without name and time, and is named beside the layer', async () => {
    const args = join(dir.path, 'args');
    await withProgram(`echo "$@" > ${args}; gzip -1 -n -c`, (layers) => layers.get(diffId, 'layer.tar', layer()));
    expect(await readFile(args, 'utf8')).toBe('-1 -n -c\n');
    expect(JSON.parse(await readFile(`${path()}.json`, 'utf8'))).toMatchObject({ engine: 'pressgz' });
    expect(gunzipSync(await readFile(path())).equals(bytes)).toBe(true);
  });

  it.each([
    ['is killed', 'kill -9 $$', 'pressgz failed'],
    ['fails', 'echo no memory >&2; exit 3', 'pressgz failed'],
    ['writes half, and says that all is well', 'gzip -c | head -c 1000', 'not complete'],
    ['writes nothing, and says that all is well', 'exit 0', 'not complete'],
    ['compresses something else', 'echo x | gzip -c', 'not complete'],
  ])('that %s ends the work, and no layer is there', async (_what, script, detail) => {
    await withProgram(script, async (layers) => {
      await expect(layers.get(diffId, 'layer.tar', layer())).rejects.toMatchObject({
        code: 'internal_error',
        details: { detail: expect.stringContaining(detail) },
      });
      expect(await layers.find(diffId)).toBeUndefined();
    });
    expect(gunzipSync(await readFile((await cache().get(diffId, 'layer.tar', layer())).path)).equals(bytes)).toBe(true);
  });
});

describe('the cache', () => {
  it('forgets the layers whose blobs are gone, and keeps what it does not know', async () => {
    const other = randomContent(1000, 'other');
    const [kept, gone] = [
      await cache().get(diffId, 'a', layer()),
      await cache().get(digestOf(other), 'b', layer(other)),
    ];
    await writeFile(join(folder(), 'notes.txt'), '');
    await writeFile(join(folder(), 'odd.tar.gz'), 'without a record');
    expect(await cache().forget(async ({ digest }) => digest === gone.digest)).toBe(1);
    expect(await cache().find(diffId)).toEqual(kept);
    expect(await cache().find(digestOf(other))).toBeUndefined();
    expect((await readdir(folder())).filter((name) => name.startsWith(digestOf(other).slice(7)))).toEqual([]);
    expect(await readdir(folder())).toHaveLength(4);
    expect(await new LayerCache(join(dir.path, 'none')).forget(async () => true)).toBe(0);
  });
});
