import { createHash } from 'node:crypto';
import { symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { randomContent } from '@airdock/testing/bundles';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { pieceBytes } from './piece-memory.js';
import { type FileSpan, PieceStream, readPieces, SourceFile } from './read-pieces.js';

const content = randomContent(3 * pieceBytes + 5_000, 'pieces');
let folder: TempDir;
let path: string;
beforeAll(async () => {
  folder = await tempDir('pieces');
  path = join(folder.path, 'file');
  await writeFile(path, content);
});
afterAll(() => folder.remove());

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
/** Waits for each piece a little, as a thread that hashes does, and looks at its bytes only then. */
const gathering = () => {
  const hash = createHash('sha256');
  const sizes: number[] = [];
  const onPiece = async (bytes: Buffer) => {
    const turn = (previous = previous.then(async () => {
      await new Promise((resolve) => setImmediate(resolve));
      hash.update(bytes);
      sizes.push(bytes.byteLength);
    }));
    await turn;
  };
  let previous = Promise.resolve();
  return { onPiece, sizes, digest: () => hash.digest('hex') };
};

const spans: [string, Omit<FileSpan, 'path'>][] = [
  ['all of it', { offset: 0, size: content.byteLength }],
  ['a part at a sector', { offset: 512, size: 2 * pieceBytes }],
  ['a part between sectors', { offset: 513, size: pieceBytes + 1 }],
  ['the last bytes', { offset: content.byteLength - 10, size: 10 }],
  ['what is in the page cache', { offset: 0, size: content.byteLength, isCached: true }],
  ['nothing', { offset: 100, size: 0 }],
];

describe.each(spans)('%s', (_what, span) => {
  const wanted = content.subarray(span.offset, span.offset + span.size);

  it('is seen whole', async () => {
    const seen = gathering();
    expect(await readPieces({ path, ...span }, seen.onPiece)).toBe(span.size);
    expect(seen.digest()).toBe(sha256(wanted));
    expect(Math.max(0, ...seen.sizes)).toBeLessThanOrEqual(pieceBytes);
  });

  it('comes as a stream of the same bytes', async () => {
    const seen = gathering();
    const stream = new PieceStream({ path, ...span }, seen.onPiece);
    const hash = createHash('sha256');
    for (let bytes = await stream.next(); bytes; bytes = await stream.next()) hash.update(bytes);
    await stream.close();
    expect([hash.digest('hex'), seen.digest()]).toEqual([sha256(wanted), sha256(wanted)]);
  });
});

it('does not use memory again while somebody looks at it', async () => {
  const seen: Buffer[] = [];
  let release: () => void = () => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const onPiece = (bytes: Buffer) => {
    seen.push(bytes);
    return seen.length === 1 ? held : undefined;
  };
  const reading = readPieces({ path, offset: 0, size: content.byteLength }, onPiece);
  await expect.poll(() => seen.length).toBe(2);
  // Time enough for the next ones, which take the memory of the first: the whole file was read meanwhile.
  await readPieces({ path, offset: 0, size: content.byteLength }, () => undefined);
  expect(seen).toHaveLength(2);
  expect(seen[0]?.equals(content.subarray(0, pieceBytes))).toBe(true);
  release();
  expect(await reading).toBe(content.byteLength);
});

it('tells of a file that ends too early by the bytes that there were', async () => {
  const short = join(folder.path, 'short');
  await writeFile(short, content);
  await truncate(short, pieceBytes + 7);
  const span = { path: short, offset: 5, size: content.byteLength };
  expect(await readPieces(span, async () => undefined)).toBe(pieceBytes + 2);
  const stream = new PieceStream(span, async () => undefined);
  let bytesRead = 0;
  for (let bytes = await stream.next(); bytes; bytes = await stream.next()) bytesRead += bytes.byteLength;
  await stream.close();
  expect(bytesRead).toBe(pieceBytes + 2);
});

it('ends with what looking at a piece fails with, and reads no further', async () => {
  let pieces = 0;
  const onPiece = async () => {
    pieces += 1;
    throw new Error('wrong bytes');
  };
  const span = { path, offset: 0, size: content.byteLength };
  await expect(readPieces(span, onPiece)).rejects.toThrow('wrong bytes');
  expect(pieces).toBeLessThanOrEqual(2);
  const stream = new PieceStream(span, onPiece);
  const drain = async () => {
    while (await stream.next());
  };
  await expect(drain()).rejects.toThrow('wrong bytes');
  await stream.close();
});

it('opens no link and no folder, which somebody could have put in the place of a file', async () => {
  const link = join(folder.path, 'link');
  await symlink(path, link);
  for (const other of [link, folder.path, join(folder.path, 'nothing')])
    await expect(SourceFile.open({ path: other, offset: 0, size: 1 })).rejects.toMatchObject({
      message: expect.any(String),
    });
});
