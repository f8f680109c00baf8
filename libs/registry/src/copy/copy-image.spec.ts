import { execFile } from 'node:child_process';
import { rmSync } from 'node:fs';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { AppError } from '@airdock/core/errors';
import { type Digest, digestHex, digestOf } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';
import { parseReference } from '@airdock/core/oci/reference';
import { openBundle } from '@airdock/oci/bundle/bundle';
import type { ImageSource } from '@airdock/oci/image/image-source';
import { RegistryClient } from '@airdock/oci/registry-client/registry-client';
import { UploadSessions } from '@airdock/oci/registry-client/upload-sessions';
import {
  addArtifact,
  buildDockerArchive,
  buildOciArchive,
  buildOciLayout,
  flipByteIn,
  makeImage,
  makeIndex,
  withMember,
} from '@airdock/testing/bundles';
import { startRegistry, type TempDir, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { repairRegistry } from '../folder/registry-repair.js';
import { type CopyImagesOptions, copyImages, type ImageToCopy } from './copy-image.js';
import type { CopyProgress } from './copy-progress.js';

const run = promisify(execFile);
const base = { files: { 'bin/sh': 'shell' } };
const retry = { delayMs: 1, maxDelayMs: 5 };

let dir: TempDir;
let server: TestRegistry;
let file: string;
const cleanups: (() => Promise<unknown>)[] = [];
beforeEach(async () => {
  dir = await tempDir('copy');
  server = await startRegistry();
  file = join(dir.path, 'bundle.tar');
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  await server.stop();
  await dir.remove();
});

async function open(path = file): Promise<ImageSource> {
  const source = await openBundle(path, { workDir: join(dir.path, 'work') });
  cleanups.push(async () => source[Symbol.asyncDispose]());
  return source;
}

function client(url = server.url, timeoutMs?: number): RegistryClient {
  const registry = new RegistryClient(url, { timeoutMs });
  cleanups.push(() => registry.close());
  return registry;
}

/** Everything of a source, under flat names and below `mirror/`. */
const everything = (source: ImageSource): ImageToCopy[] =>
  source.images.map((image) => ({
    image,
    names: image.names.flatMap((name) => {
      const { repository, tag } = parseReference(name);
      return [
        { repository, tag },
        { repository: `mirror/${repository}`, tag },
      ];
    }),
  }));

async function copy(source: ImageSource, options: Partial<CopyImagesOptions> = {}) {
  return copyImages({ source, images: everything(source), registry: client(), retry, ...options });
}

/** As the engine does before it starts: a manifest of which nothing was written could not be brought over HTTP. */
async function restartRepaired(): Promise<void> {
  await repairRegistry(server.storageDir);
  await server.restart();
}

/** Repositories and tags that a puller could see. */
async function visible(): Promise<string[]> {
  const registry = client();
  const names: string[] = [];
  for (const repository of await registry.listRepositories())
    for (const tag of await registry.listTags(repository)) names.push(`${repository}:${tag}`);
  return names.sort();
}

const uploadsLeft = async () =>
  (await readdir(server.storageDir, { recursive: true })).filter((name) => /_uploads\/./.test(name));
const inspect = async (name: string) =>
  JSON.parse(
    (await run('skopeo', ['inspect', '--tls-verify=false', `docker://localhost:${server.port}/${name}`])).stdout,
  ) as {
    Digest: string;
    Layers: string[];
  };

type Fault = (incoming: IncomingMessage, outgoing: ServerResponse) => boolean;

/** A proxy before the registry. `fault` may answer by itself and return true, or damage the connection. */
async function proxy(fault: Fault): Promise<string> {
  const front: Server = createServer((incoming, outgoing) => {
    if (fault(incoming, outgoing)) return;
    const headers = { ...incoming.headers, host: incoming.headers.host };
    const upstream = request(
      { port: server.port, host: '127.0.0.1', path: incoming.url, method: incoming.method, headers },
      (answer) => {
        outgoing.writeHead(answer.statusCode ?? 502, answer.headers);
        answer.pipe(outgoing);
      },
    );
    upstream.on('error', () => outgoing.destroy());
    incoming.on('error', () => upstream.destroy()).on('close', () => !incoming.complete && upstream.destroy());
    incoming.pipe(upstream);
  });
  await new Promise<void>((resolve) => front.listen(0, '127.0.0.1', resolve));
  cleanups.push(() => {
    front.closeAllConnections();
    return new Promise((resolve) => front.close(resolve));
  });
  return `http://127.0.0.1:${(front.address() as AddressInfo).port}`;
}

describe('copyImages', () => {
  it('pushes a docker-archive so that skopeo reads the same image back, under all names', async () => {
    const image = await makeImage({
      name: 'k8s.gcr.io/pause:3.2',
      layers: [base, { randomBytes: 300_000 }, base],
      cmd: ['/pause'],
    });
    await buildDockerArchive(file, [image]);
    const progress: CopyProgress[] = [];
    const source = await open();
    const [copied] = await copy(source, { onProgress: (at) => progress.push(at) });
    expect(copied).toMatchObject({ names: ['pause:3.2', 'mirror/pause:3.2'] });
    expect(await visible()).toEqual(['mirror/pause:3.2', 'pause:3.2']);
    expect((await inspect('pause:3.2')).Digest).toBe(copied?.digest);
    const { stdout } = await run('skopeo', [
      'inspect',
      '--config',
      '--raw',
      '--tls-verify=false',
      `docker://localhost:${server.port}/mirror/pause:3.2`,
    ]);
    expect(stdout).toBe(image.config.toString());
    // A full copy makes skopeo check every digest and diff ID.
    await run('skopeo', [
      'copy',
      '--insecure-policy',
      '--src-tls-verify=false',
      `docker://localhost:${server.port}/pause:3.2`,
      `dir:${join(dir.path, 'pulled')}`,
    ]);
    expect(progress.at(-1)).toMatchObject({
      bytesDone: source.images[0]?.sizeBytes,
      bytesTotal: source.images[0]?.sizeBytes,
      itemsDone: 1,
      itemsTotal: 1,
    });
    expect(progress.map(({ bytesDone }) => bytesDone)).toEqual(
      progress.map(({ bytesDone }) => bytesDone).sort((a, b) => a - b),
    );
    expect(await uploadsLeft()).toEqual([]);
  });

  it('pushes a bundle that skopeo wrote without changing a digest', async () => {
    await buildDockerArchive(file, [
      await makeImage({ name: 'k8s.gcr.io/pause:3.2', layers: [base, { randomBytes: 50_000 }] }),
    ]);
    const written = join(dir.path, 'skopeo.tar');
    await run('skopeo', [
      'copy',
      '--insecure-policy',
      `docker-archive:${file}`,
      `oci-archive:${written}:k8s.gcr.io/pause:3.2`,
    ]);
    const { stdout } = await run('skopeo', ['inspect', `oci-archive:${written}:k8s.gcr.io/pause:3.2`]);
    const [copied] = await copy(await open(written));
    const { Digest, Layers } = JSON.parse(stdout) as { Digest: string; Layers: string[] };
    expect(copied?.digest).toBe(Digest);
    expect(await inspect('pause:3.2')).toMatchObject({ Digest, Layers });
  });

  it('takes what skopeo writes as docker-archive', async () => {
    const folder = join(dir.path, 'layout');
    await buildOciLayout(folder, [
      await makeImage({ name: 'k8s.gcr.io/pause:3.2', layers: [base, { randomBytes: 50_000 }] }),
    ]);
    await run('skopeo', [
      'copy',
      '--insecure-policy',
      `oci:${folder}:k8s.gcr.io/pause:3.2`,
      `docker-archive:${file}:k8s.gcr.io/pause:3.2`,
    ]);
    expect((await copy(await open()))[0]?.error).toBeUndefined();
    await run('skopeo', [
      'copy',
      '--insecure-policy',
      '--src-tls-verify=false',
      `docker://localhost:${server.port}/pause:3.2`,
      `dir:${join(dir.path, 'pulled')}`,
    ]);
  });

  it('pushes a multi-platform image with all of its platforms and attestations', async () => {
    const images = await Promise.all(
      ['amd64', 'arm64'].map((architecture) =>
        makeImage({
          name: [],
          layers: [base, { randomBytes: 9000, seed: architecture }],
          platform: { os: 'linux', architecture },
        }),
      ),
    );
    const [root] = await buildOciArchive(file, [makeIndex('registry.k8s.io/pause:3.9', images, { attestation: true })]);
    const [copied] = await copy(await open());
    expect(copied?.digest).toBe(root?.digest);
    await run('skopeo', [
      'copy',
      '--all',
      '--insecure-policy',
      '--src-tls-verify=false',
      `docker://localhost:${server.port}/mirror/pause:3.9`,
      `dir:${join(dir.path, 'pulled')}`,
    ]);
  });

  it('uploads a layer that images share once, and mounts it elsewhere', async () => {
    await buildOciArchive(
      file,
      await Promise.all(
        ['a', 'b', 'c'].map((name) =>
          makeImage({ name: `reg.site/${name}:1`, layers: [base, { randomBytes: 100, seed: name }] }),
        ),
      ),
    );
    const puts: string[] = [];
    const url = await proxy((incoming) => {
      if (incoming.method === 'PUT' && incoming.url?.includes('/uploads/'))
        puts.push(incoming.url.replace(/.*digest=/, ''));
      return false;
    });
    const copied = await copy(await open(), { registry: client(url) });
    expect(copied.map(({ error }) => error)).toEqual([undefined, undefined, undefined]);
    expect(puts).toHaveLength(new Set(puts).size);
    expect(puts).toHaveLength(7);
    expect(await visible()).toHaveLength(6);
  });

  it('writes nothing when everything is there', async () => {
    await buildDockerArchive(file, [await makeImage({ name: 'nginx:1', layers: [base] })]);
    const first = await copy(await open());
    const writes: string[] = [];
    const url = await proxy(({ method }) => {
      if (method !== 'GET' && method !== 'HEAD') writes.push(String(method));
      return false;
    });
    const again = await copy(await open(), { registry: client(url) });
    expect(again[0]?.digest).toBe(first[0]?.digest);
    expect(writes).toEqual([]);
  });

  it('uploads again what vanished from the storage', async () => {
    const image = await makeImage({ name: 'nginx:1', layers: [base] });
    await buildOciArchive(file, [image]);
    await copy(await open());
    const hex = digestHex(image.layers[0]?.digest ?? image.configDigest);
    await rm(join(server.storageDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex), { recursive: true });
    expect((await copy(await open()))[0]?.error).toBeUndefined();
    await run('skopeo', [
      'copy',
      '--insecure-policy',
      '--src-tls-verify=false',
      `docker://localhost:${server.port}/library/nginx:1`,
      `dir:${join(dir.path, 'pulled')}`,
    ]);
  });
});

describe('a garbage collection beside a push', () => {
  it.each([
    { moment: 'the manifest comes', isNow: ({ method }: IncomingMessage) => method === 'PUT' },
    { moment: 'the push looks whether everything is there', isNow: (_: IncomingMessage, looks: number) => looks === 2 },
  ])('that takes a blob before $moment makes it send the blob again', async ({ isNow }) => {
    const image = await makeImage({ name: 'nginx:1', layers: [base, { randomBytes: 5000 }] });
    const digest = image.layers[1]?.digest as Digest;
    await buildOciArchive(file, [image]);
    const source = await open();
    const images = everything(source).map((item) => ({ ...item, names: item.names.slice(0, 1) }));
    await copy(source, { images });
    await client().deleteTag('library/nginx', '1');
    let looks = 0;
    let uploads = 0;
    const url = await proxy((incoming) => {
      if (incoming.method === 'HEAD' && incoming.url?.endsWith(digest)) looks += 1;
      if (incoming.method === 'PUT' && incoming.url?.includes('/uploads/')) uploads += 1;
      if (uploads > 0 || !isNow(incoming, looks)) return false;
      const storage = join(server.storageDir, 'docker/registry/v2');
      rmSync(join(storage, 'repositories/library/nginx/_layers/sha256', digestHex(digest)), {
        recursive: true,
        force: true,
      });
      rmSync(join(storage, 'blobs/sha256', digestHex(digest).slice(0, 2), digestHex(digest)), {
        recursive: true,
        force: true,
      });
      return false;
    });
    const [copied] = await copy(source, { registry: client(url), images });
    expect(copied?.error).toBeUndefined();
    expect(uploads).toBe(1);
    const target = `dir:${join(dir.path, 'pulled')}`;
    await run('skopeo', [
      'copy',
      '--insecure-policy',
      '--src-tls-verify=false',
      `docker://localhost:${server.port}/library/nginx:1`,
      target,
    ]);
  });
});

describe('what belongs to an image', () => {
  const text = async (path: string) =>
    (
      await fetch(`${server.url}/v2/${path}`, {
        headers: { accept: `${mediaTypes.ociManifest}, ${mediaTypes.ociIndex}` },
      })
    ).text();

  it('arrives under every name before the image: signatures by tag, referrers by digest and in the list of referrers', async () => {
    const folder = join(dir.path, 'layout');
    const [root] = await buildOciLayout(folder, [await makeImage({ name: 'k8s.gcr.io/pause:3.2', layers: [base] })]);
    if (!root) throw new Error('no root');
    const tag = `sha256-${digestHex(root.digest)}`;
    const ref = { 'org.opencontainers.image.ref.name': `k8s.gcr.io/pause:${tag}.sig` };
    const signature = await addArtifact(folder, {
      type: 'application/vnd.dev.cosign.simplesigning.v1+json',
      text: 'signed',
      annotations: ref,
    });
    const sbom = await addArtifact(folder, { type: 'application/spdx+json', text: 'parts', subject: root });
    const deeper = await addArtifact(folder, { type: 'application/x-proof', text: 'signed parts', subject: sbom });
    const order: string[] = [];
    const url = await proxy(({ method, url: path = '' }) => {
      if (method === 'PUT' && path.startsWith('/v2/pause/manifests/')) order.push(path.replace(/.*\//, ''));
      return false;
    });
    const source = await open(folder);
    expect(source.images).toHaveLength(1);
    const [copied] = await copy(source, { registry: client(url) });
    expect(copied?.error).toBeUndefined();
    expect(order.at(-1)).toBe('3.2');
    for (const repository of ['pause', 'mirror/pause']) {
      expect(digestOf(await text(`${repository}/manifests/${tag}.sig`))).toBe(signature.digest);
      const listed = JSON.parse(await text(`${repository}/manifests/${tag}`)) as {
        manifests: { digest: string; artifactType: string }[];
      };
      expect(listed.manifests).toEqual([
        expect.objectContaining({ digest: sbom.digest, artifactType: 'application/spdx+json' }),
      ]);
      expect(digestOf(await text(`${repository}/manifests/${deeper.digest}`))).toBe(deeper.digest);
    }
    expect(copied?.parts.filter(({ kind }) => kind === 'companion').map(({ digest }) => digest)).toEqual(
      expect.arrayContaining([signature.digest, sbom.digest, deeper.digest]),
    );
    const writes: string[] = [];
    const again = await copy(await open(folder), {
      registry: client(
        await proxy(({ method = '' }) => {
          if (method !== 'HEAD' && method !== 'GET') writes.push(method);
          return false;
        }),
      ),
    });
    expect(again[0]?.error).toBeUndefined();
    expect(writes).toEqual([]);
  });
});

describe('a registry whose disk is full', () => {
  it('keeps what was complete, and no upload; with more space the rest follows', async (context) => {
    const disk = join(dir.path, 'small');
    await mkdir(disk);
    const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', disk]).catch(() => undefined);
    if (!mounted) return context.skip('no file system can be mounted');
    cleanups.push(() => run('umount', ['--lazy', disk]));
    await server.stop();
    server = await startRegistry({ storageDir: disk });
    await buildOciArchive(file, [
      await makeImage({ name: 'small:1', layers: [{ randomBytes: 1_000_000, seed: 'small' }] }),
      await makeImage({ name: 'large:1', layers: [{ randomBytes: 80_000_000, seed: 'large' }] }),
    ]);
    const source = await open();
    const sessions = new UploadSessions(join(dir.path, 'sessions'), server.storageDir);
    const [small, large] = await copy(source, { sessions });
    expect([small?.error, large?.error]).toMatchObject([undefined, { code: 'space_insufficient' }]);
    expect(await visible()).toEqual(['library/small:1', 'mirror/library/small:1']);
    expect(await inspect('library/small:1')).toMatchObject({ Layers: [expect.any(String)] });
    expect(await uploadsLeft()).toEqual([]);
    expect(await readdir(join(dir.path, 'sessions')).catch(() => [])).toEqual([]);
    await run('mount', ['-o', 'remount,size=200m', disk]);
    expect((await copy(source, { sessions })).map(({ error }) => error)).toEqual([undefined, undefined]);
    expect(await visible()).toContain('library/large:1');
  });
});

describe('a large blob', () => {
  const sessions = (storageDir?: string) => new UploadSessions(join(dir.path, 'sessions'), storageDir);
  const large = () => makeImage({ name: 'nginx:1', layers: [{ randomBytes: 150_000_000 }] });

  it.each(['the connection breaks', 'the registry is killed'])(
    'goes on from the last whole piece when %s in the middle of one',
    async (what) => {
      await buildOciArchive(file, [await large()]);
      let patched = 0;
      let broken = false;
      const url = await proxy((incoming) => {
        if (incoming.method !== 'PATCH' && !(incoming.method === 'PUT' && incoming.url?.includes('/uploads/')))
          return false;
        incoming.on('data', (chunk: Buffer) => {
          patched += chunk.byteLength;
          if (broken || patched < 100_000_000) return;
          broken = true;
          if (what.includes('registry')) void server.kill().then(restartRepaired);
          else incoming.socket.destroy();
        });
        return false;
      });
      const source = await open();
      const [copied] = await copy(source, {
        registry: client(url),
        sessions: sessions(server.storageDir),
        retry: { attempts: 20, delayMs: 50, maxDelayMs: 200 },
      });
      expect(copied?.error).toBeUndefined();
      expect(broken).toBe(true);
      // One piece is 64 MiB; besides, the proxy takes some bytes of each attempt while the registry is away.
      expect(patched).toBeLessThan((source.images[0]?.sizeBytes ?? 0) + 67_108_864 + 20_000_000);
      expect(await uploadsLeft()).toEqual([]);
      expect(await readdir(join(dir.path, 'sessions'))).toEqual([]);
    },
  );

  it('goes on in a later run after its process has gone away, and anew when the registry has forgotten it', async () => {
    await buildOciArchive(file, [await large()]);
    // What the registry still does with a request that was cut may put files there meanwhile.
    const forget = () => rm(join(server.storageDir, 'docker'), { recursive: true, maxRetries: 20, retryDelay: 100 });
    const bytesOf = async (isForgotten: boolean) => {
      let sent = 0;
      const abort = new AbortController();
      const stop = await proxy((incoming) => {
        if (incoming.method === 'PATCH')
          incoming.on('data', (chunk: Buffer) => {
            sent += chunk.byteLength;
            if (sent > 80_000_000) abort.abort(new Error('gone'));
          });
        return false;
      });
      await expect(
        copy(await open(), { registry: client(stop), sessions: sessions(), signal: abort.signal }),
      ).rejects.toThrow('gone');
      if (isForgotten) await forget();
      sent = 0;
      const count = await proxy((incoming) => {
        if (incoming.url?.includes('/uploads/')) incoming.on('data', (chunk: Buffer) => (sent += chunk.byteLength));
        return false;
      });
      const [copied] = await copy(await open(), { registry: client(count), sessions: sessions(server.storageDir) });
      expect(copied?.error).toBeUndefined();
      return sent;
    };
    expect(await bytesOf(false)).toBeLessThan(90_000_000);
    await forget();
    expect(await bytesOf(true)).toBeGreaterThan(149_000_000);
  });

  it('is given up in the registry when the run is discarded', async () => {
    await buildOciArchive(file, [await large()]);
    const abort = new AbortController();
    let pieces = 0;
    const url = await proxy(({ method }) => {
      if (method === 'PATCH' && ++pieces === 2) abort.abort(new Error('gone'));
      return false;
    });
    await expect(
      copy(await open(), { registry: client(url), sessions: sessions(), signal: abort.signal }),
    ).rejects.toThrow('gone');
    const registry = client();
    expect(await uploadsLeft()).not.toEqual([]);
    await sessions(server.storageDir).discard((session) => registry.cancelUpload(session));
    expect(await uploadsLeft()).toEqual([]);
  });
});

describe('faults', () => {
  it('goes on after answers of 500 and 429, without progress running backwards', async () => {
    await buildOciArchive(file, [await makeImage({ name: 'nginx:1', layers: [base, { randomBytes: 2_000_000 }] })]);
    let requests = 0;
    const url = await proxy((incoming, outgoing) => {
      if (requests++ % 4 !== 0) return false;
      incoming.resume();
      outgoing.writeHead(requests % 2 ? 500 : 429).end('{"errors":[{"code":"UNKNOWN","message":"disk sulks"}]}');
      return true;
    });
    const done: number[] = [];
    const [copied] = await copy(await open(), {
      registry: client(url),
      retry: { ...retry, attempts: 20 },
      onProgress: ({ bytesDone }) => done.push(bytesDone),
    });
    expect(copied?.error).toBeUndefined();
    expect(done).toEqual([...done].sort((a, b) => a - b));
    expect(await visible()).toEqual(['library/nginx:1', 'mirror/library/nginx:1']);
  });

  it('goes on after the connection is dropped in the middle of a blob', async () => {
    await buildOciArchive(file, [await makeImage({ name: 'nginx:1', layers: [{ randomBytes: 8_000_000 }] })]);
    let drops = 2;
    const url = await proxy((incoming) => {
      if (incoming.method !== 'PUT' || Number(incoming.headers['content-length']) < 1_000_000 || drops-- <= 0)
        return false;
      let seen = 0;
      incoming.on('data', (chunk: Buffer) => {
        seen += chunk.byteLength;
        if (seen > 3_000_000) incoming.socket.destroy();
      });
      return false;
    });
    expect((await copy(await open(), { registry: client(url) }))[0]?.error).toBeUndefined();
    expect(drops).toBeLessThan(0);
  });

  it('keeps the error of an image that the registry refuses, with its words, and pushes the others', async () => {
    await buildOciArchive(
      file,
      await Promise.all(
        ['good', 'bad'].map((name) =>
          makeImage({ name: `reg.site/${name}:1`, layers: [{ randomBytes: 100, seed: name }] }),
        ),
      ),
    );
    const url = await proxy((incoming, outgoing) => {
      if (incoming.method !== 'PUT' || !incoming.url?.includes('/bad/manifests/')) return false;
      incoming.resume();
      outgoing.writeHead(400).end('{"errors":[{"code":"MANIFEST_INVALID","message":"not today"}]}');
      return true;
    });
    const [good, bad] = await copy(await open(), { registry: client(url) });
    expect(good).toMatchObject({ names: ['good:1', 'mirror/good:1'] });
    expect(bad?.error).toMatchObject({ code: 'registry_rejected', details: { registryCode: 'MANIFEST_INVALID' } });
    expect(bad?.error?.message).toContain('not today');
    expect(await visible()).toEqual(['good:1', 'mirror/good:1']);
  });

  it('gives up an upload that stalls, and a registry that is gone', async () => {
    await buildOciArchive(file, [await makeImage({ name: 'nginx:1', layers: [{ randomBytes: 20_000_000 }] })]);
    const url = await proxy((incoming) => incoming.method === 'PUT');
    const stalled = await copy(await open(), { registry: client(url, 100), retry: { ...retry, attempts: 2 } });
    expect(stalled[0]?.error).toMatchObject({
      code: 'registry_unavailable',
      message: expect.stringContaining('no data'),
    });
    await server.kill();
    expect((await copy(await open(), { retry: { ...retry, attempts: 2 } }))[0]?.error).toMatchObject({
      code: 'registry_unavailable',
    });
  });

  it('stops in the middle of a blob when aborted, leaves no tag, and continues from there', async () => {
    await buildOciArchive(file, [await makeImage({ name: 'nginx:1', layers: [base, { randomBytes: 30_000_000 }] })]);
    const abort = new AbortController();
    const reason = new AppError('job_cancelled');
    let abortedAt = 0;
    const source = await open();
    const registry = client(
      await proxy((incoming) => {
        if (incoming.method !== 'PUT' || Number(incoming.headers['content-length']) < 1_000_000) return false;
        // Takes the first half, then nothing: the upload is in the middle when the abort comes.
        let seen = 0;
        incoming.on('data', (chunk: Buffer) => {
          seen += chunk.byteLength;
          if (seen < 10_000_000 || abortedAt) return;
          incoming.pause();
          abortedAt = performance.now();
          abort.abort(reason);
        });
        return true;
      }),
    );
    await expect(copy(source, { registry, signal: abort.signal })).rejects.toBe(reason);
    expect(performance.now() - abortedAt).toBeLessThan(1000);
    expect(await visible()).toEqual([]);
    expect((await copy(source))[0]?.error).toBeUndefined();
    expect(await visible()).toHaveLength(2);
  });

  it('never lets the registry have a blob that turns out to be damaged, and tags nothing', async () => {
    const image = await makeImage({ name: 'nginx:1', layers: [base, { randomBytes: 3_000_000 }] });
    await buildOciArchive(file, [image]);
    await flipByteIn(file, image.layers[1]?.gzip ?? Buffer.alloc(0));
    const [copied] = await copy(await open());
    expect(copied?.error).toMatchObject({ code: 'digest_mismatch', details: { digest: image.layers[1]?.digest } });
    expect(await visible()).toEqual([]);
    expect(
      (await readdir(server.storageDir, { recursive: true })).filter((name) =>
        name.includes(digestHex(image.layers[1]?.digest ?? image.configDigest)),
      ),
    ).toEqual([]);
  });

  it('puts nothing of a hostile bundle anywhere', async () => {
    await buildDockerArchive(file, [await makeImage({ name: 'nginx:1', layers: [base] })]);
    await withMember(file, { name: '../evil' });
    await expect(open()).rejects.toMatchObject({ code: 'bundle_unsafe' });
    expect(await client().listRepositories()).toEqual([]);
    expect(await readdir(dir.path)).toEqual(['bundle.tar']);
  });

  it('finishes after the registry was killed in the middle of a run', async () => {
    await buildOciArchive(
      file,
      await Promise.all(
        Array.from({ length: 6 }, (_, n) =>
          makeImage({ name: `reg.site/i${n}:1`, layers: [base, { randomBytes: 1_000_000, seed: String(n) }] }),
        ),
      ),
    );
    const source = await open();
    let killed: Promise<unknown> | undefined;
    await copy(source, {
      retry: { ...retry, attempts: 2 },
      onImage: () => {
        killed ??= server.kill();
      },
    });
    await killed;
    await restartRepaired();
    expect((await copy(source)).map(({ error }) => error)).toEqual(Array(6).fill(undefined));
    expect(await visible()).toHaveLength(12);
  });
});
