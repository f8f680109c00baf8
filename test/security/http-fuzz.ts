/**
 * Sends requests that follow the OpenAPI document and break it, to every operation: `node
 * test/dist/security/http-fuzz.js [SECONDS] [SEED] [postgres]`. Whatever is answered with 500, with anything but a
 * problem document, or not at all, is printed with its request; the program then ends with 1. The same seed sends the
 * same requests.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { Agent, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startPostgres } from '@airdock/testing/servers';
import { Du, repository } from '../support/du.js';

interface Schema {
  $ref?: string;
  type?: string;
  enum?: unknown[];
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  additionalProperties?: boolean | Schema;
  allOf?: Schema[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  format?: string;
  pattern?: string;
  default?: unknown;
}
interface Parameter {
  name: string;
  in: 'path' | 'query' | 'header';
  schema?: Schema;
}
interface Operation {
  operationId: string;
  parameters?: Parameter[];
  requestBody?: { content: Record<string, { schema: Schema }> };
}
interface Call {
  operationId: string;
  method: string;
  path: string;
  headers: Record<string, string>;
  body: string | undefined;
}

/** What is wrong with an answer. */
export interface Finding extends Call {
  what: string;
}

/** Numbers from a seed (mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) / 4_294_967_296;
  };
}

const nastyTexts = [
  ...[
    '',
    ' ',
    '\0',
    'a\0b',
    '\u0001',
    '\ud800',
    '\u202e',
    '☃',
    '💥'.repeat(50),
    'a'.repeat(300),
    'a'.repeat(5_000),
    '../../etc/passwd',
    '/etc/passwd',
    '//',
    '.',
    '..',
  ],
  ...[
    '__proto__',
    'constructor',
    'toString',
    'hasOwnProperty',
    'prototype',
    'null',
    'undefined',
    'NaN',
    'true',
    '0',
    '-1',
    '1e999',
    '[]',
    '{}',
    "'",
    '"',
    '`',
    '\\',
    '%00',
    '%2e%2e%2f',
    '%',
  ],
  ...[
    "'; DROP TABLE job; --",
    '$(id)',
    '${7*7}',
    '{{7*7}}',
    '<script>',
    '*',
    '?',
    '#',
    ';',
    '\n',
    '\r\nx: y',
    'http://',
    'http://[',
    'https://user:pw@x',
    'file:///etc/passwd',
    'ssh-ed25519 AAAA',
  ],
  ...[
    'localhost:5100/a:1',
    'sha256:',
    `sha256:${'a'.repeat(64)}`,
    '9'.repeat(40),
    '2026-01-01',
    '2026-13-45T99:99:99Z',
    '00000000-0000-0000-0000-000000000000',
    '0198c0de-0000-7000-8000-000000000000',
  ],
];
const nastyValues: unknown[] = [
  null,
  true,
  false,
  0,
  -1,
  1.5,
  1e308,
  -1e308,
  2 ** 31,
  2 ** 53,
  Number.POSITIVE_INFINITY,
  [],
  {},
  [[]],
  [null],
  { a: null },
  [{}],
  { constructor: {} },
];

class Fuzzer {
  private readonly random: () => number;
  private readonly ids: string[] = ['0198c0de-0000-7000-8000-000000000000'];

  constructor(
    private readonly schemas: Record<string, Schema>,
    seed: number,
  ) {
    this.random = randomNumbers(seed);
  }

  pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.random() * items.length)] as T;
  }

  chance(probability: number): boolean {
    return this.random() < probability;
  }

  /** Ids that answers had make later requests reach deeper. */
  learn(text: string): void {
    for (const id of text.match(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g) ?? []) {
      if (this.ids.length < 200) this.ids.push(id);
      else this.ids[Math.floor(this.random() * 200)] = id;
    }
  }

  call(method: string, path: string, operation: Operation): Call {
    const parameters = operation.parameters ?? [];
    const of = (place: Parameter['in']) => parameters.filter((parameter) => parameter.in === place);
    const target = path.replace(/\{(\w+)\}/g, () =>
      this.pathPart(this.chance(0.6) ? this.pick(this.ids) : this.text()),
    );
    const query = of('query').filter(() => this.chance(0.4));
    if (this.chance(0.05)) query.push({ name: this.pick(nastyTexts), in: 'query' });
    const search = query.map(
      ({ name, schema }) =>
        `${encode(name)}=${encode(this.chance(0.5) ? this.plain(this.value(schema ?? {}, 2)) : this.text())}`,
    );
    const headers: Record<string, string> = {};
    for (const { name } of of('header'))
      if (this.chance(0.6))
        headers[name.toLowerCase()] = this.pick([
          '1.0.0',
          '0',
          '1',
          '-1',
          'x',
          'key-1',
          'key-2',
          'final;/a /b',
          '"1"',
          'W/"x"',
          '99999999999999999999',
          'x'.repeat(250),
        ]);
    if (this.chance(0.1)) headers['if-match'] = this.pick(['"0"', '"x"', '*', '']);
    if (operation.operationId === 'createUpload' && this.chance(0.2))
      headers['upload-concat'] = this.pick(['partial', 'final;/v1/uploads/a']);
    if (operation.operationId === 'createUpload' && this.chance(0.3))
      headers['upload-metadata'] = `filename ${Buffer.from(this.text()).toString('base64')}`;
    const schema = operation.requestBody && Object.values(operation.requestBody.content)[0]?.schema;
    let body: string | undefined;
    if (schema) {
      body = this.chance(0.03)
        ? this.pick(['', '{', 'null', '[]', '""', '{"a":1,"a":2}', '{"__proto__":{"a":1}}', '1', '\u0000'])
        : (JSON.stringify(this.value(schema, 6)) ?? '');
      headers['content-type'] = this.chance(0.97)
        ? 'application/json'
        : this.pick(['text/plain', 'application/json; charset=utf-16', ';', 'application/x-www-form-urlencoded']);
    } else if (operation.operationId === 'patchUpload') {
      body = 'x'.repeat(Math.floor(this.random() * 100));
      headers['content-type'] = 'application/offset+octet-stream';
    }
    return {
      operationId: operation.operationId,
      method: method.toUpperCase(),
      path: `${target}${search.length > 0 ? `?${search.join('&')}` : ''}`,
      headers,
      body,
    };
  }

  private pathPart(text: string): string {
    const encoded = encode(text);
    return encoded === '' ? '%20' : encoded;
  }

  private text(): string {
    return this.pick(nastyTexts);
  }

  private plain(value: unknown): string {
    return typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  }

  /** Mostly what the schema says, now and then something else at any place in it. */
  private value(schema: Schema, depth: number): unknown {
    if (this.chance(0.06)) return this.chance(0.5) ? this.text() : this.pick(nastyValues);
    if (schema.$ref) return this.value(this.schemas[schema.$ref.split('/').at(-1) ?? ''] ?? {}, depth);
    if (schema.enum) return this.pick(schema.enum);
    const variants = schema.anyOf ?? schema.oneOf;
    if (variants) return this.value(this.pick(variants), depth);
    if (schema.allOf) return Object.assign({}, ...schema.allOf.map((part) => this.value(part, depth))) as unknown;
    if (schema.type === 'object' || schema.properties) return this.object(schema, depth);
    if (schema.type === 'array')
      return depth <= 0
        ? []
        : Array.from({ length: this.pick([0, 1, 1, 2, 5]) }, () => this.value(schema.items ?? {}, depth - 1));
    if (schema.type === 'boolean') return this.chance(0.5);
    if (schema.type === 'integer' || schema.type === 'number')
      return this.pick([0, 1, 2, 10, 60, 443, 5100, 65_535, 100_000, 2 ** 31, 2 ** 53]);
    if (schema.format === 'uuid') return this.pick(this.ids);
    if (schema.format === 'uri')
      return this.pick(['http://10.255.255.1:9/', 'https://images.invalid/', 'http://127.0.0.1:1/', 'http://[::1]:1']);
    if (schema.format === 'date-time') return this.pick(['2026-01-01T00:00:00.000Z', '9999-12-31T23:59:59Z']);
    return this.chance(0.3)
      ? this.text()
      : this.pick([
          'a',
          'name-1',
          'quay.io/a:1',
          '1.20.11',
          '10.0.0.1',
          'root',
          '0 3 * * *',
          'a=b',
          '*',
          'default',
          'pause',
          'x.tar',
        ]);
  }

  private object(schema: Schema, depth: number): unknown {
    const result: Record<string, unknown> = {};
    for (const [name, property] of Object.entries(schema.properties ?? {}))
      if (this.chance(schema.required?.includes(name) ? 0.97 : 0.4) && depth > 0)
        result[name] = this.value(property, depth - 1);
    if (typeof schema.additionalProperties === 'object')
      result[this.text()] = this.value(schema.additionalProperties, depth - 1);
    if (this.chance(0.03)) result[this.text()] = this.value({}, 1);
    return result;
  }
}

