import { createServer, type Http2Server, type ServerHttp2Stream } from 'node:http2';
import { connect } from 'node:net';
import { join } from 'node:path';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { type TempDir, tempDir } from '@airdock/testing/servers';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { pullByCri } from './cri.js';

const reference = 'localhost:5100/pause:3.2';
const grpc = { ':status': 200, 'content-type': 'application/grpc' };

describe('pullByCri', () => {
  let folder: TempDir;
  let server: Http2Server | undefined;
  let socket: string;
  beforeAll(async () => {
    folder = await tempDir('cri');
    socket = join(folder.path, 'containerd.sock');
  });
  afterEach(() => new Promise<void>((resolve) => (server ? server.close(() => resolve()) : resolve())));
  afterAll(() => folder.remove());

  /** A containerd that answers each call so. */
  const listen = (answer: (stream: ServerHttp2Stream, path: string, body: Buffer) => void) =>
    new Promise<void>((resolve) => {
      server = createServer();
      server.on('sessionError', () => undefined);
      server.on('stream', (stream, headers) => {
        const chunks: Buffer[] = [];
        stream.on('error', () => undefined).on('data', (chunk: Buffer) => chunks.push(chunk));
        stream.on('end', () => answer(stream, String(headers[':path']), Buffer.concat(chunks)));
      });
      server.listen(socket, resolve);
    });
  /** As root on a host whose sshd lets channels to sockets through. */
  const connection = {
    elevation: async () => 'root',
    forwardToSocket: async () => connect(socket),
    roundTrip: async () => 1,
  } as unknown as SshConnection;
  const pull = (signal = AbortSignal.timeout(10_000)) => pullByCri(connection, reference, signal);
  const trailersOnly = (stream: ServerHttp2Stream, code: number, message: string) =>
    stream.respond(
      { ...grpc, 'grpc-status': String(code), 'grpc-message': encodeURIComponent(message) },
      { endStream: true },
    );
  const succeed = (stream: ServerHttp2Stream) => {
    stream.respond(grpc, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
    stream.end(Buffer.from([0, 0, 0, 0, 3, 0x0a, 1, 0x78]));
  };

  it('asks for the image in one message, with a name of any length', async () => {
    const bodies: Buffer[] = [];
    await listen((stream, path, body) => {
      expect(path).toBe('/runtime.v1.ImageService/PullImage');
      bodies.push(body);
      succeed(stream);
    });
    expect(await pull()).toBe(true);
    expect(bodies[0]?.toString('latin1')).toBe(`\0\0\0\0\x1c\x0a\x1a\x0a\x18${reference}`);
    const long = `localhost:5100/${'a'.repeat(200)}:1`;
    expect(await pullByCri(connection, long, AbortSignal.timeout(10_000))).toBe(true);
    expect(bodies[1]?.subarray(5, 8)).toEqual(Buffer.from([0x0a, 0xdc, 0x01]));
    expect(bodies[1]?.toString('latin1').endsWith(long)).toBe(true);
  });

  it('speaks the older version to an older containerd, and tells one that has none', async () => {
    const paths: string[] = [];
    await listen((stream, path) => {
      paths.push(path);
      if (path.includes('.v1.')) trailersOnly(stream, 12, 'unknown service');
      else succeed(stream);
    });
    expect(await pull()).toBe(true);
    expect(paths).toEqual(['/runtime.v1.ImageService/PullImage', '/runtime.v1alpha2.ImageService/PullImage']);
    server
      ?.removeAllListeners('stream')
      .on('stream', (stream: ServerHttp2Stream) => trailersOnly(stream, 12, 'unknown service'));
    await expect(pull()).rejects.toMatchObject({ code: 'host_cri_unavailable' });
  });

  it.each([
    [
      'the reason of a refusal, without control characters',
      'not found\u001b[31m: x',
      'host_pull_failed',
      'not found: x',
    ],
    ['a full disk', 'write /var/lib: no space left on device', 'host_disk_full', 'no space left'],
    ['what is badly encoded', '100%', 'host_pull_failed', '100%'],
  ])('tells %s', async (_, message, code, detail) => {
    await listen((stream) =>
      stream.respond(
        { ...grpc, 'grpc-status': '2', 'grpc-message': message === '100%' ? message : encodeURIComponent(message) },
        { endStream: true },
      ),
    );
    await expect(pull()).rejects.toMatchObject({ code, message: expect.stringContaining(detail) as string });
  });

  it.each([
    [
      'says more than an answer has',
      (stream: ServerHttp2Stream) => void (stream.respond(grpc), stream.end(Buffer.alloc(1_000_000))),
      'host_output_exceeded',
    ],
    ['breaks off', (stream: ServerHttp2Stream) => stream.session?.destroy(), 'host_pull_failed'],
    [
      'ends without a status',
      (stream: ServerHttp2Stream) => void (stream.respond(grpc), stream.end()),
      'host_pull_failed',
    ],
  ])('bears a host that %s', async (_, answer, code) => {
    await listen(answer);
    await expect(pull()).rejects.toMatchObject({ code });
  });

  it('ends with the signal while the host says nothing', async () => {
    await listen(() => undefined);
    const reason = new Error('cancelled');
    const ended = new AbortController();
    const pulling = pull(ended.signal);
    server?.once('stream', () => ended.abort(reason));
    await expect(pulling).rejects.toBe(reason);
  });
});
