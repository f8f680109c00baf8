import { rm, writeFile } from 'node:fs/promises';
import type { RequestListener } from 'node:http';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { digestOf } from '@airdock/core/oci/digest';
import { maxManifestBytes, mediaTypes } from '@airdock/core/oci/manifest';
import { randomContent } from '@airdock/testing/bundles';
import { startHttpServer, startRegistry, type TestRegistry, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { RegistryClient } from './registry-client.js';

const mib = 1024 * 1024;
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

function client(url: string, options: ConstructorParameters<typeof RegistryClient>[1] = {}): RegistryClient {
  const registry = new RegistryClient(url, options);
  cleanups.push(() => registry.close());
  return registry;
}

/** A server that says what no good registry says. */
async function server(listener: RequestListener): Promise<string> {
  const started = await startHttpServer(listener);
  cleanups.push(() => started.stop());
  return started.url;
}

const content = randomContent(3_000_000);
const blob = { mediaType: mediaTypes.ociLayer, digest: digestOf(content), size: content.byteLength };
const reader = (bytes: Uint8Array = content) => ({
  size: bytes.byteLength,
  open: () => Readable.from([bytes.subarray(0, 1000), bytes.subarray(1000)], { objectMode: false }),
});

describe('with a real registry', () => {
  let real: TestRegistry;
  beforeAll(async () => {
    real = await startRegistry();
  });
  afterAll(() => real.stop());

  it('removes one of two tags of the same manifest, though distribution 2 deletes only by digest', async () => {
    const registry = client(real.url);
    await registry.uploadBlob('two/tags', blob, reader());
    const config = { mediaType: mediaTypes.ociConfig, digest: blob.digest, size: blob.size };
    const bytes = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config, layers: [] }),
    );
    for (const tag of ['a', 'b']) await registry.putManifest('two/tags', tag, bytes, mediaTypes.ociManifest);
    expect(await registry.deleteTag('two/tags', 'a')).toBe(true);
    expect(await registry.listTags('two/tags')).toEqual(['b']);
    expect((await registry.headManifest('two/tags', 'b'))?.digest).toBe(digestOf(bytes));
    expect(await registry.deleteTag('two/tags', 'a')).toBe(false);
  });

  it('uploads, finds, mounts and reads blobs, also from the middle', async () => {
    const registry = client(real.url);
    await registry.ping();
    expect(await registry.headBlob('a/b', blob.digest)).toBeUndefined();
    let bytes = 0;
    await registry.uploadBlob('a/b', blob, reader(), {
      onBytes: (count) => {
        bytes += count;
      },
    });
    expect(bytes).toBe(blob.size);
    expect(await registry.headBlob('a/b', blob.digest)).toEqual({ size: blob.size });
    expect(await registry.mountBlob('c', blob.digest, 'a/b')).toBe(true);
    expect(await registry.mountBlob('d', digestOf('nothing'), 'a/b')).toBe(false);
    expect((await buffer(await registry.getBlob('c', blob.digest))).equals(content)).toBe(true);
    expect(
      (await buffer(await registry.getBlob('c', blob.digest, { start: 2_999_990 }))).equals(content.subarray(-10)),
    ).toBe(true);
    await expect(registry.getBlob('c', digestOf('nothing'))).rejects.toMatchObject({ code: 'image_not_found' });
    const empty = { mediaType: mediaTypes.ociLayer, digest: digestOf(''), size: 0 };
    await registry.uploadBlob('a/b', empty, { size: 0, open: () => Readable.from([]) });
    expect(await registry.headBlob('a/b', empty.digest)).toEqual({ size: 0 });
  });

  it('uploads nothing that does not have its digest or its size', async () => {
    const registry = client(real.url);
    const wrong = Buffer.from(content);
    wrong[5] = (wrong[5] ?? 0) ^ 1;
    const shorter = { size: blob.size, open: () => Readable.from([content.subarray(1)], { objectMode: false }) };
    const longer = { size: blob.size, open: () => Readable.from([content, content], { objectMode: false }) };
    for (const bad of [reader(wrong), reader(content.subarray(1)), shorter, longer]) {
      await expect(registry.uploadBlob('wrong', blob, bad)).rejects.toMatchObject({ code: 'digest_mismatch' });
    }
    expect(await registry.headBlob('wrong', blob.digest)).toBeUndefined();
  });

  it('uploads files side by side from memory that is used again, each with its own bytes', async () => {
    const registry = client(real.url);
    const folder = await tempDir('upload-files');
    cleanups.push(() => folder.remove());
    const sizes = [100, 4 * mib, 9 * mib + 5, 17 * mib, 13 * mib - 1, 30 * mib];
    const files = await Promise.all(
      sizes.map(async (size, index) => {
        const path = join(folder.path, String(index));
        const bytes = randomContent(size);
        await writeFile(path, Buffer.concat([Buffer.alloc(512 + index), bytes]));
        return {
          descriptor: { mediaType: mediaTypes.ociLayer, digest: digestOf(bytes), size },
          file: { path, offset: 512 + index },
        };
      }),
    );
    const unused = { open: () => expect.fail('read as a stream') };
    const uploads = files.map(async ({ descriptor, file }) => {
      for (let round = 0; round < 4; round++)
        await registry.uploadBlob(`files/${round}`, descriptor, { size: descriptor.size, file, ...unused });
    });
    await Promise.all(uploads);
    // The file is shorter than it was said to be, and has other bytes.
    const [, , { descriptor, file }] = files as [never, never, (typeof files)[0]];
    const wrong = { size: descriptor.size, file: { ...file, offset: file.offset + 1 }, ...unused };
    await expect(registry.uploadBlob('files/wrong', descriptor, wrong)).rejects.toMatchObject({
      code: 'digest_mismatch',
    });
    await rm(file.path);
    await expect(registry.uploadBlob('files/wrong', descriptor, { ...wrong, file })).rejects.toMatchObject({
      code: 'ENOENT',
    });
    expect(await registry.headBlob('files/wrong', descriptor.digest)).toBeUndefined();
  });

  it('puts, reads and deletes manifests, and lists names', async () => {
    const registry = client(real.url);
    const config = Buffer.from('{"os":"linux","architecture":"amd64"}');
    const descriptor = { mediaType: mediaTypes.ociConfig, digest: digestOf(config), size: config.byteLength };
    await registry.uploadBlob('m', descriptor, reader(config));
    const manifest = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config: descriptor, layers: [] }),
    );
    const digest = await registry.putManifest('m', 'one', manifest, mediaTypes.ociManifest);
    expect(await registry.headManifest('m', 'one')).toEqual({
      mediaType: mediaTypes.ociManifest,
      digest,
      size: manifest.byteLength,
    });
    expect((await registry.getManifest('m', digest))?.bytes.equals(manifest)).toBe(true);
    expect(await registry.getManifest('m', 'two')).toBeUndefined();
    expect(await registry.listTags('m')).toEqual(['one']);
    expect(await registry.listTags('unheard/of')).toEqual([]);
    expect(await registry.listRepositories()).toContain('m');
    expect(await registry.deleteManifest('m', digest)).toBe(true);
    expect(await registry.deleteManifest('m', digest)).toBe(false);
    const missing = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: mediaTypes.ociManifest,
        config: { ...descriptor, digest: digestOf('x') },
        layers: [],
      }),
    );
    await expect(registry.putManifest('m', 'bad', missing, mediaTypes.ociManifest)).rejects.toMatchObject({
      code: 'registry_rejected',
      details: { registryStatus: 400, registryCode: 'MANIFEST_BLOB_UNKNOWN' },
    });
  });
});

