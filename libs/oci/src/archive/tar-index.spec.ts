import { open, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type MemberHeader, withMember, writeTar } from '@airdock/testing/bundles';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { JoinedFile } from './joined-file.js';
import { indexTar, type TarIndex } from './tar-index.js';

let dir: TempDir;
let path: string;
beforeAll(async () => {
  dir = await tempDir('tar-index');
  path = join(dir.path, 'a.tar');
});
afterAll(() => dir.remove());

interface Member {
  header: MemberHeader;
  content?: Buffer;
}
const member = (name: string, content = ''): Member => ({ header: { name }, content: Buffer.from(content) });
const link = (name: string, linkname: string, type: 'symlink' | 'link' = 'symlink'): Member => ({
  header: { name, linkname, type },
});

async function index(): Promise<TarIndex> {
  await using file = await JoinedFile.open([path]);
  return await indexTar(file);
}
async function indexOf(...members: Member[]): Promise<TarIndex> {
  await writeTar(path, members);
  return index();
}
async function contentOf(found: TarIndex, name: string): Promise<string | undefined> {
  const { offset, size } = found.find(name) ?? {};
  return offset === undefined ? undefined : (await readFile(path)).toString('utf8', offset, offset + (size ?? 0));
}

describe('indexTar', () => {
  it('finds each file where its content lies, whatever their names and sizes are', async () => {
    const segment = fc.stringMatching(/^[a-zä0-9_-]{1,60}$/);
    const names = fc.uniqueArray(fc.tuple(segment, segment, segment), { selector: ([first]) => first, maxLength: 8 });
    await fc.assert(
      fc.asyncProperty(
        names,
        fc.array(fc.string({ maxLength: 1500 }), { minLength: 8, maxLength: 8 }),
        async (all, texts) => {
          const contents = new Map(all.map((segments, at) => [segments.join('/'), texts[at] ?? '']));
          const found = await indexOf(
            member('first'),
            ...[...contents].map(([name, text]) => member(`./${name}`, text)),
          );
          expect(found.complete).toBe(true);
          expect(found.names().toSorted()).toEqual([...new Set(['first', ...contents.keys()])].toSorted());
          for (const [name, text] of contents)
            expect(await contentOf(found, name.replaceAll('/', '//'))).toBe(Buffer.from(text).toString());
        },
      ),
      { numRuns: 30 },
    );
  });

  it('says of an archive that was cut anywhere how much is missing at least, or that it has no end', async () => {
    await writeTar(path, [member('a', 'x'.repeat(700)), member('b', 'y'.repeat(10))]);
    const whole = await readFile(path);
    // Header, 700 bytes in two blocks, header, 10 bytes in one block, two blocks of zeros.
    const [betweenMembers, atTheEnd] = [3 * 512, 5 * 512];
    expect(whole.length).toBe(7 * 512);
    for (const length of [513, 1000, betweenMembers, betweenMembers + 1, 2000, 2049, atTheEnd]) {
      await writeFile(path, whole);
      await truncate(path, length);
      if (length === betweenMembers || length === atTheEnd) expect((await index()).complete).toBe(false);
      else
        await expect(index(), `${length}`).rejects.toMatchObject({
          code: 'bundle_truncated',
          details: { sizeBytes: length },
        });
    }
    for (const length of [0, 100, 511]) {
      await writeFile(path, whole.subarray(0, length));
      await expect(index(), `${length}`).rejects.toMatchObject({ code: 'bundle_format_unknown' });
    }
  });

  it('finds what links lead to, and nothing behind a loop or at the end of a link to nowhere', async () => {
    const found = await indexOf(
      member('a/layer.tar', 'content'),
      link('b/layer.tar', '../a/layer.tar'),
      link('c', 'b/layer.tar', 'link'),
      link('one', 'two'),
      link('two', 'one'),
      link('nowhere', 'x'),
    );
    for (const name of ['b/layer.tar', 'c', './c']) expect(await contentOf(found, name), name).toBe('content');
    for (const name of ['one', 'nowhere', 'x']) expect(found.find(name), name).toBeUndefined();
  });

  it('takes a file twice if it is the same one', async () => {
    const found = await indexOf(member('a', 'same'), member('a', 'same'), link('l', 'a'), link('l', './a'));
    expect(found.names()).toEqual(['a', 'l']);
  });

  it.each<[string, Member[]]>([
    ['a name that leaves the archive', [member('a/../../b')]],
    ['an absolute name', [member('/a')]],
    ['a name that hides itself', [member('a\u202eb')]],
    ['a link that leaves the archive', [link('a/b', '../../c')]],
    ['a link to an absolute name', [link('a', '/etc/passwd')]],
    ['a hard link to no member before it', [link('a', 'b', 'link'), member('b')]],
    ['a file below a link', [link('a', 'b'), member('a/c')]],
    ['a file below a file', [member('a'), member('a/c')]],
    ['two files of one name, with as many bytes', [member('a', 'one'), member('a', 'two')]],
    ['two files of one name, with more bytes', [member('a', 'one'), member('./a', 'three')]],
    ['a file and a link of one name', [member('a', 'one'), link('a', 'b')]],
    ['two links of one name', [link('a', 'b'), link('a', 'c')]],
    ['a pipe', [{ header: { name: 'a', type: 'fifo' } }]],
  ])('refuses %s', async (_what, members) => {
    await expect(indexOf(...members)).rejects.toMatchObject({ code: 'bundle_unsafe' });
    await writeTar(path, [member('harmless')]);
    for (const { header, content } of members.toReversed()) await withMember(path, header, content);
    await expect(index()).rejects.toMatchObject({ code: 'bundle_unsafe' });
  });

  it('sees a header that was damaged behind the first one', async () => {
    await writeTar(path, [member('a'), member('b')]);
    const file = await open(path, 'r+');
    await file.write('X', 512);
    await file.close();
    await expect(index()).rejects.toMatchObject({ code: 'bundle_corrupt' });
  });

  it('stops when it is told to', async () => {
    await writeTar(path, [member('a')]);
    await using file = await JoinedFile.open([path]);
    const reason = new Error('enough');
    await expect(indexTar(file, AbortSignal.abort(reason))).rejects.toBe(reason);
  });
});
