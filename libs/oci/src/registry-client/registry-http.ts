import type { LookupFunction } from 'node:net';
import type { Readable } from 'node:stream';
import { AppError } from '@airdock/core/errors';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { addressesIn } from '@airdock/outbound/pinned-url';
import { rootMessage } from '@airdock/outbound/root-message';
import { Agent, type Dispatcher, request } from 'undici';

/** Who asks a registry. */
export interface RegistryAuth {
  username: string;
  password: string;
}

/** How a registry is reached. */
export interface RegistryHttpOptions {
  /** Sent as HTTP Basic. Default: none. */
  auth?: RegistryAuth | undefined;
  /**
   * How long no byte may move in either direction before a request is given up, ms. Default 60 000. There is no limit
   * on the whole.
   */
  timeoutMs?: number | undefined;
}

/** One request to a registry. */
export interface RegistryRequest {
  method: 'GET' | 'HEAD' | 'POST' | 'PATCH' | 'PUT' | 'DELETE';
  /** Path below the registry, or a full URL that the registry gave us. */
  path: string;
  headers?: Record<string, string>;
  body?: Uint8Array | AsyncIterable<Uint8Array>;
  signal?: AbortSignal | undefined;
  timeoutMs?: number;
}

/** An answer whose body is yet to be read. */
export interface RegistryResponse {
  status: number;
  /** Of one that is there several times the first, but all links. */
  header(name: string): string | undefined;
  /** The body, chunk by chunk; breaking out of the loop or `discard` frees the connection. */
  body: AsyncIterable<Uint8Array>;
  discard(): Promise<void>;
  /** The whole body, at most `maxBytes`. */
  read(maxBytes: number): Promise<Buffer>;
}

const transientStatus = (status: number): boolean => status >= 500 || status === 429 || status === 408;

/** Where a registry of others may send us on to. */
const strangers = new OutboundTargets([], { code: 'registry_target_forbidden', key: 'airdock.registry.allowedHosts' });

/**
 * Any async iterable is a body, which the types of undici do not say; it asks for a chunk when the connection has taken
 * the one before. Source:
 * https://github.com/nodejs/undici/blob/main/docs/docs/api/Dispatcher.md#parameter-dispatchoptions
 */
const iterable = (chunks: AsyncIterable<Uint8Array>) => chunks as Readable;

/** Statuses of a request that `RegistryHttp.send` returns instead of throwing. */
type Accepts = (status: number) => boolean;
const success: Accepts = (status) => status >= 200 && status < 300;

/**
 * HTTP to one registry: its own connections, one meaning for every way to fail. Throws `registry_unavailable` when
 * trying again may help (no connection, stalled, 408, 429, 5xx), `registry_rejected` with the registry's own
 * `registryCode` otherwise, and the signal's reason.
 */
export class RegistryHttp {
  readonly #agent: Agent;
  readonly #base: URL;
  readonly #isSocket: boolean;
  readonly #isPinned: boolean;
  readonly #timeoutMs: number;
  readonly #authorization: string | undefined;

  /**
   * @param address `http://…`, `https://…`, perhaps with the addresses that were allowed for it (`pinUrl`), or
   * `unix:PATH` for a registry that listens on a socket of this machine
   */
  constructor(address: string, { auth, timeoutMs = 60_000 }: RegistryHttpOptions = {}) {
    const socketPath = /^unix:(.+)$/.exec(address)?.[1];
    this.#isSocket = socketPath !== undefined;
    this.#base = new URL(socketPath ? 'http://localhost' : address);
    const pinned = socketPath ? [] : addressesIn(this.#base);
    this.#isPinned = pinned.length > 0;
    this.#timeoutMs = timeoutMs;
    this.#authorization = auth && `Basic ${Buffer.from(`${auth.username}:${auth.password}`).toString('base64')}`;
    // Stalls are watched in `send`, for uploads too, which these limits do not cover.
    this.#agent = new Agent({
      keepAliveTimeout: 30_000,
      headersTimeout: 0,
      bodyTimeout: 0,
      connect: {
        timeout: Math.min(timeoutMs, 10_000),
        ...(socketPath && { socketPath }),
        ...(this.#isPinned && { lookup: pinnedLookup(this.#base.hostname, pinned) }),
      },
    });
  }