/** As a client writes it into a URL; what cannot be written, such as half a character, is left as it is. */
function encode(text: string): string {
  try {
    return encodeURIComponent(text);
  } catch {
    return '%ED%A0%80';
  }
}

const agent = new Agent({ keepAlive: true, maxSockets: 8 });

/** Not waited for: these answer when something happens. */
const skipped = new Set(['streamJob']);
const timeoutMs = 15_000;

function send(
  port: number,
  { method, path, headers, body }: Call,
  token: string,
): Promise<{ status: number; type: string; text: string }> {
  return new Promise((resolve, reject) => {
    const options = {
      host: '127.0.0.1',
      port,
      method,
      path,
      agent,
      timeout: timeoutMs,
      headers: {
        authorization: `Bearer ${token}`,
        ...headers,
        ...(body === undefined ? {} : { 'content-length': Buffer.byteLength(body) }),
      },
    };
    const call = request(options, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (chunk: string) => (text = `${text}${chunk}`.slice(0, 100_000)));
      answer
        .once('end', () =>
          resolve({ status: answer.statusCode ?? 0, type: answer.headers['content-type'] ?? '', text }),
        )
        .once('error', reject);
    });
    call.once('timeout', () => call.destroy(new Error(`no answer within ${timeoutMs / 1000} s`)));
    call.once('error', reject);
    call.end(body);
  });
}