describe('with a strange registry', () => {
  it('follows the pages of a list, and not to other servers', async () => {
    const url = await server((incoming, outgoing) => {
      const { pathname, searchParams } = new URL(incoming.url ?? '', 'http://x');
      const last = searchParams.get('last');
      const link = pathname.includes('evil')
        ? '<http://192.0.2.1/v2/x>; rel="next"'
        : last === 'b'
          ? undefined
          : `<${pathname}?last=${last === 'a' ? 'b' : 'a'}&n=1>; rel="next"`;
      outgoing
        .writeHead(200, link ? { link } : {})
        .end(JSON.stringify({ repositories: [`after-${last}`], tags: [`after-${last}`] }));
    });
    expect(await client(url).listRepositories()).toEqual(['after-null', 'after-a', 'after-b']);
    expect(await client(url).listTags('x')).toHaveLength(3);
    await expect(client(url).listTags('evil')).rejects.toMatchObject({ code: 'registry_rejected' });
  });

  it('asks for many things over few connections, and goes on where the registry closes it', async () => {
    const connections = new Set();
    let isClosing = false;
    const url = await server((request, response) => {
      connections.add(request.socket);
      response.writeHead(200, {
        'content-length': 5,
        'content-type': mediaTypes.ociManifest,
        'docker-content-digest': digestOf('x'),
        ...(isClosing && { connection: 'close' }),
      });
      response.end(request.method === 'HEAD' ? undefined : 'hello');
    });
    const registry = client(url);
    for (let round = 0; round < 20; round++) expect(await registry.headBlob('a', digestOf('x'))).toEqual({ size: 5 });
    for (let round = 0; round < 20; round++) expect(await registry.headManifest('a', 'v1')).toMatchObject({ size: 5 });
    // One answer may still be on its way out of the first when the next request begins.
    expect(connections.size).toBeLessThanOrEqual(2);
    isClosing = true;
    for (let round = 0; round < 3; round++) expect(await registry.headBlob('a', digestOf('x'))).toEqual({ size: 5 });
  });

  it('sends its credential to the registry, and not along a redirect', async () => {
    const seen: (string | undefined)[] = [];
    const storage = await server((incoming, outgoing) => {
      seen.push(incoming.headers.authorization);
      outgoing.end('bytes');
    });
    const url = await server((incoming, outgoing) => {
      seen.push(incoming.headers.authorization);
      outgoing.writeHead(307, { location: `${storage}/bucket/key` }).end();
    });
    const registry = client(url, { auth: { username: 'u', password: 'p' } });
    expect((await buffer(await registry.getBlob('a', digestOf('bytes')))).toString()).toBe('bytes');
    expect(seen).toEqual([`Basic ${Buffer.from('u:p').toString('base64')}`, undefined]);
  });

  it('refuses manifests that are too large, or not what was asked for', async () => {
    const url = await server((incoming, outgoing) => {
      outgoing.writeHead(200, { 'content-type': mediaTypes.ociManifest });
      outgoing.end(incoming.url?.includes('large') ? Buffer.alloc(maxManifestBytes + 1) : '{}');
    });
    await expect(client(url).getManifest('a', 'large')).rejects.toMatchObject({ code: 'registry_rejected' });
    await expect(client(url).getManifest('a', digestOf('x'))).rejects.toMatchObject({ code: 'digest_mismatch' });
  });

  it('tells what may pass by waiting from what does not', async () => {
    const url = await server((incoming, outgoing) => {
      incoming.resume();
      outgoing.writeHead(Number(incoming.url?.slice(4, 7))).end('<html>');
    });
    const code = (status: number) =>
      client(url)
        .getBlob(`${status}`, blob.digest)
        .then(String, (error: { code: string }) => error.code);
    for (const status of [500, 502, 503, 429, 408]) expect(await code(status)).toBe('registry_unavailable');
    for (const status of [400, 401, 403, 405, 416]) expect(await code(status)).toBe('registry_rejected');
  });

  it('gives up when no byte moves for the time allowed, before and inside an answer', async () => {
    const url = await server((incoming, outgoing) => {
      if (incoming.url?.includes('silent')) return;
      outgoing.writeHead(200, { 'content-length': '100' }).write('some');
    });
    const registry = client(url, { timeoutMs: 100 });
    await expect(registry.headBlob('silent', blob.digest)).rejects.toMatchObject({ code: 'registry_unavailable' });
    await expect(buffer(await registry.getBlob('half', blob.digest))).rejects.toMatchObject({
      code: 'registry_unavailable',
    });
  });

  it('gives slow readers the time they need', async () => {
    const url = await server((_incoming, outgoing) => outgoing.end(content));
    const registry = client(url, { timeoutMs: 50 });
    let bytes = 0;
    for await (const chunk of await registry.getBlob('a', blob.digest)) {
      // Longer than the stall timeout, once.
      if (bytes === 0) await new Promise((resolve) => setTimeout(resolve, 150));
      bytes += (chunk as Buffer).byteLength;
    }
    expect(bytes).toBe(content.byteLength);
  });
});
