/** Uploads of several pieces that break off, and what the next run makes of them. */
import { createHash, type Hash } from 'node:crypto';
import { mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { digestOf } from '@airdock/core/oci/digest';
import { mediaTypes } from '@airdock/core/oci/manifest';
import { startHttpServer, type TempDir, type TestServer, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RegistryClient } from './registry-client.js';
import { UploadSessions } from './upload-sessions.js';

const MiB = 1024 * 1024;
const pieceBytes = 64 * MiB;

let dir: TempDir;
beforeEach(async () => {
  dir = await tempDir('uploads');
});
afterEach(() => dir.remove());

describe('an upload of several pieces', () => {
  const size = 2 * pieceBytes + 5 * MiB;
  const chunk = Buffer.alloc(MiB, 'layer');
  const hash = createHash('sha256');
  for (let at = 0; at < size; at += MiB) hash.update(chunk);
  const blob = { mediaType: mediaTypes.ociLayer, digest: `sha256:${hash.digest('hex')}` as const, size };
  const reader = { size, open: () => Readable.from(Array.from({ length: size / MiB }, () => chunk)) };

  /** A registry with one upload at a time. `answer` may say something else than it would. */
  class Uploads {
    asked: string[] = [];
    taken = 0;
    hash: Hash = createHash('sha256');
    answer: (request: IncomingMessage, response: ServerResponse) => boolean = () => false;

    async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
      const { method, headers } = request;
      this.asked.push([method, headers['content-range'] ?? headers['content-length']].filter(Boolean).join(' '));
      if (this.answer(request, response)) return;
      if (method === 'POST') [this.taken, this.hash] = [0, createHash('sha256')];
      for await (const bytes of request as AsyncIterable<Buffer>) {
        this.taken += bytes.byteLength;
        this.hash.update(bytes);
      }
      const status = { POST: 202, PATCH: 202, GET: 204, DELETE: 204 }[method ?? ''] ?? 201;
      response.writeHead(status, { location: '/v2/a/blobs/uploads/one', range: `0-${this.taken - 1}` }).end();
    }
  }

  let uploads: Uploads;
  let server: TestServer;
  let registry: RegistryClient;
  beforeEach(async () => {
    uploads = new Uploads();
    server = await startHttpServer(
      (request, response) => void uploads.handle(request, response).catch(() => response.destroy()),
    );
    registry = new RegistryClient(server.url);
  });
  afterEach(async () => {
    await registry.close();
    await server.stop();
  });

  const sessions = () => new UploadSessions(join(dir.path, 'sessions'));
  const upload = (onBytes?: (count: number) => void) =>
    registry.uploadBlob('a', blob, reader, { session: sessions().slot('a', blob.digest), onBytes });
  const kept = () => readdir(join(dir.path, 'sessions')).catch(() => []);
  /** One that breaks off in its second piece. */
  const breakOff = async () => {
    uploads.answer = (request) => {
      if (request.headers['content-range']?.startsWith(`${pieceBytes}-`)) request.socket.destroy();
      return request.socket.destroyed;
    };
    await expect(upload()).rejects.toMatchObject({ code: 'registry_unavailable' });
    uploads.answer = () => false;
    expect(uploads.asked.splice(0).slice(0, 2)).toEqual(['POST 0', `PATCH 0-${pieceBytes - 1}`]);
  };
  /** One whose first piece was acknowledged. */
  const remember = async () => {
    uploads.taken = pieceBytes;
    await sessions().slot('a', blob.digest).save({ location: '/v2/a/blobs/uploads/one', offset: pieceBytes });
  };
  const taken = () => [uploads.taken, `sha256:${uploads.hash.digest('hex')}`];
  const rest = [`PATCH ${pieceBytes}-${2 * pieceBytes - 1}`, `PUT ${5 * MiB}`];
  const whole = ['POST 0', `PATCH 0-${pieceBytes - 1}`, ...rest];

  it('goes on after the pieces that the registry has, also in another process', async () => {
    await breakOff();
    expect(await kept()).toHaveLength(1);
    let counted = 0;
    await upload((count) => {
      counted += count;
    });
    expect(uploads.asked).toEqual(['GET', ...rest]);
    expect(taken()).toEqual([size, blob.digest]);
    expect([counted, await kept()]).toEqual([size, []]);
  });

  it.each([
    ['is gone', { status: 404 }],
    ['has more bytes than the blob', { status: 204, range: `0-${size}` }],
    ['has no bytes', { status: 204, range: '0-0' }],
    ['is at no place that can be read', { status: 204, range: 'all' }],
    ['has lost its beginning', { status: 204, range: `5-${pieceBytes}` }],
    ['says nothing of where it is', { status: 204 }],
  ])('begins anew when the one before %s', async (_what, { status, range }: { status: number; range?: string }) => {
    await remember();
    uploads.answer = ({ method }, response) => {
      if (method === 'GET') response.writeHead(status, range === undefined ? {} : { range }).end();
      return method === 'GET';
    };
    await upload();
    expect(uploads.asked).toEqual(['GET', ...whole]);
    expect(taken()).toEqual([size, blob.digest]);
  });

  it('goes on in the middle of a piece, where the registry has that', async () => {
    await breakOff();
    uploads.answer = ({ method }, response) => {
      if (method === 'GET') response.writeHead(204, { range: `0-${pieceBytes + 9}` }).end();
      return method === 'GET';
    };
    await upload();
    expect(uploads.asked).toEqual(['GET', `PATCH ${pieceBytes + 10}-${2 * pieceBytes + 9}`, `PUT ${5 * MiB - 10}`]);
  });

  it('waits for a registry that cannot say now how far it got, and keeps what it knows', async () => {
    await remember();
    uploads.answer = (_request, response) => Boolean(response.writeHead(503).end());
    await expect(upload()).rejects.toMatchObject({ code: 'registry_unavailable' });
    expect(uploads.asked).toEqual(['GET']);
    expect(await kept()).toHaveLength(1);
  });

  it('may be tried again, from its beginning, when the registry forgets it on the way', async () => {
    await remember();
    uploads.answer = (request, response) => {
      if (request.method !== 'PATCH') return false;
      request.resume();
      response.writeHead(404).end('{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}');
      return true;
    };
    await expect(upload()).rejects.toMatchObject({
      code: 'registry_unavailable',
      details: { registryCode: 'BLOB_UPLOAD_UNKNOWN' },
    });
    expect([uploads.asked.at(-1), await kept()]).toEqual(['DELETE', []]);
  });
});

