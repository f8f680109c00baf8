import { AppError } from '@airdock/core/errors';
import { directFetch } from '@airdock/outbound/direct-fetch';
import { rootMessage } from '@airdock/outbound/root-message';
import { z } from 'zod';

/** A control plane, and the user who asks it. */
export interface PmkConnection {
  /** Of the DU, such as `https://du.example.com`. A DU is one region, so this names the region too. */
  url: string;
  /** Name of the project (tenant). */
  project: string;
  user: string;
  /** Id of the domain that user and project belong to. Default `default`. */
  domain?: string | undefined;
  /** For people only. */
  region?: string | undefined;
}

/** Bounds of requests, and the version of the API. */
export interface PmkHttpOptions {
  /** For one request, its whole answer included, ms. Default 60 000. */
  requestTimeoutMs?: number | undefined;
  /** Version of qbert's API. Default v4. */
  apiVersion?: 'v3' | 'v4' | undefined;
}

/** One request to qbert. */
export interface PmkRequest {
  method: 'GET' | 'POST' | 'DELETE';
  /** Below the project, with its query: `/clusters`. */
  path: string;
  body?: unknown;
  signal?: AbortSignal | undefined;
}

interface Session {
  token: string;
  projectId: string;
}

interface Answer {
  status: number;
  text: string;
  token: string | null;
}

/** Hundreds of clusters. */
const maxAnswerBytes = 32 * 1024 * 1024;
const tokenSchema = z.object({ token: z.object({ project: z.object({ id: z.string().min(1) }) }) });

/**
 * HTTP to keystone and qbert of one DU. The password leaves it in the login only, the token in requests to the DU only:
 * redirects are not followed.
 *
 * Throws `pmk_unavailable` when trying again may help (no connection, time limit, 408, 429, 5xx), `pmk_unauthorized`
 * when the login is refused, `pmk_refused` with `pmkStatus` for other refusals, `pmk_unexpected` for answers that are
 * none of PMK's, and the signal's reason. It does not retry, but for one new login.
 */
export class PmkHttp {
  readonly apiVersion: 'v3' | 'v4';
  readonly #base: string;
  readonly #connection: PmkConnection;
  readonly #password: string;
  readonly #requestTimeoutMs: number;
  #login: Promise<Session> | undefined;

  constructor(
    connection: PmkConnection,
    password: string,
    { requestTimeoutMs = 60_000, apiVersion = 'v4' }: PmkHttpOptions = {},
  ) {
    this.apiVersion = apiVersion;
    this.#base = baseUrl(connection.url);
    this.#connection = connection;
    this.#password = password;
    this.#requestTimeoutMs = requestTimeoutMs;
  }

