/**
 * The registry's front: a process of its own on `localhost:5100`, there to pull from for everybody on the machine. It
 * knows the registry by Unix sockets that nobody else can open. What reads goes to the read-only instance; what writes
 * needs the credential of `localPush`, and goes to the read-write one. It outlives Airdock as the registry does, and
 * uses nothing but Node.js: `node front.js CONFIGURATION`.
 */
import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import {
  Agent,
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  request,
  type Server,
  type ServerResponse,
} from 'node:http';

/** What the front is started with, as a JSON file that only its user can read. */
export interface FrontConfiguration {
  port: number;
  /** Paths of the registry's sockets. */
  readOnlySocket: string;
  readWriteSocket: string;
  /** While this file is there, nothing may be written: the DU is upgraded. */
  fenceFile: string;
  /** Shared with Airdock alone: who answers a challenge with it is this front. */
  proofSecret: string;
  /** Who may push, by HTTP Basic; null: nobody. */
  push: { username: string; passwordSha256: string } | null;
}

/** Answers `proofHeader` when a request carries a challenge in `challengeHeader`. */
export const challengeHeader = 'x-airdock-challenge';
/** The header by which the front shows that it is ours. */
export const proofHeader = 'x-airdock-proof';
/** The answer to a challenge, which only who has the secret can give. */
export const proofOf = (secret: string, challenge: string): string =>
  createHmac('sha256', secret).update(challenge).digest('hex');

const tokenPath = '/v2/token';
const tokenMs = 15 * 60 * 1000;
const retryAfterSeconds = 30;
const howToPush =
  'localhost is there to pull from. Push a bundle with POST /v1/pushes of Airdock, or set airdock.registry.localPush and log in (docs/operations.md, "Pushing to localhost")';

/** Listens on the loopback addresses of IPv4 and, where there is one, of IPv6. Rejects when the first cannot be had. */
export async function startFront(configuration: FrontConfiguration): Promise<{ close(): void }> {
  const front = new Front(configuration);
  const servers = [front.server()];
  await listen(servers[0] as Server, configuration.port, '127.0.0.1');
  const second = front.server();
  // `localhost` leads to ::1 as well, and whoever has that port there is asked first by some clients. Airdock names
  // whoever it is.
  await listen(second, configuration.port, '::1').then(
    () => servers.push(second),
    () => undefined,
  );
  return {
    close: () => {
      for (const server of servers) {
        server.close();
        server.closeAllConnections();
      }
    },
  };
}

const listen = (server: Server, port: number, host: string): Promise<void> =>
  new Promise((resolve, reject) => server.once('error', reject).listen(port, host, resolve));

class Front {
  private readonly tokenKey = randomBytes(32);
  private readonly readOnly = new Agent({ keepAlive: true, maxFreeSockets: 16 });
  private readonly readWrite = new Agent({ keepAlive: true, maxFreeSockets: 16 });
  private readonly configuration: FrontConfiguration;

  constructor(configuration: FrontConfiguration) {
    this.configuration = configuration;
  }

  server(): Server {
    const server = createServer(
      { headersTimeout: 10_000, requestTimeout: 0, connectionsCheckingInterval: 5_000 },
      (incoming, response) => this.answer(incoming, response),
    );
    // A client asks before it sends: it hears of a refusal before that, and of a consent when the registry gives it.
    server.on('checkContinue', (incoming, response) => this.answer(incoming, response));
    server.on('clientError', (_, socket) => socket.destroy());
    // Nothing moves for so long only where a client has gone or wants to hold a connection.
    server.timeout = 120_000;
    server.maxConnections = 2_000;
    return server;
  }

  private answer(incoming: IncomingMessage, response: ServerResponse): void {
    const challenge = incoming.headers[challengeHeader];
    if (typeof challenge === 'string' && challenge.length <= 200)
      response.setHeader(proofHeader, proofOf(this.configuration.proofSecret, challenge));
    const { method = 'GET' } = incoming;
    const path = pathOf(incoming.url ?? '/');
    if (path === tokenPath) return this.issueToken(incoming, response);
    const reads = (method === 'GET' || method === 'HEAD') && !/\/blobs\/uploads\//.test(path);
    if (reads) {
      // Docker learns here, and nowhere else, that it has to log in for a push.
      if (this.configuration.push && path === '/v2/' && !this.mayRead(incoming))
        return this.challenge(incoming, response);
      return this.forward(incoming, response, this.readOnly, this.configuration.readOnlySocket);
    }
    if (existsSync(this.configuration.fenceFile)) {
      response.setHeader('retry-after', retryAfterSeconds);
      return refuse(response, 503, 'UNAVAILABLE', 'the DU is being upgraded: pushes are possible again afterwards');
    }
    if (!this.configuration.push) return refuse(response, 403, 'DENIED', howToPush);
    if (!isLocal(incoming.headers.host)) return refuse(response, 403, 'DENIED', 'pushes go to localhost or 127.0.0.1');
    if (!this.mayPush(incoming)) return this.challenge(incoming, response);
    this.forward(incoming, response, this.readWrite, this.configuration.readWriteSocket);
  }

  /** As the registry's token protocol has it: https://distribution.github.io/distribution/spec/auth/token/ */
  private challenge({ headers, url = '/' }: IncomingMessage, response: ServerResponse): void {
    const host = isLocal(headers.host) ? headers.host : `127.0.0.1:${this.configuration.port}`;
    const repository = /^\/v2\/(.+?)\/(?:blobs|manifests)\//.exec(pathOf(url))?.[1];
    const scope =
      repository && /^[a-z0-9/._-]{1,255}$/.test(repository) ? `,scope="repository:${repository}:pull,push"` : '';
    response.setHeader('www-authenticate', `Bearer realm="http://${host}${tokenPath}",service="airdock"${scope}`);
    response.setHeader('docker-distribution-api-version', 'registry/2.0');
    refuse(response, 401, 'UNAUTHORIZED', 'log in as airdock to push (docs/operations.md, "Pushing to localhost")');
  }

