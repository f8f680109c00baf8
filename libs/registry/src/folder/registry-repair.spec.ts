import { execFile } from 'node:child_process';
import { lstat, mkdir, readdir, readFile, rm, symlink, truncate, utimes, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { type Digest, digestOf } from '@airdock/core/oci/digest';
import { openBundle } from '@airdock/oci/bundle/bundle';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { startRegistry, type TempDir, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { copyImages } from '../copy/copy-image.js';
import { planCopy } from '../copy/plan-copy.js';
import { repairRegistry } from './registry-repair.js';
import { RegistryStorage } from './registry-storage.js';
import { surveyRegistry } from './registry-survey.js';

const run = promisify(execFile);

let dir: TempDir;
let server: TestRegistry;
let registry: RegistryClient;
beforeEach(async () => {
  dir = await tempDir('repair');
  server = await startRegistry();
  registry = new RegistryClient(server.url);
});
afterEach(async () => {
  await registry.close();
  await server.stop();
  await dir.remove();
});

const root = () => join(server.storageDir, 'docker/registry/v2');
const blobFile = (digest: string) => join(root(), 'blobs/sha256', digest.slice(7, 9), digest.slice(7), 'data');

/** Content by path of what is below a folder; of blobs only that they are there. */
async function tree(): Promise<Map<string, string>> {
  const entries = (await readdir(root(), { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  const paths = entries.map((entry) => join(entry.parentPath, entry.name)).sort();
  return new Map(
    await Promise.all(
      paths.map(
        async (path) =>
          [relative(root(), path), path.endsWith('/data') ? 'data' : await readFile(path, 'utf8')] as const,
      ),
    ),
  );
}

/** Pushes one image of its own content under `app:1`, over HTTP. */
async function push(seed: string): Promise<Digest> {
  const file = join(dir.path, `${seed}.tar`);
  await buildOciArchive(file, [await makeImage({ name: 'reg.site/app:1', layers: [{ randomBytes: 50_000, seed }] })]);
  await using source = await openBundle(file, { workDir: join(dir.path, 'work') });
  const retry = { attempts: 3, delayMs: 1 };
  const [copied] = await copyImages({
    source,
    images: source.images.map((image) => ({ image, names: [{ repository: 'app', tag: '1' }] })),
    registry,
    retry,
  });
  if (copied?.error) throw copied.error;
  return copied?.digest ?? digestOf('');
}

/** Two pushes to one tag: the second is what it leads to. */
async function pushTwice(): Promise<{ first: Digest; second: Digest; history: string }> {
  const first = await push('first');
  const second = await push('second');
  // Times of files may be as coarse as a second.
  const history = join(root(), `repositories/app/_manifests/tags/1/index/sha256/${first.slice(7)}/link`);
  await utimes(history, new Date(0), new Date(0));
  return { first, second, history };
}

/** What was changed. */
async function repaired(): Promise<string[]> {
  const { changed, failed } = await repairRegistry(server.storageDir);
  expect(failed).toEqual([]);
  return changed;
}

const isPulled = async (reference: string) =>
  (await registry.headManifest('app', reference).catch(() => undefined))?.digest;

describe('repairRegistry', () => {
  it('follows no link that a registry which was taken over has put into its folder: it neither writes nor removes elsewhere', async () => {
    await pushTwice();
    const outside = join(dir.path, 'outside');
    const folders = ['home/alice', 'tags/empty/current', 'uploads/11111111-1111-4111-8111-111111111111'];
    for (const folder of folders) await mkdir(join(outside, folder), { recursive: true });
    const files = [
      'home/alice/letter',
      'tags/empty/current/link',
      'uploads/11111111-1111-4111-8111-111111111111/startedat',
      'victim',
    ];
    for (const file of files) await writeFile(join(outside, file), '');
    const before = await readdir(outside, { recursive: true });
    const put = async (path: string, target: string) => {
      await rm(join(root(), path), { recursive: true, force: true });
      await mkdir(dirname(join(root(), path)), { recursive: true });
      await symlink(join(outside, target), join(root(), path));
    };
    await put('repositories/evil/_manifests/tags', 'home');
    await put('repositories/worse/_manifests', '');
    await put('repositories/app/_uploads', 'uploads');
    await put('repositories/app/_manifests/tags/1/current/link', 'victim');
    const { changed, failed } = await repairRegistry(server.storageDir);
    expect(changed).toEqual(['repositories/app/_manifests/tags/1/current/link']);
    expect(failed).toEqual(expect.arrayContaining([expect.stringContaining('reached through a link')]));
    expect(await readdir(outside, { recursive: true })).toEqual(before);
    for (const file of files) expect(await readFile(join(outside, file), 'utf8')).toBe('');
    // The tag is whole again, as a file.
    expect((await lstat(join(root(), 'repositories/app/_manifests/tags/1/current/link'))).isFile()).toBe(true);
    await expect(surveyRegistry(server.storageDir, survey())).rejects.toThrow('reached through a link');
  });

  it('opens no pipe and no device that was put in the place of a blob or a link, and takes them away', async () => {
    const { first, second } = await pushTwice();
    const link = join(root(), `repositories/app/_manifests/tags/1/current/link`);
    for (const path of [blobFile(first), link]) {
      await rm(path);
      await run('mkfifo', [path]);
    }
    const endless = digestOf(Buffer.from('endless'));
    await mkdir(dirname(blobFile(endless)), { recursive: true });
    await symlink('/dev/zero', blobFile(endless));
    const { changed, failed } = await repairRegistry(server.storageDir);
    expect(failed).toEqual([]);
    expect(changed.map((path) => join(root(), path))).toEqual(
      expect.arrayContaining([blobFile(first), blobFile(endless), link]),
    );
    expect(await isPulled('1')).toBe(second);
    await run('mkfifo', [blobFile(first)]);
    expect(await surveyRegistry(server.storageDir, survey()).catch((error: unknown) => error)).toMatchObject({
      code: 'registry_damaged',
    });
  });

  it('changes nothing in a registry that is whole', async () => {
    await pushTwice();
    const before = await tree();
    expect(await repairRegistry(server.storageDir)).toEqual({ changed: [], failed: [] });
    expect(await repairRegistry(join(dir.path, 'nothing'))).toEqual({ changed: [], failed: [] });
    expect(await tree()).toEqual(before);
  });

  it('writes every kind of link that was left empty as it was', async () => {
    const { first, second, history } = await pushTwice();
    const whole = await tree();
    const links = [...whole.keys()].filter((path) => path.endsWith('/link'));
    // Config and layer, manifest, history of the tag; and the tag.
    expect(links).toHaveLength(2 * (2 + 1 + 1) + 1);
    for (const link of links) {
      await truncate(join(root(), link));
      expect(await repaired()).toEqual([link]);
      expect(await tree()).toEqual(whole);
    }
    await utimes(history, new Date(0), new Date(0));
    for (const link of links) if (!link.includes('/index/')) await truncate(join(root(), link));
    expect(await isPulled('1')).toBeUndefined();
    expect(await repaired()).toHaveLength(links.length - 2);
    expect(await tree()).toEqual(whole);
    expect(await isPulled('1')).toBe(second);
    expect(await isPulled(first)).toBe(first);
    await expect(surveyRegistry(server.storageDir, survey())).resolves.toBeDefined();
  });

  it('removes a tag whose manifest never came, and links to blobs that are not there', async () => {
    const digest = await push('only');
    const manifests = join(root(), 'repositories/app/_manifests');
    await truncate(join(manifests, 'tags/1/current/link'));
    await truncate(join(manifests, `revisions/sha256/${digest.slice(7)}/link`));
    await rm(dirname(blobFile(digest)), { recursive: true });
    expect((await repaired()).toSorted()).toEqual(
      [
        `repositories/app/_manifests/revisions/sha256/${digest.slice(7)}/link`,
        'repositories/app/_manifests/tags/1',
      ].toSorted(),
    );
    expect(await registry.listTags('app')).toEqual([]);
    expect(await push('only')).toBe(digest);
    expect(await isPulled('1')).toBe(digest);
  });

  it.each(['is not there', 'is empty'])(
    'brings a tag to what it was given last when its link %s, whatever the clock has said',
    async (what) => {
      const { second, history } = await pushTwice();
      const link = join(root(), 'repositories/app/_manifests/tags/1/current/link');
      if (what === 'is empty') {
        await truncate(link);
        // The clock was set back since.
        await utimes(history, new Date(Date.now() + 86_400_000), new Date(Date.now() + 86_400_000));
      } else await rm(dirname(link), { recursive: true });
      expect(await repaired()).toEqual([relative(root(), link)]);
      expect(await isPulled('1')).toBe(second);
    },
  );

  it('gives a tag no manifest that has just been set aside', async () => {
    const { first, second } = await pushTwice();
    await truncate(blobFile(second));
    await truncate(join(root(), 'repositories/app/_manifests/tags/1/current/link'));
    await repaired();
    expect(await isPulled('1')).toBe(first);
    await expect(surveyRegistry(server.storageDir, survey())).resolves.toBeDefined();
  });

  it('finds a manifest that was cut short although a clock has dated another one in the future', async () => {
    const { first, second } = await pushTwice();
    await utimes(blobFile(first), new Date(Date.now() + 3_600_000), new Date(Date.now() + 3_600_000));
    await truncate(blobFile(second), 100);
    expect(await repaired()).toEqual([relative(root(), blobFile(second))]);
  });

  it('tells what it cannot repair, and repairs the rest', async () => {
    await push('only');
    await mkdir(join(dir.path, 'elsewhere/tags'), { recursive: true });
    await mkdir(join(root(), 'repositories/odd/_layers'), { recursive: true });
    await symlink(join(dir.path, 'elsewhere'), join(root(), 'repositories/odd/_manifests'));
    const layer = [...(await tree()).keys()].find((path) => path.includes('_layers')) ?? '';
    await truncate(join(root(), layer));
    expect(await repairRegistry(server.storageDir)).toEqual({
      changed: [layer],
      failed: [expect.stringMatching(/^odd: .*reached through a link/)],
    });
  });

  it.each([0, 100])(
    'sets a manifest aside of which %i bytes were written, so that the next push brings it',
    async (size) => {
      const digest = await push('only');
      await rm(join(root(), 'repositories/app/_manifests'), { recursive: true });
      await truncate(blobFile(digest), size);
      // The registry would take it for complete.
      await expect(push('only')).rejects.toMatchObject({ code: 'images_damaged' });
      expect(await repaired()).toContain(relative(root(), blobFile(digest)));
      expect(await push('only')).toBe(digest);
      expect((await registry.getManifest('app', '1'))?.digest).toBe(digest);
    },
  );

  it('leaves an empty layer, and what is damaged in an older blob, to others', async () => {
    const empty = digestOf('');
    const config = Buffer.from('{}');
    for (const content of [Buffer.alloc(0), config]) {
      const descriptor = { mediaType: 'application/octet-stream', digest: digestOf(content), size: content.byteLength };
      await registry.uploadBlob('app', descriptor, { size: content.byteLength, open: () => Readable.from([content]) });
    }
    await truncate(join(root(), `repositories/app/_layers/sha256/${empty.slice(7)}/link`));
    const digest = await push('old');
    await truncate(blobFile(digest), 10);
    await utimes(blobFile(digest), new Date(0), new Date(0));
    expect(await repaired()).toEqual([`repositories/app/_layers/sha256/${empty.slice(7)}/link`]);
    expect(await registry.headBlob('app', empty)).toEqual({ size: 0 });
  });

  it('lets an upload go on whose hash was not written, and removes one that was never announced', async () => {
    const content = Buffer.alloc(100_000, 7);
    const digest = digestOf(content);
    const started = await fetch(`${server.url}/v2/app/blobs/uploads/`, { method: 'POST' });
    const piece = await fetch(new URL(started.headers.get('location') ?? '', server.url), {
      method: 'PATCH',
      body: content.subarray(0, 60_000),
    });
    expect(piece.status).toBe(202);
    const states = [...(await tree()).keys()].filter((path) => path.includes('/hashstates/') && !path.endsWith('/0'));
    expect(states).toHaveLength(1);
    for (const state of states) await truncate(join(root(), state));
    const silent = join(root(), 'repositories/app/_uploads/silent');
    await mkdir(silent);
    await writeFile(join(silent, 'startedat'), '');
    expect((await repaired()).toSorted()).toEqual([...states, 'repositories/app/_uploads/silent'].toSorted());
    const target = new URL(piece.headers.get('location') ?? '', server.url);
    target.searchParams.set('digest', digest);
    const finished = await fetch(target, {
      method: 'PUT',
      body: content.subarray(60_000),
      headers: { 'content-type': 'application/octet-stream' },
    });
    expect(finished.status).toBe(201);
    expect(await registry.headBlob('app', digest)).toEqual({ size: content.byteLength });
  });

  it('is not needed by a push of an image whose only name was left empty by a full disk, while the registry went on', async () => {
    const digest = await push('only');
    const id = (await RegistryStorage.enable(server.storageDir, registry)) ?? '';
    const storage = await RegistryStorage.open({ folder: server.storageDir, id });
    await truncate(join(root(), 'repositories/app/_manifests/tags/1/current/link'));
    await using source = await openBundle(join(dir.path, 'only.tar'), { workDir: join(dir.path, 'work') });
    const images = source.images.map((image) => ({ image, names: [{ repository: 'app', tag: '1' }] }));
    expect((await planCopy({ source, images, registry, storage })).images).toMatchObject([
      { state: 'missing', digest, missingBytes: 0 },
    ]);
    expect((await copyImages({ source, images, registry, storage })).map(({ error }) => error)).toEqual([undefined]);
    expect(await isPulled('1')).toBe(digest);
  });

  /** Such a registry is not ours to repair; what can be pushed again heals it. */
  it('is not needed by a push of the same image over HTTP, whatever link was left empty', async () => {
    const digest = await push('only');
    const whole = await tree();
    // The history of a tag is not read.
    for (const link of [...whole.keys()].filter((path) => path.endsWith('/link') && !path.includes('/index/'))) {
      await truncate(join(root(), link));
      expect(await push('only')).toBe(digest);
      expect(await isPulled('1')).toBe(digest);
    }
    expect(await tree()).toEqual(whole);
  });
});

const survey = () => ({
  youngSince: new Date(0),
  uploadsSince: new Date(0),
  needed: new Set<Digest>(),
  asideRoot: join(dir.path, 'aside'),
  known: new Map(),
});
