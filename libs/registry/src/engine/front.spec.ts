import { createServer as createHttpServer } from 'node:http';
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { freePort, type TempDir, tempDir } from '@airdock/testing/servers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startFront } from './front.js';

describe('the front of the registry', () => {
  let folder: TempDir;
  let port: number;
  let front: { close(): void };
  let registry: Server | undefined;
  beforeEach(async () => {
    folder = await tempDir('front');
    port = await freePort();
    const path = join(folder.path, 'registry.sock');
    const [fenceFile, proofSecret] = [join(folder.path, 'fence'), 'secret'];
    front = await startFront({ port, readOnlySocket: path, readWriteSocket: path, fenceFile, proofSecret, push: null });
  });
  afterEach(async () => {
    front.close();
    registry?.close();
    await folder.remove();
  });

  const serve = (server: Server) =>
    new Promise<void>((resolve) => {
      registry = server.listen(join(folder.path, 'registry.sock'), resolve);
    });
  const answers = (status: number) =>
    serve(
      createHttpServer((incoming, response) => {
        incoming.resume().on('end', () => response.writeHead(status).end(JSON.stringify(incoming.headers)));
      }),
    );
  const send = (request: string): Promise<string> => {
    const socket = connect(port, '127.0.0.1', () => socket.write(request));
    return text(socket);
  };
  const pull = () => send('GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n');

  it('outlives requests whose headers are for it alone, or promise what does not come', async () => {
    await answers(200);
    const method = ['GET', 'HEAD'];
    const headers = [
      'Trailer: digest',
      'Trailer: digest\r\nExpect: 100-continue',
      'Trailer: digest\r\nContent-Length: 0',
      'TE: trailers\r\nUpgrade: h2c\r\nKeep-Alive: timeout=1',
    ];
    for (const each of method)
      for (const header of headers) {
        const answer = await send(`${each} /v2/ HTTP/1.1\r\nHost: localhost\r\n${header}\r\nConnection: close\r\n\r\n`);
        expect(answer, header).toContain('HTTP/1.1 200 OK');
        expect(answer).not.toMatch(/"(?:trailer|te|upgrade|keep-alive)":/);
      }
    expect(await pull()).toContain('HTTP/1.1 200 OK');
  });

  it('outlives a registry that answers what is no HTTP', async () => {
    const answersOfTakenOver = [
      'HTTP/1.1 099 No\r\n\r\n',
      'HTTP/1.1 200 OK\r\nTrailer: a\r\nContent-Length: 0\r\n\r\n',
      'HTTP/1.1 101 Up\r\nUpgrade: a\r\n\r\n',
      '\0',
    ];
    await serve(
      createServer(
        (socket) =>
          void socket.once('data', () =>
            socket.end(answersOfTakenOver.shift() ?? 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'),
          ),
      ),
    );
    while (answersOfTakenOver.length > 0) await pull();
    expect(await pull()).toContain('HTTP/1.1 200 OK');
  });
});
