import { randomBytes } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { tempDir } from '@airdock/testing/servers';
import { describe, expect, it } from 'vitest';
import { DirectFile } from './direct-file.js';

// The first folder is on a disk, the second on tmpfs, which knows no direct writes.
describe.each([undefined, '/dev/shm'])('DirectFile in %s', (parent) => {
  it.each([0, 1, 4095, 4096, 4_194_304, 4_194_305, 13_000_001])(
    'writes %d bytes as they are, whatever pieces they come in',
    async (size) => {
      const folder = await tempDir('direct');
      const path = join(parent ?? folder.path, `airdock-direct-${process.pid}-${size}`);
      const bytes = randomBytes(size);
      const file = await DirectFile.create(path);
      for (let at = 0; at < size; ) {
        const end = Math.min(size, at + 1 + Math.floor(Math.random() * 3_000_000));
        await file.append(bytes.subarray(at, end));
        at = end;
      }
      expect(await file.finish({ sync: true })).toBe(size);
      await file.close();
      expect((await readFile(path)).equals(bytes)).toBe(true);
      const copy = await DirectFile.create(`${path}.copy`);
      const [offset, part] = [Math.min(512, size), Math.max(0, size - 1000)];
      const seen: Buffer[] = [];
      await copy.appendFrom({ path, offset, size: part }, async (piece) => seen.push(Buffer.from(piece)));
      const expected = bytes.subarray(offset, offset + part);
      expect(await copy.finish()).toBe(expected.byteLength);
      await copy.close();
      expect(Buffer.concat(seen).equals(expected)).toBe(true);
      expect((await readFile(`${path}.copy`)).equals(expected)).toBe(true);
      await rm(`${path}.copy`);
      await expect(DirectFile.create(path)).rejects.toMatchObject({ code: 'EEXIST' });
      await rm(path);
      await folder.remove();
    },
  );
});
