/** A client of registries that are ill, half gone, badly written, or behind a proxy that means well. */
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { digestOf } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';
import { startHttpServer, type TestServer, waitFor } from '@airdock/testing/servers';
import { afterEach, describe, expect, it } from 'vitest';
import { RegistryClient } from './registry-client.js';
import { withRetry } from './retry.js';

const opened: AsyncDisposable[] = [];
afterEach(async () => {
  for (const one of opened.splice(0).reverse()) await one[Symbol.asyncDispose]();
});

async function serverOf(listener: RequestListener): Promise<TestServer> {
  const server = await startHttpServer(listener);
  opened.push(server);
  return server;
}

/** A client of a registry that answers so, and the paths that it is asked for. */
async function registryOf(
  answer: (request: IncomingMessage, response: ServerResponse, asked: string[]) => unknown,
  options: ConstructorParameters<typeof RegistryClient>[1] = {},
) {
  const asked: string[] = [];
  const server = await serverOf((request, response) => {
    asked.push(`${request.method} ${request.url}`);
    answer(request, response, asked);
  });
  const registry = new RegistryClient(server.url, options);
  opened.push(registry);
  return { registry, asked, url: server.url };
}

const content = Buffer.from('the bytes of a blob');
const digest = digestOf(content);
const manifest = Buffer.from(
  JSON.stringify({
    schemaVersion: 2,
    mediaType: mediaTypes.ociManifest,
    config: { mediaType: mediaTypes.ociConfig, digest, size: content.byteLength },
    layers: [],
  }),
);
const blob = { mediaType: mediaTypes.ociLayer, digest, size: content.byteLength };
const reader = { size: content.byteLength, open: () => Readable.from([content], { objectMode: false }) };

describe('redirects', () => {
  const bytesOf = async (registry: RegistryClient) => buffer(await registry.getBlob('a', digest));

  it('are followed five requests long, and no further', async () => {
    let hops = 4;
    const { registry, asked } = await registryOf(({ url = '' }, response) => {
      const done = Number(/hop(\d+)/.exec(url)?.[1] ?? 0);
      if (done === hops) response.end(content);
      else response.writeHead([301, 302, 303, 307, 308][done % 5] ?? 307, { location: `/hop${done + 1}` }).end('moved');
    });
    expect(await bytesOf(registry)).toEqual(content);
    expect(asked).toHaveLength(5);
    hops = 5;
    await expect(bytesOf(registry)).rejects.toMatchObject({ details: { detail: 'too many redirects' } });
    expect(asked).toHaveLength(10);
  });

  it('that name a path go on at the server which names it', async () => {
    const storage = await serverOf(({ url }, response) => {
      if (url === '/bucket/key') response.writeHead(307, { location: '/eu/bucket/key' }).end();
      else response.writeHead(url === '/eu/bucket/key' ? 200 : 404).end(content);
    });
    const { registry, asked } = await registryOf(({ url }, response) =>
      response.writeHead(url?.startsWith('/v2/') ? 307 : 404, { location: `${storage.url}/bucket/key` }).end(),
    );
    expect(await bytesOf(registry)).toEqual(content);
    expect(asked).toHaveLength(1);
  });

  it('without a target lead nowhere, and come to an end', async () => {
    const { registry, asked } = await registryOf((_request, response) => response.writeHead(307).end());
    await expect(bytesOf(registry)).rejects.toMatchObject({ code: 'registry_rejected' });
    expect(asked).toHaveLength(5);
  });

  it('are answers of no other request: a manifest that has moved is an error', async () => {
    const { registry } = await registryOf((_request, response) => response.writeHead(302, { location: '/x' }).end());
    await expect(registry.getManifest('a', 'v1')).rejects.toMatchObject({ details: { registryStatus: 302 } });
  });
});