  /** True for URLs of the registry itself; elsewhere our credential does not belong. */
  isOwn(url: string | URL): boolean {
    return new URL(url, this.#base).origin === this.#base.origin;
  }

  /**
   * The full URL of a path, or of a URL that the registry gave us, perhaps relative to the one that it was asked for.
   * One that has moved from a port of this machine to a socket goes on there.
   */
  resolve(path: string, askedFor = ''): URL {
    const url = new URL(path, new URL(askedFor, this.#base));
    return this.#isSocket && url.hostname === 'localhost' ? new URL(`${url.pathname}${url.search}`, this.#base) : url;
  }

  async send(message: RegistryRequest, accepts: Accepts = success): Promise<RegistryResponse> {
    message.signal?.throwIfAborted();
    const url = this.#targetOf(message);
    const exchange = new Exchange(message, url, message.timeoutMs ?? this.#timeoutMs);
    let answer: Dispatcher.ResponseData;
    try {
      answer = await request(url, {
        method: message.method,
        dispatcher: this.#agent,
        // Else undici closes a connection after each HEAD, for servers that send a body all the same. Source:
        // https://github.com/nodejs/undici/issues/258
        reset: false,
        signal: exchange.signal,
        headers: {
          ...(this.#authorization && this.isOwn(url) ? { authorization: this.#authorization } : {}),
          ...message.headers,
        },
        body: exchange.outgoing(),
      });
    } catch (error) {
      throw exchange.failureOfRequest(error);
    }
    const response = new Answer(exchange, answer);
    if (accepts(response.status)) return response;
    throw await refusal(exchange.title, response);
  }

  /** Throws for a URL on a server that this registry may not send us to. */
  #targetOf({ method, path }: RegistryRequest): URL {
    const url = this.resolve(path);
    // All that goes out here ends at the socket, whatever host a URL names.
    if (this.#isSocket && !this.isOwn(url))
      throw new AppError('registry_rejected', {
        detail: `${method} ${url.pathname}: the registry names another server`,
      });
    if (this.#isPinned && !this.isOwn(url)) strangers.assertAddress(url.hostname.replace(/^\[|\]$/g, ''));
    return url;
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }
}

/**
 * The registry itself is where it was allowed; other servers that it names are looked at when they are connected to.
 */
const pinnedLookup =
  (own: string, addresses: { address: string; family: number }[]): LookupFunction =>
  (name, options, callback) => {
    const [first] = addresses;
    if (name !== own || !first) strangers.lookup(name, options, callback);
    else if (options.all) callback(null, addresses);
    else callback(null, first.address, first.family);
  };

/** Aborts when it was neither touched nor paused for a while. */
class StallWatch {
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout;
  #paused = false;

  constructor(readonly timeoutMs: number) {
    this.#timer = setTimeout(() => {
      if (!this.#paused) this.#controller.abort();
    }, timeoutMs);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  touch(): void {
    this.#paused = false;
    this.#timer.refresh();
  }

  pause(): void {
    this.#paused = true;
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

/** One request while it lasts: the chunks of its body and of its answer are watched, and its failures get their names. */
class Exchange {
  readonly signal: AbortSignal;
  readonly #watch: StallWatch;
  #bodyError: unknown;

  constructor(
    private readonly message: RegistryRequest,
    private readonly url: URL,
    timeoutMs: number,
  ) {
    this.#watch = new StallWatch(timeoutMs);
    this.signal = message.signal ? AbortSignal.any([message.signal, this.#watch.signal]) : this.#watch.signal;
  }

  /** What messages call the request. */
  get title(): string {
    return `${this.message.method} ${this.url.pathname}`;
  }

  outgoing(): Uint8Array | Readable | null {
    const { body } = this.message;
    if (body === undefined) return null;
    return body instanceof Uint8Array ? body : iterable(this.#send(body));
  }

  async *#send(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    try {
      this.#watch.pause();
      for await (const chunk of chunks) {
        this.#watch.touch();
        yield chunk;
        // The time that our own source takes is not the registry's.
        this.#watch.pause();
      }
    } catch (error) {
      this.#bodyError = error;
      throw error;
    }
    this.#watch.touch();
  }

  /** The answer has begun. */
  begin(): void {
    this.#watch.touch();
  }

  async *receive(body: Dispatcher.ResponseData['body']): AsyncGenerator<Uint8Array> {
    try {
      for await (const chunk of body) {
        // Nor is the time that the consumer takes.
        this.#watch.pause();
        yield chunk as Uint8Array;
        this.#watch.touch();
      }
    } catch (error) {
      throw this.#failure(error);
    } finally {
      this.end();
      body.destroy();
    }
  }

  end(): void {
    this.#watch.stop();
  }

  /** What is thrown when no answer came. A source that cannot be read is not the registry's fault. */
  failureOfRequest(error: unknown): unknown {
    const failure = this.#failure(error);
    return this.#bodyError && !this.message.signal?.aborted ? this.#bodyError : failure;
  }

  #failure(error: unknown): unknown {
    this.end();
    const { signal } = this.message;
    if (signal?.aborted) return signal.reason;
    if (error instanceof AppError) return error;
    const why = this.#watch.signal.aborted ? `no data for ${this.#watch.timeoutMs} ms` : rootMessage(error);
    return new AppError('registry_unavailable', { detail: `${this.title}: ${why}` }, { cause: error });
  }
}

class Answer implements RegistryResponse {
  readonly status: number;

  constructor(
    private readonly exchange: Exchange,
    private readonly answer: Dispatcher.ResponseData,
  ) {
    exchange.begin();
    this.status = answer.statusCode;
  }

  header(name: string): string | undefined {
    const value = this.answer.headers[name];
    if (!Array.isArray(value)) return value;
    return name === 'link' ? value.join(', ') : value[0];
  }

  get body(): AsyncIterable<Uint8Array> {
    const { body } = this.answer;
    const chunks = this.exchange.receive(body);
    // A generator that waits for a chunk hears of its end only after that, which a silent server never sends.
    for (const name of ['return', 'throw'] as const) {
      const end = chunks[name].bind(chunks);
      chunks[name] = (reason: unknown) => {
        body.destroy();
        return end(reason);
      };
    }
    return chunks;
  }

  async discard(): Promise<void> {
    await this.answer.body.dump({ limit: 64 * 1024 }).catch(() => undefined);
    this.exchange.end();
  }

  read(maxBytes: number): Promise<Buffer> {
    return readAll(this.body, maxBytes, this.exchange.title);
  }
}

async function readAll(chunks: AsyncIterable<Uint8Array>, maxBytes: number, what: string): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of chunks) {
    size += chunk.byteLength;
    if (size > maxBytes)
      throw new AppError('registry_rejected', { detail: `${what}: the answer is larger than ${maxBytes} bytes` });
    parts.push(chunk);
  }
  return Buffer.concat(parts);
}

/** In words, or as distribution tells of an error of its file system: ENOSPC, EDQUOT. */
const fullDisk = /no space left on device|disk quota exceeded|"Err":(?:28|122)\b/i;

/**
 * The error for a status that means failure. Source:
 * https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes
 */
async function refusal(title: string, response: RegistryResponse): Promise<AppError> {
  const { status } = response;
  const text = await response.read(64 * 1024).then(
    (bytes) => bytes.toString('utf8'),
    () => '',
  );
  const { code, message } = firstError(text);
  const words = [code, message].filter(Boolean).join(': ');
  if (fullDisk.test(text))
    return new AppError('space_insufficient', {
      detail: `the registry's disk is full: ${title}: ${status} ${words}`.slice(0, 1000),
      registryStatus: status,
    });
  return new AppError(transientStatus(status) ? 'registry_unavailable' : 'registry_rejected', {
    detail: `${title}: ${status}${words ? ` ${words}` : ''}`.slice(0, 1000),
    registryStatus: status,
    ...(code ? { registryCode: code } : {}),
  });
}

function firstError(text: string): { code?: string; message?: string } {
  try {
    const { errors } = JSON.parse(text) as { errors?: { code?: unknown; message?: unknown }[] };
    const error = errors?.[0];
    return {
      ...(typeof error?.code === 'string' ? { code: error.code } : {}),
      ...(typeof error?.message === 'string' ? { message: error.message } : {}),
    };
  } catch {
    return {};
  }
}
