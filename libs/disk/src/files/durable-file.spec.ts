import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { diskError, freeBytesOf, isWorthKeeping, writeDurably } from './durable-file.js';

let folder: TempDir;
beforeEach(async () => {
  folder = await tempDir('durable-file');
});
afterEach(() => folder.remove());
const at = (name: string) => join(folder.path, name);
const chunks = [Buffer.alloc(1_500_000, 'a'), Buffer.alloc(700_001, 'b'), Buffer.from('end')];

it.each([
  ['bytes', () => Buffer.concat(chunks)],
  ['a stream', () => Readable.from(chunks)],
])('writes %s, makes the folder, and replaces what is there', async (_what, content) => {
  for (let round = 0; round < 2; round++) await writeDurably(at('deep/er/file'), content());
  expect((await readFile(at('deep/er/file'))).equals(Buffer.concat(chunks))).toBe(true);
  expect(await readdir(at('deep/er'))).toEqual(['file']);
});

it('has what is unfinished where it is told to, and nowhere when it is done', async () => {
  const seen: string[][] = [];
  const content = Readable.from(
    (async function* () {
      for (const chunk of chunks) {
        yield chunk;
        seen.push(await readdir(at('tmp')), await readdir(folder.path));
      }
    })(),
  );
  await writeDurably(at('file'), content, { tmpDir: at('tmp') });
  expect(seen[0]).toEqual([expect.stringMatching(/^file\..*\.part$/)]);
  expect(seen[1]).toEqual(['tmp']);
  expect(await readdir(at('tmp'))).toEqual([]);
});

it('keeps the older file, and nothing of the new one, when the stream breaks', async () => {
  await writeFile(at('file'), 'old');
  const content = Readable.from(
    (async function* () {
      yield chunks[0];
      throw new AppError('digest_mismatch');
    })(),
  );
  await expect(writeDurably(at('file'), content)).rejects.toMatchObject({ code: 'digest_mismatch' });
  expect([await readFile(at('file'), 'utf8'), await readdir(folder.path)]).toEqual(['old', ['file']]);
});

it.each(['before it begins', 'while it reads'])(
  'throws the reason of an abort %s, and ends the stream',
  async (when) => {
    const worker = new AbortController();
    const reason = new AppError('job_cancelled');
    const content = Readable.from(
      (async function* () {
        yield chunks[0];
        worker.abort(reason);
        yield chunks[1];
      })(),
    );
    if (when === 'before it begins') worker.abort(reason);
    await expect(writeDurably(at('file'), content, { signal: worker.signal })).rejects.toBe(reason);
    expect(content.destroyed).toBe(true);
    expect(await readdir(folder.path)).toEqual([]);
  },
);

it('does not replace a folder', async () => {
  await mkdir(at('file/in'), { recursive: true });
  await expect(writeDurably(at('file'), Buffer.from('x'))).rejects.toMatchObject({ code: 'EISDIR' });
  expect(await readdir(folder.path)).toEqual(['file']);
  expect((await stat(at('file'))).isDirectory()).toBe(true);
});

it('calls a full disk by its name, and leaves other errors as they are', () => {
  const full = Object.assign(new Error('no space'), { code: 'ENOSPC' });
  expect(diskError(full, '/x/file')).toMatchObject({ code: 'space_insufficient', cause: full });
  const odd = Object.assign(new Error('odd'), { code: 'EPROTO' });
  expect(diskError(odd, '/x/file')).toBe(odd);
});

it.each([
  [new AppError('space_insufficient'), false],
  [new AppError('digest_mismatch'), false],
  [new AppError('registry_unavailable'), true],
  [new Error('killed'), true],
])('after %s what is unfinished is worth keeping: %s', (error, isWorth) => {
  expect(isWorthKeeping(error)).toBe(isWorth);
});

it('tells how much may be written', async () => {
  expect(await freeBytesOf(folder.path)).toBeGreaterThan(0);
});
