/** Files that go on after their writer was lost, and what becomes of what cannot be written. */
import { randomBytes } from 'node:crypto';
import { readdirSync, readlinkSync } from 'node:fs';
import { appendFile, mkdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DirectFile } from './direct-file.js';
import { pieceBytes } from './piece-memory.js';

const content = randomBytes(2 * pieceBytes + 10_000);
const openFilesIn = (folder: string) =>
  readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`);
      return path.startsWith(folder) ? [path] : [];
    } catch {
      return [];
    }
  });

// The first folder is on a disk, the second on tmpfs, which knows no direct writes.
describe.each(['/tmp', '/dev/shm'])('DirectFile below %s', (parent) => {
  let folder: string;
  let path: string;
  beforeAll(async () => {
    folder = join(parent, `airdock-direct-faults-${process.pid}`);
    await mkdir(folder, { recursive: true });
    path = join(folder, 'file');
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it('goes on after any number of bytes that it has, and forgets what is behind them', async () => {
    const size = fc.oneof(
      fc.integer({ min: 0, max: content.byteLength }),
      fc.constantFrom(0, 1, 4096, pieceBytes - 1, pieceBytes, pieceBytes + 1, 2 * pieceBytes),
    );
    await fc.assert(
      fc.asyncProperty(size, fc.integer({ min: 0, max: 20_000 }), async (kept, behind) => {
        await writeFile(path, Buffer.concat([content.subarray(0, kept), Buffer.alloc(behind, 'x')]));
        const file = await DirectFile.reopen(path, kept);
        await file.append(content.subarray(kept));
        expect(await file.finish()).toBe(content.byteLength);
        await file.close();
        expect((await readFile(path)).equals(content)).toBe(true);
      }),
      { numRuns: 25 },
    );
  });

  it('refuses to go on after bytes that it does not have, and closes what it opened', async () => {
    await writeFile(path, content.subarray(0, 5_000));
    await expect(DirectFile.reopen(path, 5_001)).rejects.toThrow('has no 5001 bytes');
    await expect(DirectFile.reopen(join(folder, 'none'), 0)).rejects.toMatchObject({ code: 'ENOENT' });
    expect(openFilesIn(folder)).toEqual([]);
    expect((await stat(path)).size).toBe(5_000);
  });

  it('follows no link, neither to make a file nor to go on with one', async () => {
    await writeFile(path, 'precious');
    const link = join(folder, 'link');
    await symlink(path, link);
    await expect(DirectFile.create(link)).rejects.toMatchObject({ code: 'EEXIST' });
    await expect(DirectFile.reopen(link, 0)).rejects.toMatchObject({ code: 'ELOOP' });
    expect(await readFile(path, 'utf8')).toBe('precious');
  });

  it('ends early where the other file ends, and with what looking at its bytes fails with', async () => {
    const source = join(folder, 'source');
    await writeFile(source, content);
    await rm(path, { force: true });
    const file = await DirectFile.create(path);
    await file.append(content.subarray(0, 100));
    const span = { path: source, offset: 100, size: 2 * content.byteLength };
    await file.appendFrom(span, async () => undefined);
    expect(await file.finish()).toBe(content.byteLength);
    await file.close();
    expect((await readFile(path)).equals(content)).toBe(true);

    await appendFile(source, content);
    const other = await DirectFile.reopen(path, 0);
    const failing = other.appendFrom({ path: source, offset: 0, size: 2 * content.byteLength }, async () => {
      throw new Error('wrong bytes');
    });
    await expect(failing).rejects.toThrow('wrong bytes');
    await other.close();
    expect(openFilesIn(folder)).toEqual([]);
  });
});