/**
 * Fuzzes a DU until the time is over. Returns how many requests were sent, and the findings, the first of each
 * operation and kind.
 */
export async function fuzz(
  du: Du,
  { seconds, seed }: { seconds: number; seed: number },
): Promise<{ requests: number; findings: Finding[]; statuses: Record<string, number> }> {
  const document = JSON.parse(await readFile(join(repository, 'openapi/airdock.json'), 'utf8')) as {
    paths: Record<string, Record<string, Operation>>;
    components: { schemas: Record<string, Schema> };
  };
  const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => !skipped.has(operation.operationId))
      .map(([method, operation]) => ({ path, method, operation })),
  );
  const fuzzer = new Fuzzer(document.components.schemas, seed);
  const [token, internal] = [await du.token(), await du.internalToken()];
  const port = Number(new URL(du.url).port);
  const findings = new Map<string, Finding>();
  const statuses: Record<string, number> = {};
  const end = Date.now() + seconds * 1000;
  let requests = 0;
  const judge = (call: Call, status: number, type: string, text: string) => {
    const problem =
      status >= 400 && !type.startsWith('application/problem+json') && call.method !== 'HEAD'
        ? `${status} as ${type}: ${text.slice(0, 100)}`
        : undefined;
    const what = status === 0 || status === 500 ? `${status} ${text.slice(0, 200)}` : problem;
    if (what) findings.set(`${call.operationId} ${what.slice(0, 12)}`, { ...call, what });
  };
  const work = async () => {
    while (Date.now() < end) {
      const { path, method, operation } = fuzzer.pick(operations);
      const call = fuzzer.call(method, path, operation);
      // What only services call is called as a service too, and the rest mostly as an operator.
      const shown = fuzzer.chance(0.2) ? internal : token;
      if (call.path.includes('waitSeconds')) call.path = call.path.replace(/waitSeconds=\d+/, 'waitSeconds=1');
      // The token would be another one afterwards.
      if (operation.operationId === 'rotateToken' || operation.operationId === 'rotateSecretsKey')
        call.body = '{"x":1}';
      if (operation.operationId === 'rotateSecretsKey') continue;
      requests += 1;
      const { status, type, text } = await send(port, call, shown).catch((error: Error) => ({
        status: 0,
        type: '',
        text: error.message,
      }));
      statuses[status] = (statuses[status] ?? 0) + 1;
      judge(call, status, type, text);
      fuzzer.learn(text);
    }
  };
  // One after the other, so that a seed sends the same again.
  await work();
  return { requests, findings: [...findings.values()], statuses };
}

if (process.argv[1]?.endsWith('http-fuzz.js')) {
  const [seconds = '600', seed = String(Date.now() % 1_000_000), database] = process.argv.slice(2);
  const folder = await mkdtemp(join(tmpdir(), 'airdock-fuzz-'));
  const postgres = database === 'postgres' ? await startPostgres() : undefined;
  const environment = postgres ? { DATABASE_URL: postgres.url } : {};
  const du = await Du.start({ folder, privateRegistryType: 'none', stopsRegistry: true, environment });
  try {
    console.log(`seed ${seed}, ${seconds} s, ${postgres ? 'PostgreSQL' : 'SQLite'}`);
    const { requests, findings, statuses } = await fuzz(du, { seconds: Number(seconds), seed: Number(seed) });
    for (const finding of findings) console.log(JSON.stringify(finding));
    const { rss } = JSON.parse(
      await readFile(`/proc/${du.pid}/status`, 'utf8').then(
        (text) => `{"rss":${/VmRSS:\s+(\d+)/.exec(text)?.[1] ?? 0}}`,
      ),
    ) as {
      rss: number;
    };
    console.log(
      `${requests} requests, ${findings.length} findings, ${JSON.stringify(statuses)}, ${Math.round(rss / 1024)} MiB at the end`,
    );
    process.exitCode = findings.length > 0 ? 1 : 0;
  } finally {
    agent.destroy();
    await du.stop();
    await postgres?.stop();
    await rm(folder, { recursive: true, force: true });
  }
}
