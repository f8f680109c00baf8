import { once } from 'node:events';
import { mkdir, readdir, utimes, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { spawnSource } from '@airdock/testing/source-process';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { newPart, releasePart, sweepParts, takePart } from './parts.js';

let dir: TempDir;
beforeEach(async () => {
  dir = await tempDir('parts');
});
afterEach(() => dir.remove());

/** A part of a process that is alive until it is killed. */
async function startOwner(subject: string) {
  const child = spawnSource(`
    const { newPart } = await import(${JSON.stringify(new URL('./parts.ts', import.meta.url).href)});
    console.log(newPart(${JSON.stringify(dir.path)}, ${JSON.stringify(subject)}));
    setInterval(() => undefined, 1000);`);
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const path = line.toString().trim();
  await writeFile(path, 'half');
  return {
    path,
    kill: async () => {
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  };
}

it('never takes a part from a process that lives, and gives it to one of several when that was killed', async () => {
  const owner = await startOwner('blob');
  expect(await takePart(dir.path, 'blob')).toBeUndefined();
  await owner.kill();
  expect(await takePart(dir.path, 'other')).toBeUndefined();
  const taken = (await Promise.all([1, 2, 3].map(() => takePart(dir.path, 'blob')))).filter(Boolean);
  expect(taken).toHaveLength(1);
  expect(await readdir(dir.path)).toEqual(taken.map((path) => basename(path as string)));
});

it('takes a number that is used again for another process, and leaves other machines and containers alone', async () => {
  const mine = basename(newPart(dir.path, 'blob'));
  const [, boot, namespace, pid, started, id] = /^blob\.(\w+)-(\d+)-(\d+)-(\d+)\.(.+)\.part$/.exec(mine) ?? [];
  for (const owner of [
    `${boot}-${namespace}-${pid}-${started}`,
    `00000000-${namespace}-${pid}-1`,
    `${boot}-1-${pid}-1`,
    'nonsense',
  ]) {
    await writeFile(join(dir.path, `blob.${owner}.${id}.part`), '');
  }
  expect(await takePart(dir.path, 'blob')).toBeUndefined();
  await writeFile(join(dir.path, `blob.${boot}-${namespace}-${pid}-${Number(started) - 1}.x.part`), '');
  expect(await takePart(dir.path, 'blob')).toMatch(/[.]x[.]part$/);
});

it('gives up folders too', async () => {
  const part = newPart(dir.path, 'layer');
  await mkdir(part);
  await writeFile(join(part, 'journal'), 'x');
  await releasePart(part);
  expect(await readdir((await takePart(dir.path, 'layer')) as string)).toEqual(['journal']);
});

it('sweeps nothing that is young or of a process that lives', async () => {
  const owner = await startOwner('blob');
  await writeFile(join(dir.path, 'blob.free.1.part'), '');
  await utimes(join(dir.path, 'blob.free.1.part'), 0, 0);
  await sweepParts(dir.path);
  expect(await readdir(dir.path)).toHaveLength(2);
  await owner.kill();
});
