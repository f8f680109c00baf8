import { createServer, type IncomingMessage, type Server, type ServerOptions } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { AppError, type ErrorCode, toProblem } from '@airdock/core/errors';
import type { FastifyServerFactoryHandler } from 'fastify';
import { type LocalSocket, listenLocally } from './local-socket.js';

/** What all clients together, and each of them, may take of a server. */
export interface ServerLimits {
  /** Open at once, of all clients. */
  maxConnections: number;
  /** Of one address. */
  maxConnectionsPerAddress: number;
  /** For the headers of a request, from the connection or the request before on. */
  headerTimeoutSeconds: number;
}

/**
 * Makes the servers of a process: one for TCP, and one for a Unix socket, with one handler and the same bounds. Each
 * has connections of its own, so that nobody on the network or on loopback keeps whoever may open the socket out.
 */
export class Servers {
  private readonly local = new WeakSet<object>();
  private readonly continuing = new WeakSet<IncomingMessage>();
  private handler: FastifyServerFactoryHandler | undefined;
  private localServer: Server | undefined;

  constructor(private readonly limits: ServerLimits) {}

  /** For Fastify. */
  readonly create = (handler: FastifyServerFactoryHandler): Server => {
    this.handler = handler;
    return this.bound(handler);
  };

  /**
   * Listens on a Unix socket too; whoever connects there counts as local. After `create`. Throws as `listenLocally`
   * does.
   */
  async listenLocally(socket: LocalSocket): Promise<void> {
    if (!this.handler) throw new Error('the server of TCP comes first');
    const server = this.bound(this.handler);
    server.prependListener('connection', (connection) => this.local.add(connection));
    await listenLocally(server, socket);
    this.localServer = server;
  }

  /** Takes nothing more on the Unix socket, and removes it. */
  closeLocally(): void {
    this.localServer?.close();
    this.localServer?.closeAllConnections();
  }

  /** Whether a request came by the Unix socket. A connection by TCP never does, whatever it says. */
  isLocal(request: IncomingMessage): boolean {
    return this.local.has(request.socket);
  }

  /** Lets a client that asked first send its body. */
  invite(request: IncomingMessage, response: { writeContinue(): void }): void {
    if (this.continuing.delete(request)) response.writeContinue();
  }

  private bound(handler: FastifyServerFactoryHandler): Server {
    const { headerTimeoutSeconds } = this.limits;
    const options: ServerOptions = {
      headersTimeout: headerTimeoutSeconds * 1000,
      // Bodies are watched one by one: uploads may take as long as they move.
      requestTimeout: 0,
      connectionsCheckingInterval: 2_000,
      keepAliveTimeout: 10_000,
      // Without it the answer would have no body; it is looked for when a request is admitted.
      requireHostHeader: false,
    };
    const server = createServer(options, handler as never);
    server.maxRequestsPerSocket = 10_000;
    this.count(server);
    server.on('clientError', answerClientError);
    // By themselves these would be answered without a word, or before anybody has looked for a token.
    server.on('checkContinue', (request, response) => {
      this.continuing.add(request);
      handler(request as never, response as never);
    });
    server.on('checkExpectation', (request, response) => handler(request as never, response as never));
    server.on('connect', (_request, socket) => refuse(socket, 'method_not_allowed', 'CONNECT'));
    return server;
  }

  /** Keeps connections within their bounds. */
  private count(server: Server): void {
    const { maxConnections, maxConnectionsPerAddress } = this.limits;
    const byAddress = new Map<string, number>();
    let total = 0;
    server.on('connection', (socket: Socket) => {
      // By the Unix socket there is none, and only the total counts.
      const address = socket.remoteAddress;
      const ofAddress = (address === undefined ? 0 : (byAddress.get(address) ?? 0)) + 1;
      if (total >= maxConnections || ofAddress > maxConnectionsPerAddress)
        return refuse(socket, 'connections_exceeded', `${total} are open, ${ofAddress - 1} from here`);
      total += 1;
      if (address !== undefined) byAddress.set(address, ofAddress);
      socket.once('close', () => {
        total -= 1;
        if (address === undefined) return;
        const remaining = (byAddress.get(address) ?? 1) - 1;
        if (remaining > 0) byAddress.set(address, remaining);
        else byAddress.delete(address);
      });
    });
  }
}

const reasons: Record<string, ErrorCode> = {
  HPE_HEADER_OVERFLOW: 'header_too_large',
  ERR_HTTP_REQUEST_TIMEOUT: 'request_timeout',
};

/**
 * What the parser of HTTP could not take, as a problem document: there is no request yet that a filter could answer.
 */
function answerClientError(error: Error & { code?: string }, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  refuse(socket, reasons[error.code ?? ''] ?? 'request_malformed', 'this is not HTTP/1.1 as it is specified');
}

/** Answers on a bare connection, and closes it without reading on. */
function refuse(socket: Duplex, code: ErrorCode, detail: string): void {
  const problem = toProblem(new AppError(code, { detail }));
  const body = JSON.stringify(problem);
  const head = [
    `HTTP/1.1 ${problem.status} ${problem.title}`,
    'content-type: application/problem+json',
    `content-length: ${Buffer.byteLength(body)}`,
    'connection: close',
  ];
  socket.on('error', () => undefined);
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`, () => socket.destroy());
}