describe('UploadSessions', () => {
  const digest = digestOf('blob');
  const id = '01234567-89ab-cdef-0123-456789abcdef';
  const location = `http://localhost:5100/v2/a/b/blobs/uploads/${id}?_state=x`;
  const storage = () => join(dir.path, 'storage');
  const uploadFolder = () => join(storage(), 'docker/registry/v2/repositories/a/b/_uploads', id);
  const sessions = (storageDir?: string) => new UploadSessions(join(dir.path, 'sessions'), storageDir);

  it('remember an upload by repository and digest, until it is forgotten', async () => {
    const slot = sessions().slot('a/b', digest);
    expect(await slot.load()).toBeUndefined();
    await slot.save({ location, offset: 7 });
    await slot.save({ location, offset: 9 });
    expect(await sessions().slot('a/b', digest).load()).toMatchObject({ location, offset: 9 });
    expect(await sessions().slot('a/c', digest).load()).toBeUndefined();
    expect(await sessions().slot('a/b', digestOf('other')).load()).toBeUndefined();
    await slot.clear();
    await slot.clear();
    expect(await slot.load()).toBeUndefined();
  });

  it.each([
    '',
    '{',
    'null',
    '[]',
    '{"repository":"a/b","location":"/x"}',
    '{"repository":"a","location":"/x","offset":0.5}',
  ])('begin anew after a power cut has left %j of one', async (text) => {
    const slot = sessions().slot('a/b', digest);
    await slot.save({ location, offset: 7 });
    const [name = ''] = await readdir(join(dir.path, 'sessions'));
    await writeFile(join(dir.path, 'sessions', name), text);
    expect(await slot.load()).toBeUndefined();
  });

  it('cut off what a registry of this machine has not acknowledged, and follow no link there', async () => {
    await mkdir(uploadFolder(), { recursive: true });
    await writeFile(join(uploadFolder(), 'data'), '0123456789');
    const slot = sessions(storage()).slot('a/b', digest);
    for (const [offset, left] of [
      [12, '0123456789'],
      [7, '0123456'],
    ] as const) {
      await slot.save({ location, offset });
      await slot.load();
      expect(await readFile(join(uploadFolder(), 'data'), 'utf8')).toBe(left);
    }
    const precious = join(dir.path, 'precious');
    await writeFile(precious, '0123456789');
    await mkdir(join(uploadFolder(), '../fedcba98-89ab-cdef-0123-456789abcdef'));
    await symlink(precious, join(uploadFolder(), '../fedcba98-89ab-cdef-0123-456789abcdef/data'));
    await slot.save({ location: location.replace('01234567', 'fedcba98'), offset: 1 });
    await slot.load();
    expect(await readFile(precious, 'utf8')).toBe('0123456789');
  });

  it('take the remains of a cancelled upload away, and of nothing that is named otherwise', async () => {
    await mkdir(uploadFolder(), { recursive: true });
    const slot = sessions(storage()).slot('a/b', digest);
    for (const other of ['/v2/a/b/blobs/uploads/..', '/v2/a/b/blobs/uploads/', 'http://registry/x?y=z'])
      await slot.discard(other);
    await sessions().slot('a/b', digest).discard(location);
    expect(await readdir(join(uploadFolder(), '..'))).toEqual([id]);
    await slot.discard(location);
    expect(await readdir(join(uploadFolder(), '..'))).toEqual([]);
  });

  it('are given up all together, each cancelled before its remains go', async () => {
    await mkdir(uploadFolder(), { recursive: true });
    const all = sessions(storage());
    await all.slot('a/b', digest).save({ location, offset: 7 });
    await all.slot('a/b', digestOf('other')).save({ location: '/v2/a/b/blobs/uploads/2', offset: 8 });
    await writeFile(join(dir.path, 'sessions/damaged.json'), '{');
    const cancelled: number[] = [];
    await all.discard(async ({ offset, location: at }) => {
      if (at === location) expect(await readdir(join(uploadFolder(), '..'))).toEqual([id]);
      cancelled.push(offset);
    });
    expect(cancelled.sort((a, b) => a - b)).toEqual([7, 8]);
    expect(await readdir(join(uploadFolder(), '..'))).toEqual([]);
    expect(await readdir(dir.path)).not.toContain('sessions');
    await all.discard(() => expect.fail('there is none left'));
  });
});
