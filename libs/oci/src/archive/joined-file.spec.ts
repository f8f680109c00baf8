import { appendFile, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buffer, text } from 'node:stream/consumers';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findParts, JoinedFile } from './joined-file.js';

let dir: TempDir;
beforeAll(async () => {
  dir = await tempDir('joined-file');
});
afterAll(() => dir.remove());

/** A new folder with these files, and their paths. */
async function files(contents: Record<string, Uint8Array | string>): Promise<string[]> {
  const folder = await mkdtemp(join(dir.path, 'case-'));
  const paths = Object.keys(contents).map((name) => join(folder, name));
  await Promise.all(Object.entries(contents).map(([name, content]) => writeFile(join(folder, name), content)));
  return paths;
}

const pieces = fc.array(fc.uint8Array({ maxLength: 20 }), { minLength: 1, maxLength: 5 });

describe('JoinedFile', () => {
  it('reads the parts as the one file that they were', async () => {
    await fc.assert(
      fc.asyncProperty(pieces, fc.nat({ max: 110 }), fc.nat({ max: 110 }), async (parts, position, length) => {
        const whole = Buffer.concat(parts);
        const paths = await files(Object.fromEntries(parts.map((part, index) => [`part-${index}`, part])));
        await using file = await JoinedFile.open(paths);
        expect(file.size).toBe(whole.length);
        const expected = whole.subarray(position, position + length);
        expect(await buffer(file.stream(position, length))).toEqual(expected);

        const read = Buffer.alloc(length);
        let filled = 0;
        for (;;) {
          const { bytesRead } = await file.read(read, filled, length - filled, position + filled);
          filled += bytesRead;
          if (bytesRead === 0) break;
        }
        expect(read.subarray(0, filled)).toEqual(expected);

        const found = file.locate(position, length);
        if (found) {
          const part = parts[paths.indexOf(found.path)] ?? Buffer.alloc(0);
          expect(Buffer.from(part.subarray(found.offset, found.offset + length))).toEqual(expected);
        }
      }),
      { numRuns: 60 },
    );
  });

  it('locates what lies in one part, and not what is spread over two', async () => {
    const [first, second] = await files({ a: 'abc', b: 'def' });
    await using file = await JoinedFile.open([first as string, second as string]);
    expect(file.locate(1, 2)).toEqual({ path: first, offset: 1 });
    expect(file.locate(3, 3)).toEqual({ path: second, offset: 0 });
    expect(file.locate(2, 2)).toBeUndefined();
    expect(file.locate(5, 2)).toBeUndefined();
  });

  it('reads of a part that has grown what it was when it was opened', async () => {
    const [first = '', second = ''] = await files({ a: 'abc', b: 'def' });
    await using file = await JoinedFile.open([first, second]);
    await appendFile(first, 'xyz');
    expect(await file.read(Buffer.alloc(6), 0, 6, 1)).toMatchObject({ bytesRead: 2 });
    expect(await text(file.stream(0, 6))).toBe('abcdef');
  });

  it('opens no link, and streams no file that has taken the name of a part', async () => {
    const [path = '', other = ''] = await files({ a: 'abc', b: 'xyz' });
    await symlink(other, `${path}-link`);
    await expect(JoinedFile.open([path, `${path}-link`])).rejects.toMatchObject({ code: 'bundle_unsafe' });
    await using file = await JoinedFile.open([path]);
    await rename(other, path);
    await expect(buffer(file.stream(0, 3))).rejects.toMatchObject({ code: 'bundle_unsafe' });
  });
});

const letters = 'abcdefghijklmnopqrstuvwxyz';
/** Names as tools write them. */
const schemes: Record<string, (index: number) => string> = {
  'split -d': (index) => `image.tar.${index < 90 ? String(index).padStart(2, '0') : index + 8910}`,
  split: (index) => `image.tar.${letters[Math.floor(index / 26)]}${letters[index % 26]}`,
  'split without a name': (index) => `x${letters[Math.floor(index / 26)]}${letters[index % 26]}`,
  'split --hex-suffixes': (index) => `image.tar${(index < 240 ? index : index + 61_200).toString(16).padStart(2, '0')}`,
  Zarf: (index) => `package.tar.zst.part${String(index).padStart(3, '0')}`,
  'numbers without zeros': (index) => `image.part${index + 1}.tar`,
  '7z -v': (index) => `image.7z.${String(index + 1).padStart(3, '0')}`,
};

describe('findParts', () => {
  it.each(Object.entries(schemes))('finds all parts from any of them: %s', async (_tool, nameOf) => {
    const run = fc.asyncProperty(fc.integer({ min: 2, max: 120 }), fc.nat(), async (count, pick) => {
      const paths = await files(Object.fromEntries(Array.from({ length: count }, (_, index) => [nameOf(index), 'x'])));
      expect(await findParts(paths[pick % count] as string)).toEqual(paths);
    });
    await fc.assert(run, { numRuns: 10 });
  });

  it.each(Object.entries(schemes))('names the part that is missing between others: %s', async (_tool, nameOf) => {
    const run = fc.asyncProperty(fc.integer({ min: 3, max: 30 }), fc.nat(), async (count, pick) => {
      const paths = await files(Object.fromEntries(Array.from({ length: count }, (_, index) => [nameOf(index), 'x'])));
      const missing = 1 + (pick % (count - 2));
      await rm(paths[missing] as string);
      await expect(findParts(paths[0] as string)).rejects.toMatchObject({
        code: 'bundle_truncated',
        details: { missing: nameOf(missing) },
      });
    });
    await fc.assert(run, { numRuns: 25 });
  });

  it('names the first part with a letter where parts are numbered in hexadecimal', async () => {
    const nameOf = schemes['split --hex-suffixes'] as (index: number) => string;
    for (const count of [12, 16, 17, 27, 245]) {
      const paths = await files(Object.fromEntries(Array.from({ length: count }, (_, index) => [nameOf(index), 'x'])));
      expect(await findParts(paths[0] as string)).toEqual(paths);
      await rm(paths[10] as string);
      await expect(findParts(paths[0] as string)).rejects.toMatchObject({ details: { missing: 'image.tar0a' } });
    }
  });

  it('takes no other file for a part', async () => {
    const paths = await files({ 'image.tar': 'x', 'image.tar.gz': 'x', 'image.tar.sha256': 'x', 'image.1': 'x' });
    for (const path of paths) expect(await findParts(path)).toEqual([path]);
  });

  it('leaves out the small first part of Zarf, and checks what it says', async () => {
    const header = JSON.stringify({ sha256Sum: 'a', bytes: 5, count: 2 });
    const paths = await files({ 'p.tar.part000': header, 'p.tar.part001': 'abc', 'p.tar.part002': 'de' });
    expect(await findParts(paths[1] as string)).toEqual(paths.slice(1));
    await rm(paths[2] as string);
    await expect(findParts(paths[0] as string)).rejects.toMatchObject({ code: 'bundle_truncated' });
  });
});