describe('a registry that is ill for a while', () => {
  it('is asked again after a pause of ours, whatever it says of when to come back', async () => {
    const { registry, asked } = await registryOf((_request, response, { length }) =>
      response
        .writeHead(length < 4 ? ([503, 502, 429][length - 1] ?? 500) : 200, {
          'retry-after': '86400',
          'content-type': mediaTypes.ociManifest,
        })
        .end(manifest),
    );
    const found = await withRetry(() => registry.getManifest('a', 'v1'), undefined, { delayMs: 1 });
    expect(found).toMatchObject({ digest: digestOf(manifest) });
    expect(asked).toHaveLength(4);
  });

  it('that closes the connection in an answer, or before one, can be asked again', async () => {
    const { registry } = await registryOf((request, response, { length }) => {
      if (length === 1) return request.socket.destroy();
      response.writeHead(200, { 'content-type': mediaTypes.ociManifest, 'content-length': manifest.byteLength });
      if (length > 2) return response.end(manifest);
      return response.write(manifest.subarray(0, 20), () => request.socket.destroy());
    });
    for (let round = 0; round < 2; round++)
      await expect(registry.getManifest('a', 'v1')).rejects.toMatchObject({ code: 'registry_unavailable' });
    expect((await registry.getManifest('a', 'v1'))?.bytes).toEqual(manifest);
  });

  it.each([
    ['fewer bytes of a blob than it says', 100],
    ['more bytes of a blob than it says', 5],
  ])('never passes off %s for all of it', async (_what, said) => {
    const { registry } = await registryOf(({ socket }) =>
      socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${said}\r\n\r\n${content.toString()}`),
    );
    const bytes = await registry
      .getBlob('a', digest)
      .then(buffer)
      .catch((error: unknown) => error);
    if (Buffer.isBuffer(bytes)) expect(bytes).toEqual(content.subarray(0, said));
    else expect(bytes).toMatchObject({ code: 'registry_unavailable' });
  });

  it('that speaks no HTTP is unavailable, with what it did', async () => {
    const { registry } = await registryOf(({ socket }) => socket.end('HTTP/1.1 OK\r\ncontent-length: x\r\n\r\n'));
    await expect(registry.ping()).rejects.toMatchObject({
      code: 'registry_unavailable',
      details: { detail: expect.stringMatching(/^GET \/v2\/: ./) },
    });
  });
});

describe('what a registry says of a manifest', () => {
  const saying = (headers: Record<string, string>) =>
    registryOf((request, response) => {
      request.resume();
      response.writeHead(200, headers).end(request.method === 'HEAD' ? undefined : manifest);
    });
  const type = { 'content-type': mediaTypes.ociManifest };

  it.each(['sha256:0', digest])('is not believed when it announces %s for other bytes', async (said) => {
    const { registry } = await saying({ ...type, 'docker-content-digest': said });
    await expect(registry.getManifest('a', 'v1')).rejects.toMatchObject({
      code: 'digest_mismatch',
      details: { expected: said, actual: digestOf(manifest) },
    });
    await expect(registry.putManifest('a', 'v1', manifest, mediaTypes.ociManifest)).rejects.toMatchObject({
      code: 'digest_mismatch',
      details: { expected: digestOf(manifest), actual: said },
    });
  });

  it('does not matter where the digest was asked for', async () => {
    const { registry } = await saying({ ...type, 'docker-content-digest': digest, 'content-length': '7' });
    expect(await registry.headManifest('a', digestOf(manifest))).toEqual({
      mediaType: mediaTypes.ociManifest,
      digest: digestOf(manifest),
      size: 7,
    });
  });

  it.each([
    ['a digest', { ...type, 'content-length': String(manifest.byteLength) }],
    ['a size', { ...type, 'docker-content-digest': digestOf(manifest) }],
    ['a digest that is one', { ...type, 'docker-content-digest': 'sha256:0' }],
    ['a type', { 'content-length': String(manifest.byteLength), 'docker-content-digest': digestOf(manifest) }],
  ])('is read from the manifest where a proxy has taken away %s', async (_what, headers) => {
    const { registry, asked } = await registryOf(({ method }, response) =>
      method === 'HEAD' ? response.writeHead(200, headers).end() : response.writeHead(200, type).end(manifest),
    );
    expect(await registry.headManifest('a', 'v1')).toEqual({
      mediaType: mediaTypes.ociManifest,
      digest: digestOf(manifest),
      size: manifest.byteLength,
    });
    expect(asked).toEqual(['HEAD /v2/a/manifests/v1', 'GET /v2/a/manifests/v1']);
  });

  it.each(['application/vnd.oci.image.manifest.v1+json; charset=utf-8', 'text/plain'])(
    'of its type is taken from the manifest where it says %s',
    async (said) => {
      const { registry } = await saying({ 'content-type': said });
      expect(await registry.getManifest('a', 'v1')).toMatchObject({ mediaType: mediaTypes.ociManifest });
    },
  );
});

describe('lists', () => {
  const pagesOf = (linkOf: (page: number) => string | string[] | undefined) =>
    registryOf(({ url = '' }, response) => {
      const { pathname, searchParams } = new URL(url, 'http://x');
      const page = Number(searchParams.get('last') ?? 0);
      const link = linkOf(page);
      if (pathname !== '/v2/a/tags/list') response.statusCode = 404;
      if (link) response.setHeader('link', link);
      response.end(JSON.stringify({ tags: [`v${page}`] }));
    });

  it.each<[string, string | string[]]>([
    ['without quotes', '</v2/a/tags/list?last=1>; rel=next'],
    ['in capitals', '</v2/a/tags/list?last=1>; REL="next"'],
    ['behind another one', '</v2/a/tags/list?last=7>; rel="prev", </v2/a/tags/list?last=1>; rel="next"'],
    ['in a header of its own', ['</v2/a/tags/list?last=7>; rel="prev"', '</v2/a/tags/list?last=1>; rel="next"']],
    ['with other parameters', '</v2/a/tags/list?last=1>; title="more"; rel="next"'],
    ['beside the page that it stands on', '<list?last=1>; rel="next"'],
    ['of nothing but a query', '<?last=1>; rel="next"'],
  ])('go on by a link %s', async (_what, link) => {
    const { registry } = await pagesOf((page) => (page === 0 ? link : undefined));
    expect(await registry.listTags('a')).toEqual(['v0', 'v1']);
  });

  it.each(['', '</v2/a/tags/list?last=1>', '</v2/a/tags/list?last=1>; rel="prev"', 'next'])(
    'end where a link says %j',
    async (link) => {
      const { registry } = await pagesOf(() => link);
      expect(await registry.listTags('a')).toEqual(['v0']);
    },
  );

  it('are never taken for whole when they have no end', async () => {
    const { registry, asked } = await pagesOf((page) => `</v2/a/tags/list?last=${(page + 1) % 3}>; rel="next"`);
    await expect(registry.listTags('a')).rejects.toMatchObject({
      code: 'registry_rejected',
      details: { detail: 'the list of tags has no end' },
    });
    expect(asked.length).toBeLessThanOrEqual(5);
  });

  it.each(['', '[]x', '{"tags":"v1"}', '{"tags":[1]}', '{"tags":{"0":"v1"}}'])('are refused as %j', async (body) => {
    const { registry } = await registryOf((_request, response) => response.end(body));
    await expect(registry.listTags('a')).rejects.toMatchObject({
      details: { detail: 'the list of tags is not readable' },
    });
  });

  it('are empty where a registry says null, and name each tag once', async () => {
    const { registry } = await registryOf(({ url }, response) =>
      response.end(url?.includes('none') ? '{"tags":null}' : '{"tags":["b","a","b"]}'),
    );
    expect(await registry.listTags('none')).toEqual([]);
    expect(await registry.listTags('a')).toEqual(['b', 'a']);
  });
});

describe('refusals', () => {
  it('that ask for a token send nobody to where the token is given', async () => {
    let others = 0;
    const realm = await serverOf((_request, response) => {
      others += 1;
      response.end('{"token":"x"}');
    });
    const { registry, asked } = await registryOf(
      (_request, response) =>
        response
          .writeHead(401, { 'www-authenticate': `Bearer realm="${realm.url}/token",service="registry"` })
          .end('{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'),
      { auth: { username: 'u', password: 'secret' } },
    );
    await expect(registry.getManifest('a', 'v1')).rejects.toMatchObject({
      code: 'registry_rejected',
      details: {
        registryStatus: 401,
        registryCode: 'UNAUTHORIZED',
        detail: 'GET /v2/a/manifests/v1: 401 UNAUTHORIZED: authentication required',
      },
    });
    expect([others, asked.length]).toEqual([0, 1]);
  });

  it.each([
    ['{"errors":[{"code":"DENIED"}]}', 'PUT /v2/a/manifests/v1: 403 DENIED'],
    ['{"errors":[{"code":7,"message":["x"]}]}', 'PUT /v2/a/manifests/v1: 403'],
    ['{"errors":{"code":"DENIED"}}', 'PUT /v2/a/manifests/v1: 403'],
    ['null', 'PUT /v2/a/manifests/v1: 403'],
    ['<html>', 'PUT /v2/a/manifests/v1: 403'],
    ['x'.repeat(100_000), 'PUT /v2/a/manifests/v1: 403'],
  ])('say what a registry says, as far as that can be read: %.40s', async (body, detail) => {
    const { registry } = await registryOf((request, response) => request.resume() && response.writeHead(403).end(body));
    await expect(registry.putManifest('a', 'v1', manifest, mediaTypes.ociManifest)).rejects.toMatchObject({
      code: 'registry_rejected',
      details: { detail },
    });
  });

  it.each(['write /data: no space left on device', 'disk quota exceeded', '{"errors":[{"detail":{"Err":28}}]}'])(
    'tell of a full disk, which no waiting empties: %s',
    async (body) => {
      const { registry } = await registryOf((_request, response) => response.writeHead(500).end(body));
      await expect(registry.ping()).rejects.toMatchObject({ code: 'space_insufficient' });
    },
  );

  it('are cut where a registry says very much', async () => {
    const { registry } = await registryOf((_request, response) =>
      response.writeHead(400).end(JSON.stringify({ errors: [{ code: 'X', message: 'y'.repeat(10_000) }] })),
    );
    const error = await registry.ping().catch((reason: unknown) => reason as { details: { detail: string } });
    expect(error?.details.detail).toHaveLength(1000);
  });
});

describe('uploads', () => {
  const takes = (finish: (request: IncomingMessage, response: ServerResponse) => unknown) =>
    registryOf((request, response) => {
      if (request.method === 'PUT') return finish(request, response);
      request.resume();
      const location = request.url?.includes('nowhere') ? {} : { location: '/v2/a/blobs/uploads/1?state=x' };
      return response.writeHead(request.method === 'DELETE' ? 204 : 202, location).end();
    });

  it('end with the digest beside what the registry wants to have back', async () => {
    const { registry, asked } = await takes((request, response) => request.resume() && response.writeHead(201).end());
    await registry.uploadBlob('a', blob, reader);
    const state = new URLSearchParams({ state: 'x', digest });
    expect(asked).toEqual(['POST /v2/a/blobs/uploads/', `PUT /v2/a/blobs/uploads/1?${state}`]);
    await expect(registry.uploadBlob('nowhere', blob, reader)).rejects.toMatchObject({
      details: { detail: 'the registry gave no upload location' },
    });
  });

  it('fail with what the source fails with, and are cancelled', async () => {
    const { registry, asked } = await takes((request) => request.resume());
    const source = new Error('the disk with the bundle is gone');
    const open = () =>
      Readable.from(
        (async function* () {
          yield content.subarray(0, 5);
          throw source;
        })(),
      );
    await expect(registry.uploadBlob('a', blob, { size: blob.size, open })).rejects.toBe(source);
    expect(asked.at(-1)).toBe('DELETE /v2/a/blobs/uploads/1?state=x');
  });

  it('fail with the reason of an abort, whatever else fails by it', async () => {
    const stop = new AbortController();
    const reason = new Error('cancelled');
    const { registry } = await takes(() => stop.abort(reason));
    await expect(registry.uploadBlob('a', blob, reader, { signal: stop.signal })).rejects.toBe(reason);
    await expect(registry.ping({ signal: stop.signal })).rejects.toBe(reason);
  });

  it('whose connection breaks can be tried again', async () => {
    const { registry } = await takes(({ socket }) => socket.destroy());
    await expect(registry.uploadBlob('a', blob, reader)).rejects.toMatchObject({ code: 'registry_unavailable' });
  });

  it('that were to be mounted are cancelled where a registry begins one', async () => {
    const { registry, asked } = await takes(() => undefined);
    expect(await registry.mountBlob('a', digest, 'b/c')).toBe(false);
    expect(asked).toEqual([
      `POST /v2/a/blobs/uploads/?mount=${encodeURIComponent(digest)}&from=b%2Fc`,
      'DELETE /v2/a/blobs/uploads/1?state=x',
    ]);
    expect(await registry.mountBlob('nowhere', digest, 'b')).toBe(false);
    expect(asked).toHaveLength(3);
  });
});

it('reads no whole blob for a part of it, where a registry does not serve parts', async () => {
  const { registry } = await registryOf(({ headers }, response) => {
    const isPart = headers.range === 'bytes=4-';
    response.writeHead(isPart ? 206 : 200).end(isPart ? content.subarray(4) : content);
  });
  expect(await buffer(await registry.getBlob('a', digest, { start: 4 }))).toEqual(content.subarray(4));
  await expect(registry.getBlob('a', digest, { start: 5 })).rejects.toMatchObject({
    details: { detail: 'the registry does not serve parts of blobs' },
  });
});

it('lets go of a connection when nobody reads on', async () => {
  const sockets: IncomingMessage['socket'][] = [];
  const { registry } = await registryOf(({ socket }, response) => {
    sockets.push(socket);
    response.writeHead(200).write(content);
  });
  for await (const chunk of await registry.getBlob('a', digest)) {
    expect(chunk).toEqual(content);
    break;
  }
  await waitFor(() => sockets.every(({ destroyed }) => destroyed), { what: 'the connection to be closed' });
});
