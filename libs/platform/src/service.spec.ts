import { chmod, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { AppError } from '@airdock/core/errors';
import { startRedis, waitFor } from '@airdock/testing/servers';
import { Body, Controller, Get, Inject, Module, Post } from '@nestjs/common';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import request from 'supertest';
import type { DataSource } from 'typeorm';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { z } from 'zod';
import { loadConfig } from './config.js';
import { EventSink } from './events/event-sink.js';
import { createHttpApp } from './http/app.js';
import { Idempotent, JobRequest } from './http/idempotency.js';
import { Operation } from './http/operation.js';
import { Job } from './jobs/job.schema.js';
import type { JobContext } from './jobs/job-processor.js';
import { JobsService } from './jobs/jobs.service.js';
import { RunsJob } from './jobs/runs-job.js';
import { apiToken } from './platform.module.js';
import { baseline } from './schema/baseline.js';
import { defineService, listen, rootModule } from './service.js';

const Thing = z.strictObject({ name: z.string().min(1) }).meta({ id: 'Thing' });
let failuresLeft = 0;
let release: () => void = () => undefined;
let flush: { begun: Promise<void>; stored: number } | undefined;

@Controller({ path: 'things', version: '1' })
class ThingsController {
  constructor(@Inject(JobsService) private readonly jobs: JobsService) {}

  @Post()
  @Idempotent()
  @Operation({ id: 'createThing', summary: 'x', returns: Job, status: 202 })
  create(@Body({ schema: Thing }) body: z.infer<typeof Thing>, @JobRequest() request: JobRequest) {
    return this.jobs.submit({
      ...request,
      type: body.name === 'silent' ? 'image.silent-thing' : 'image.thing',
      resource: `/v1/things/${body.name}`,
    });
  }

  @Get('secret')
  @Operation({ id: 'getSecret', summary: 'x', returns: z.object({ name: z.string() }) })
  secret() {
    return { name: 'a', password: 'hidden' };
  }
}

class ThingService {
  @RunsJob('image.silent-thing', { maxFailures: 3, stallMs: 500 })
  stall({ signal }: JobContext): Promise<Record<string, unknown>> {
    return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  }

  @RunsJob('image.thing', { maxFailures: 3 })
  async run({ resourceId, progress, saved, signal }: JobContext) {
    if (resourceId === 'flaky' && failuresLeft-- > 0) throw new AppError('registry_unavailable');
    if (resourceId === 'hopeless') {
      progress({ phase: 'work', bytesDone: 5, bytesTotal: 100 });
      throw new AppError('registry_unavailable');
    }
    if (resourceId === 'noted') {
      progress({ phase: 'work', bytesDone: 10, bytesTotal: 100 });
      await flush?.begun;
      await saved();
      return { stored: flush?.stored };
    }
    if (resourceId === 'bad') throw new AppError('bundle_corrupt', { detail: 'no good' });
    for (const bytesDone of [50, 10, 80]) progress({ phase: 'work', bytesDone, bytesTotal: 100 });
    if (resourceId === 'long') {
      await new Promise<void>((resolve, reject) => {
        release = resolve;
        signal.addEventListener('abort', () => reject(signal.reason));
      });
    }
    return { made: resourceId };
  }
}

@Module({})
class ThingModule {
  static register(roles: readonly ('api' | 'worker')[]) {
    return defineService(roles, {
      module: ThingModule,
      name: 'image',
      entities: [],
      migrations: [baseline({})],
      controllers: [ThingsController],
      providers: [ThingService, { provide: EventSink, useValue: { takeEvent: async () => undefined } }],
      jobTypes: ['image.thing', 'image.silent-thing'],
    });
  }
}

describe('a service', () => {
  let app: NestFastifyApplication;
  let redis: Awaited<ReturnType<typeof startRedis>>;
  let dataDir: string;
  let token: string;
  const call = (method: 'get' | 'post', path: string) =>
    request(app.getHttpServer())[method](path).set('authorization', `Bearer ${token}`);
  const ended = async (id: string) => (await call('get', `/v1/jobs/${id}?waitSeconds=20`).expect(200)).body as Job;
  const make = async (name: string) => ((await call('post', '/v1/things').send({ name }).expect(202)).body as Job).id;

  beforeAll(async () => {
    dataDir = await mkdtemp(join(tmpdir(), 'airdock-platform-'));
    redis = await startRedis();
    const config = loadConfig({
      environment: {},
      file: '/dev/null',
      overrides: { dataDir, redisUrl: redis.url, logLevel: 'silent' },
    });
    app = await createHttpApp(rootModule(config, { image: ThingModule }, ['api', 'worker']), { title: 'test' });
    await listen(app, { port: 0, host: '127.0.0.1' });
    token = apiToken(config);
  });
  afterAll(async () => {
    await app?.close();
    await redis?.stop();
    await rm(dataDir, { recursive: true, force: true });
  });

  it('answers health without a token and everything else only with one', async () => {
    await request(app.getHttpServer()).get('/livez').expect(200);
    await request(app.getHttpServer())
      .get('/readyz')
      .expect(200, { status: 'ok', checks: { 'database:image': 'ok' }, notices: {} });
    const missing = await request(app.getHttpServer())
      .get('/v1/jobs')
      .expect(401)
      .expect('content-type', /application\/problem\+json/);
    expect(missing.body).toMatchObject({ code: 'token_missing', nextStep: expect.stringContaining('admin.token') });
    await request(app.getHttpServer()).get('/v1/jobs').set('x-auth-token', token).expect(200);
    await request(app.getHttpServer()).get('/v1/jobs').set('authorization', 'Bearer nope').expect(401);
    await request(app.getHttpServer()).get('/metrics').expect(401);
    expect((await call('get', '/metrics')).text).toContain('airdock_process_cpu');
    expect((await readFile(join(dataDir, 'admin.token'), 'utf8')).trim()).toBe(token);
  });

  it('tells of secrets that the next start would refuse, and goes on meanwhile', async () => {
    await chmod(join(dataDir, 'admin.token'), 0o644);
    const { body } = await request(app.getHttpServer()).get('/readyz').expect(200);
    expect(body.notices).toEqual({ tokenFile: expect.stringMatching(/^file_exposed: the next start is refused/) });
    await call('get', '/v1/jobs').expect(200);
    await chmod(join(dataDir, 'admin.token'), 0o600);
    expect((await request(app.getHttpServer()).get('/readyz')).body.notices).toEqual({});
  });

  it.each([
    ['an unknown route', 'get', '/nope', undefined, 404, 'route_not_found'],
    ['bad JSON', 'post', '/v1/things', '{"name":', 400, 'request_malformed'],
    ['a wrong type', 'post', '/v1/things', '{"name":3}', 422, 'request_invalid'],
    ['an unknown field', 'post', '/v1/things', '{"name":"a","x":1}', 422, 'request_invalid'],
    ['an unknown media type', 'post', '/v1/things', '<x/>', 415, 'media_type_unsupported'],
    ['an unknown job', 'get', '/v1/jobs/0198c0de-0000-7000-8000-000000000000', undefined, 404, 'resource_not_found'],
    ['an id that is none', 'get', '/v1/jobs/..%2Fx', undefined, 404, 'resource_not_found'],
    ['a bad query', 'get', '/v1/jobs?limit=0', undefined, 422, 'request_invalid'],
    ['a path that is none', 'get', '/v1/%ZZ', undefined, 400, 'request_malformed'],
    ['a foreign cursor', 'get', '/v1/jobs?cursor=xx', undefined, 422, 'cursor_invalid'],
  ] as const)('answers %s with a problem document', async (_what, method, path, body, status, code) => {
    const type = body?.startsWith('<') ? 'application/xml' : 'application/json';
    const sent = call(method, path);
    const { body: problem, headers } = await (body ? sent.set('content-type', type).send(body) : sent).expect(status);
    expect(headers['content-type']).toContain('application/problem+json');
    expect(problem).toMatchObject({ code, status, title: expect.any(String), nextStep: expect.any(String) });
  });

  it('lets only what the schema names leave', async () => {
    expect((await call('get', '/v1/things/secret').expect(200)).body).toEqual({ name: 'a' });
  });

  it('runs a job to its end and keeps progress from running backwards', async () => {
    const job = await ended(await make('plain'));
    expect(job).toMatchObject({
      state: 'succeeded',
      result: { made: 'plain' },
      attempt: 1,
      progress: { percent: 100, bytesDone: 80 },
    });
  });

  it('tries transient failures again, and no others', async () => {
    failuresLeft = 2;
    expect(await ended(await make('flaky'))).toMatchObject({ state: 'succeeded', attempt: 3 });
    expect(await ended(await make('bad'))).toMatchObject({
      state: 'failed',
      attempt: 1,
      error: { code: 'bundle_corrupt', detail: 'no good' },
    });
  });

  it('gives a job up that makes no progress, also when each try begins with some', async () => {
    expect(await ended(await make('hopeless'))).toMatchObject({
      state: 'failed',
      error: { code: 'registry_unavailable' },
      progress: { percent: 5 },
    });
  });

  it('ends a job that reports nothing any more, after trying it again', async () => {
    const job = await ended(await make('silent'));
    const error = { code: 'job_stalled', detail: expect.stringContaining('queued') };
    expect(job).toMatchObject({ state: 'failed', attempt: 3, error });
  });

  it('has stored what was reported when it says so, also while that is under way', async () => {
    const jobs = app.get(JobsService);
    let begin = () => {};
    const seen = { begun: new Promise<void>((resolve) => (begin = resolve)), stored: 0 };
    flush = seen;
    const save = jobs.claims.saveProgress.bind(jobs.claims);
    const spy = vi.spyOn(jobs.claims, 'saveProgress').mockImplementation(async (id, owner, progress, options) => {
      begin();
      await setImmediate();
      await save(id, owner, progress, options);
      seen.stored = progress.bytesDone;
    });
    expect(await ended(await make('noted'))).toMatchObject({ state: 'succeeded', result: { stored: 10 } });
    spy.mockRestore();
  });

  it('hands a running job back when it shuts down, and continues it at the next start', async () => {
    const ownRedis = await startRedis();
    const own = await mkdtemp(join(tmpdir(), 'airdock-platform-'));
    const config = loadConfig({
      environment: {},
      file: '/dev/null',
      overrides: { dataDir: own, redisUrl: ownRedis.url, logLevel: 'silent' },
    });
    const startOwn = async () => {
      const started = await createHttpApp(rootModule(config, { image: ThingModule }, ['api', 'worker']), {
        title: 'test',
      });
      await listen(started, { port: 0, host: '127.0.0.1' });
      return started;
    };
    const jobsOf = (started: NestFastifyApplication) => started.get<JobsService>('jobs:image', { strict: false });
    const first = await startOwn();
    const { id } = await jobsOf(first).submit({ type: 'image.thing', resource: '/v1/things/long' });
    await waitFor(async () => (await jobsOf(first).get(id)).progress.percent === 80, { what: 'progress' });
    const database = first.get<DataSource>('imageDataSource');
    let atTheEnd: unknown;
    const destroy = database.destroy.bind(database);
    database.destroy = async () => {
      atTheEnd = await database.query('SELECT state, attempt, "leaseOwner" FROM job');
      await destroy();
    };
    await first.close();
    expect(atTheEnd).toEqual([{ state: 'queued', attempt: 1, leaseOwner: null }]);
    const second = await startOwn();
    await waitFor(async () => (await jobsOf(second).get(id)).attempt === 2, { what: 'the second attempt' });
    release();
    await waitFor(async () => (await jobsOf(second).get(id)).state === 'succeeded', { what: 'the end' });
    await second.close();
    await ownRedis.stop();
    await rm(own, { recursive: true });
  });

  it('cancels a running job, and a retry continues it', async () => {
    const id = await make('long');
    await waitFor(async () => (await call('get', `/v1/jobs/${id}`)).body.progress.percent === 80, {
      what: 'progress',
      timeoutMs: 5000,
    });
    await call('post', `/v1/jobs/${id}/cancel`).set('content-type', 'application/json').expect(202);
    expect(await ended(id)).toMatchObject({
      state: 'cancelled',
      error: { code: 'job_cancelled' },
      progress: { percent: 80 },
    });
    await call('post', `/v1/jobs/${id}/cancel`).expect(409);
    await call('post', `/v1/jobs/${id}/retry`).expect(202);
    await waitFor(async () => (await call('get', `/v1/jobs/${id}`)).body.attempt === 2, {
      what: 'the second attempt',
      timeoutMs: 5000,
    });
    release();
    expect(await ended(id)).toMatchObject({ state: 'succeeded' });
    await call('post', `/v1/jobs/${id}/retry`).expect(409);
  });

  it('forgets a job with its children, once all of them have ended, and no other', async () => {
    const jobs = app.get<JobsService>('jobs:image', { strict: false });
    const [parent, other] = [await ended(await make('parent')), await ended(await make('other'))];
    const child = await jobs.submit({ type: 'image.thing', resource: '/v1/things/long', parentId: parent.id });
    await waitFor(async () => (await jobs.get(child.id)).progress.percent === 80, {
      what: 'progress',
      timeoutMs: 5000,
    });
    expect(await jobs.remove(parent.id, [])).toBe(false);
    release();
    await ended(child.id);
    expect(await jobs.remove(parent.id, [])).toBe(true);
    expect([...(await jobs.byIds([parent.id, child.id, other.id])).keys()]).toEqual([other.id]);
  });

  it('streams a job as server-sent events until it ends', async () => {
    const id = await make('long');
    const url = await app.getUrl();
    const response = await fetch(`${url}/v1/jobs/${id}/events`, { headers: { authorization: `Bearer ${token}` } });
    expect(response.headers.get('content-type')).toContain('text/event-stream');
    await waitFor(async () => (await call('get', `/v1/jobs/${id}`)).body.progress.percent === 80, {
      what: 'progress',
      timeoutMs: 5000,
    });
    release();
    const events = (await response.text())
      .split('\n\n')
      .flatMap((block) =>
        /^data: (.*)$/m.exec(block)?.[1] ? [JSON.parse(/^data: (.*)$/m.exec(block)?.[1] ?? '') as Job] : [],
      );
    expect(events.at(-1)?.state).toBe('succeeded');
    const percents = events.map((event) => event.progress.percent);
    expect(percents).toEqual([...percents].sort((a, b) => a - b));
    await call('get', '/v1/jobs/nope/events').expect(404);
  });

  it('answers a repeated POST with the first answer, and refuses the key for another request', async () => {
    const send = (name: string) => call('post', '/v1/things').set('idempotency-key', 'k1').send({ name });
    const first = await send('once').expect(202);
    const second = await send('once').expect(202);
    expect(second.body.id).toBe(first.body.id);
    expect(second.headers['idempotent-replayed']).toBe('true');
    expect((await send('twice').expect(422)).body.code).toBe('idempotency_key_reused');
    // As when the process was killed between the commit and the answer: the job is found by the key.
    await app
      .get('imageDataSource')
      .query(`UPDATE idempotency_key SET status = NULL, "createdAt" = '2020-01-01T00:00:00.000Z'`);
    expect((await send('once').expect(202)).body.id).toBe(first.body.id);
  });

  it('pages through jobs, newest first', async () => {
    const first = (await call('get', '/v1/jobs?limit=2').expect(200)).body;
    const second = (await call('get', `/v1/jobs?limit=2&cursor=${first.nextCursor}`).expect(200)).body;
    expect([...first.items, ...second.items].map(({ id }: Job) => id)).toEqual([
      ...new Set([...first.items, ...second.items].map(({ id }: Job) => id)),
    ]);
    expect(first.items[0].id > first.items[1].id && first.items[1].id > second.items[0].id).toBe(true);
  });

  it('loses no job when Redis loses everything', async () => {
    await redis.kill();
    const accepted = await call('post', '/v1/things').send({ name: 'orphan' }).expect(202);
    expect(accepted.body.state).toBe('queued');
    await redis.restart();
    expect(await ended(accepted.body.id)).toMatchObject({ state: 'succeeded' });
  });

  it('serves its OpenAPI document and a readable page', async () => {
    const document = (await call('get', '/openapi.json').expect(200)).body;
    expect(document.paths['/v1/things'].post.operationId).toBe('createThing');
    expect(document.components.schemas).toHaveProperty('Problem');
    expect((await call('get', '/docs').expect(200)).text).toContain('swagger');
    for (const path of ['/%6fpenapi.json', '/%64ocs']) await request(app.getHttpServer()).get(path).expect(401);
    for (const path of ['/openapi.json', '/docs', '/docs/swagger-ui-bundle.js']) {
      const refused = await request(app.getHttpServer()).get(path).expect(401).expect('www-authenticate', /Basic/);
      expect(refused.body.code).toBe('token_missing');
      await request(app.getHttpServer()).get(path).auth('anyone', token).expect(200);
    }
    // Everything that the page loads comes from here.
    const page = (await call('get', '/docs')).text;
    expect(
      [...page.matchAll(/(?:src|href)="([^"]+)"/g)]
        .map(([, url]) => url)
        .filter((url) => /^(https?:)?\/\//.test(url ?? '')),
    ).toEqual([]);
  });
});