  /**
   * The text of a successful answer. A token that has expired is replaced once; nothing was done by the request that it
   * was refused with.
   */
  async send(request: PmkRequest): Promise<string> {
    for (let attempt = 1; ; attempt++) {
      const login = this.#session();
      const session = await orAbort(login, request.signal);
      const path = `/qbert/${this.apiVersion}/${encodeURIComponent(session.projectId)}${request.path}`;
      const answer = await this.#exchange({ ...request, path }, session.token);
      if (answer.status === 401 && attempt === 1) {
        // Another call may have a new login under way already.
        if (this.#login === login) this.#login = undefined;
        continue;
      }
      if (answer.status === 401)
        throw new AppError('pmk_unauthorized', {
          detail: `${request.method} ${path}: a new token is refused`,
          pmkStatus: 401,
        });
      this.#check(request.method, path, answer, session.token);
      return answer.text;
    }
  }

  /** The answer as `schema` reads it. */
  async json<T>(request: PmkRequest, schema: z.ZodType<T>): Promise<T> {
    return parse(`${request.method} ${request.path}`, await this.send(request), schema);
  }

  /**
   * One login for all calls that wait for it. It belongs to none of them, so none of their signals ends it; its own
   * time limit does.
   */
  #session(): Promise<Session> {
    if (this.#login) return this.#login;
    const login = this.#logIn();
    this.#login = login;
    login.catch(() => {
      if (this.#login === login) this.#login = undefined;
    });
    return login;
  }

  /** Source: https://docs.openstack.org/api-ref/identity/v3/#password-authentication-with-scoped-authorization */
  async #logIn(): Promise<Session> {
    const { user, project, domain = 'default' } = this.#connection;
    const path = '/keystone/v3/auth/tokens?nocatalog';
    const identity = {
      methods: ['password'],
      password: { user: { name: user, domain: { id: domain }, password: this.#password } },
    };
    const answer = await this.#exchange({
      method: 'POST',
      path,
      body: { auth: { identity, scope: { project: { name: project, domain: { id: domain } } } } },
    });
    if (answer.status === 401)
      throw new AppError('pmk_unauthorized', {
        detail: `keystone does not let user '${user}' into project '${project}'`,
        pmkStatus: 401,
      });
    this.#check('POST', path, answer);
    const { token } = parse(`POST ${path}`, answer.text, tokenSchema);
    if (!answer.token) throw new AppError('pmk_unexpected', { detail: 'keystone gave no X-Subject-Token' });
    return { token: answer.token, projectId: token.project.id };
  }

  async #exchange({ method, path, body, signal }: PmkRequest, token?: string): Promise<Answer> {
    signal?.throwIfAborted();
    const limit = AbortSignal.timeout(this.#requestTimeoutMs);
    try {
      const response = await directFetch(`${this.#base}${path}`, {
        method,
        redirect: 'manual',
        signal: signal ? AbortSignal.any([signal, limit]) : limit,
        headers: {
          ...(token ? { 'x-auth-token': token } : {}),
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      return {
        status: response.status,
        text: await readText(response, `${method} ${path}`),
        token: response.headers.get('x-subject-token'),
      };
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (error instanceof AppError) throw error;
      const why = limit.aborted ? `no answer within ${this.#requestTimeoutMs} ms` : rootMessage(error);
      throw new AppError('pmk_unavailable', { detail: `${method} ${path}: ${why}` }, { cause: error });
    }
  }

  #check(method: string, path: string, { status, text }: Answer, token?: string): void {
    if (status >= 200 && status < 300) return;
    const what = `${method} ${path}: ${status}`;
    if (status < 400)
      throw new AppError('pmk_unexpected', { detail: `${what}, a redirect, which is not followed`, pmkStatus: status });
    const isTransient = status >= 500 || status === 429 || status === 408;
    const words = withoutSecrets(spokenWords(text), [this.#password, token ?? '']);
    throw new AppError(isTransient ? 'pmk_unavailable' : 'pmk_refused', {
      detail: `${what} ${words}`.trim().slice(0, 700),
      pmkStatus: status,
    });
  }
}

/** Throws `configuration_invalid`. The text is in no message: it may hold a password. */
function baseUrl(text: string): string {
  const url = URL.parse(text);
  if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password || url.search || url.hash)
    throw new AppError('configuration_invalid', {
      detail: 'the URL of PMK must be http(s)://host[:port], without user, query and fragment',
    });
  return url.href.replace(/\/+$/, '');
}

/** What qbert answered, read by the schema. Throws `pmk_unexpected`. */
function parse<T>(what: string, text: string, schema: z.ZodType<T>): T {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    // Its message would show a piece of the answer.
    throw new AppError('pmk_unexpected', { detail: `${what}: the answer is not JSON` });
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  throw new AppError('pmk_unexpected', { detail: `${what}: ${z.prettifyError(parsed.error)}`.slice(0, 700) });
}

async function readText(response: Response, what: string): Promise<string> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of response.body ?? []) {
    size += part.byteLength;
    if (size > maxAnswerBytes)
      throw new AppError('pmk_unexpected', { detail: `${what}: the answer is larger than ${maxAnswerBytes} bytes` });
    parts.push(part);
  }
  return Buffer.concat(parts).toString('utf8');
}

/** Settles as the promise does, or rejects with the signal's reason at once. */
function orAbort<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason as Error);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

const errorSchema = z.union([
  z.object({ error: z.object({ message: z.string() }) }).transform(({ error }) => error.message),
  z.object({ message: z.string() }).transform(({ message }) => message),
  z.object({ error: z.string() }).transform(({ error }) => error),
]);

/** The message of keystone's or qbert's error; of other texts what is no HTML. */
function spokenWords(text: string): string {
  try {
    return errorSchema.safeParse(JSON.parse(text)).data ?? text;
  } catch {
    return /^\s*</.test(text) ? '' : text;
  }
}

/** On one line, and without the secrets, also where they stand escaped in JSON. */
function withoutSecrets(text: string, secrets: readonly string[]): string {
  const forms = secrets.filter(Boolean).flatMap((secret) => [secret, JSON.stringify(secret).slice(1, -1)]);
  return forms.reduce((clean, form) => clean.replaceAll(form, '***'), text).replace(/[\s\p{Cc}]+/gu, ' ');
}
