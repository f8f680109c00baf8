import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import { AppError } from '@airdock/core/errors';

export interface PushFenceOptions {
  /** Where clients expect the registry, loopback. */
  port: number;
  /** Where it answers meanwhile, loopback. */
  backendPort: number;
  retryAfterSeconds?: number | undefined;
}

/**
 * Stands before a registry that must not change: what reads goes through, anything else is told to come back later, in the words of the distribution API. It lives as
 * long as its process; without it nobody answers at its port, which keeps pushes away too.
 */
export class PushFence {
  #server: Server | undefined;
  #backendPort = 0;

  /** Idempotent. Throws `registry_port_taken`. */
  async start({ port, backendPort, retryAfterSeconds = 30 }: PushFenceOptions): Promise<void> {
    this.#backendPort = backendPort;
    if (this.#server) return;
    const server = createServer((incoming, response) => {
      if (incoming.method === 'GET' || incoming.method === 'HEAD') this.#forward(incoming, response);
      else refuse(incoming, response, retryAfterSeconds);
    });
    try {
      await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));
    } catch (cause) {
      throw new AppError('registry_port_taken', { detail: `port ${port} on 127.0.0.1`, port }, { cause });
    }
    this.#server = server;
  }

  /** Ends open connections too. Idempotent. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (!server) return;
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }

  get isUp(): boolean {
    return this.#server !== undefined;
  }

  #forward(incoming: IncomingMessage, response: ServerResponse): void {
    const { method, url, headers } = incoming;
    const outgoing = request({ host: '127.0.0.1', port: this.#backendPort, method, path: url, headers }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
      answer.on('error', () => response.destroy());
    });
    outgoing.on('error', () => (response.headersSent ? response.destroy() : unavailable(response, 5)));
    response.on('close', () => outgoing.destroy());
    incoming.resume();
    outgoing.end();
  }
}

function refuse(incoming: IncomingMessage, response: ServerResponse, retryAfterSeconds: number): void {
  // A client that sends a layer hears of it at once, and not after the layer.
  response.shouldKeepAlive = false;
  unavailable(response, retryAfterSeconds);
  incoming.resume();
}

function unavailable(response: ServerResponse, retryAfterSeconds: number): void {
  const body = JSON.stringify({ errors: [{ code: 'UNAVAILABLE', message: 'the DU is being upgraded: pushes are possible again afterwards' }] });
  response
    .writeHead(503, { 'content-type': 'application/json', 'retry-after': String(retryAfterSeconds), 'content-length': Buffer.byteLength(body) })
    .end(body);
}