  private issueToken(incoming: IncomingMessage, response: ServerResponse): void {
    if (incoming.method !== 'GET') return refuse(response, 405, 'UNSUPPORTED', 'a token is asked for with GET');
    const { authorization } = incoming.headers;
    const canPush = this.knowsPassword(authorization);
    // Without a credential: to read. With a wrong one: the client has to hear of it.
    if (authorization !== undefined && !canPush) return refuse(response, 401, 'UNAUTHORIZED', 'wrong user or password');
    const claims = Buffer.from(JSON.stringify({ canPush, until: Date.now() + tokenMs })).toString('base64url');
    const token = `${claims}.${this.sign(claims)}`;
    const body = JSON.stringify({
      token,
      access_token: token,
      expires_in: tokenMs / 1000,
      issued_at: new Date().toISOString(),
    });
    response
      .writeHead(200, {
        'content-type': 'application/json',
        'cache-control': 'no-store',
        'content-length': Buffer.byteLength(body),
      })
      .end(body);
  }

  private mayRead(incoming: IncomingMessage): boolean {
    return (
      this.claimsOf(incoming.headers.authorization) !== undefined || this.knowsPassword(incoming.headers.authorization)
    );
  }

  private mayPush(incoming: IncomingMessage): boolean {
    return (
      this.claimsOf(incoming.headers.authorization)?.canPush === true ||
      this.knowsPassword(incoming.headers.authorization)
    );
  }

  private claimsOf(authorization: string | undefined): { canPush: boolean } | undefined {
    const [claims = '', signature = ''] = /^Bearer ([\w-]+\.[\w-]+)$/i.exec(authorization ?? '')?.[1]?.split('.') ?? [];
    if (!isEqual(signature, this.sign(claims))) return undefined;
    const { canPush, until } = JSON.parse(Buffer.from(claims, 'base64url').toString('utf8')) as {
      canPush: boolean;
      until: number;
    };
    return Date.now() < until ? { canPush } : undefined;
  }

  private sign(claims: string): string {
    return createHmac('sha256', this.tokenKey).update(claims).digest('base64url');
  }

  private knowsPassword(authorization: string | undefined): boolean {
    const { push } = this.configuration;
    const given = /^Basic ([A-Za-z0-9+/=]{1,1000})$/i.exec(authorization ?? '')?.[1];
    if (!push || !given) return false;
    const text = Buffer.from(given, 'base64').toString('utf8');
    const colon = text.indexOf(':');
    const [username, password] = [text.slice(0, colon), text.slice(colon + 1)];
    // The password is 256 random bits: a fast digest of it gives nothing away.
    return (
      isEqual(username, push.username) &&
      isEqual(createHash('sha256').update(password).digest('hex'), push.passwordSha256)
    );
  }

  private forward(incoming: IncomingMessage, response: ServerResponse, agent: Agent, socketPath: string): void {
    // The registry asks nobody for a credential: ours ends here.
    const { authorization: _, [challengeHeader]: __, ...headers } = endToEnd(incoming.headers);
    const outgoing = request({ agent, socketPath, method: incoming.method, path: incoming.url, headers }, (answer) => {
      try {
        response.writeHead(answer.statusCode ?? 502, endToEnd(answer.headers));
      } catch {
        // Nothing that can be said in HTTP: the registry may have been taken over.
        return void response.destroy();
      }
      answer.pipe(response);
      answer.on('error', () => response.destroy());
    });
    outgoing.on('continue', () => response.writeContinue());
    outgoing.on('error', () => {
      if (response.headersSent) return response.destroy();
      response.setHeader('retry-after', 5);
      refuse(response, 503, 'UNAVAILABLE', 'the registry does not answer: GET /v1/registry of Airdock says why');
    });
    response.on('close', () => outgoing.destroy());
    incoming.on('error', () => outgoing.destroy());
    incoming.pipe(outgoing);
  }
}

/**
 * Without what is between two neighbours only (RFC 9110, 7.6.1), and so nothing for the next one; Node.js throws for a
 * `trailer` that it has nothing to send with. How a body is sent stays as it is.
 */
const endToEnd = (headers: IncomingHttpHeaders): IncomingHttpHeaders =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !hopByHop.has(name)));
const hopByHop = new Set(['connection', 'keep-alive', 'te', 'trailer', 'upgrade']);

/** Of the target of a request, which may be a whole URL. */
const pathOf = (target: string): string => {
  try {
    return new URL(target, 'http://localhost').pathname;
  } catch {
    return '';
  }
};

/**
 * A name that leads to this machine alone: a page of the network that a browser here shows may have another name for
 * it.
 */
const isLocal = (host: string | undefined): boolean =>
  /^(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?$/i.test(host ?? '');

const isEqual = (a: string, b: string): boolean => {
  const [left, right] = [createHash('sha256').update(a).digest(), createHash('sha256').update(b).digest()];
  return timingSafeEqual(left, right);
};

/** In the words of the distribution API. The body of the request is not waited for. */
function refuse(response: ServerResponse, status: number, code: string, message: string): void {
  const body = JSON.stringify({ errors: [{ code, message }] });
  response.shouldKeepAlive = false;
  response
    .writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) })
    .end(body);
  response.req.resume();
}

if (process.argv[1] === import.meta.filename) {
  const configuration = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8')) as FrontConfiguration;
  await startFront(configuration);
}
