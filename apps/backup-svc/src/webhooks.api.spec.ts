import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { Outbox } from '@airdock/platform/events/outbox';
import type { JobsService } from '@airdock/platform/jobs/jobs.service';
import { jobsToken } from '@airdock/platform/service';
import { type ComponentOptions, startComponent } from '@airdock/platform/testing/component';
import { freePort, startPostgres, startRedis, type TempDir, tempDir, waitFor } from '@airdock/testing/servers';
import { Webhook } from 'standardwebhooks';
import request from 'supertest';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { BackupModule } from './backup.module.js';
import type { WebhookDelivery, WebhookDeliveryLog } from './webhook-delivery/webhook-delivery.schema.js';
import { WebhookDeliveryService } from './webhook-delivery/webhook-delivery.service.js';
import type {
  CreatedWebhookEndpoint,
  CreateWebhookEndpoint,
  WebhookEndpoint,
} from './webhook-endpoint/webhook-endpoint.schema.js';

interface Seen {
  path: string;
  headers: Record<string, string>;
  body: string;
}

let folder: TempDir;
let redis: Awaited<ReturnType<typeof startRedis>>;
beforeAll(async () => {
  folder = await tempDir('webhooks');
  redis = await startRedis();
});
afterAll(async () => {
  await redis?.stop();
  await folder?.remove();
});

/** Answers as `answer` says, which tests change; 204 unless they do. */
async function startReceiver() {
  const receiver = {
    url: '',
    seen: [] as Seen[],
    types: () => receiver.seen.map(({ body }) => (JSON.parse(body) as { type: string }).type),
    answer: (response: ServerResponse, _headers: IncomingHttpHeaders): unknown => response.writeHead(204).end(),
  };
  const server = createServer((incoming, response) => {
    let body = '';
    incoming.on('data', (chunk: Buffer) => {
      body += chunk.toString();
    });
    incoming.on('end', () => {
      receiver.seen.push({ path: incoming.url ?? '', headers: incoming.headers as Record<string, string>, body });
      receiver.answer(response, incoming.headers);
    });
    response.on('error', () => undefined);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  receiver.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  onTestFinished(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return receiver;
}

let folders = 0;
async function start(webhooks: Record<string, unknown> = {}, options: Partial<ComponentOptions> = {}) {
  const port = await freePort();
  const overrides = {
    'http.port': port,
    webhooks: { allowedHosts: ['127.0.0.0/8'], ...webhooks },
    ...options.overrides,
  };
  const service = await startComponent('backup', BackupModule, {
    dataDir: join(folder.path, String(folders++)),
    redisUrl: redis.url,
    ...options,
    overrides,
  });
  let isClosed = false;
  const close = async () => {
    if (!isClosed) await service.app.close();
    isClosed = true;
  };
  onTestFinished(close);
  const api = (method: 'get' | 'post' | 'patch' | 'delete', path: string) =>
    request(service.url)[method](path).set('authorization', `Bearer ${service.token}`);
  const endpoint = async (body: Partial<CreateWebhookEndpoint>) =>
    (await api('post', '/v1/webhook-endpoints').send(body).expect(201)).body as CreatedWebhookEndpoint;
  const deliveries = async (query = '') =>
    (await api('get', `/v1/webhook-deliveries${query}`).expect(200)).body.items as WebhookDelivery[];
  const delivery = async (id: string) =>
    (await api('get', `/v1/webhook-deliveries/${id}`).expect(200)).body as WebhookDeliveryLog;
  /** The delivery of this, when the condition holds. */
  const deliveryWhen = async (of: { endpointId: string }, is: (delivery: WebhookDeliveryLog) => boolean) =>
    waitFor(
      async () => {
        for (const { id } of await deliveries(`?endpointId=${of.endpointId}`)) {
          const found = await delivery(id);
          if (is(found)) return found;
        }
        return undefined;
      },
      { what: 'the delivery to be as expected', timeoutMs: 20_000 },
    );
  const emit = (
    type: 'backup.stale' | 'image.push.failed' = 'backup.stale',
    data: Record<string, unknown> = { age: 1 },
  ) => service.app.get(Outbox, { strict: false }).emit(type, data);
  return {
    ...{ api, endpoint, deliveries, delivery, deliveryWhen, emit, close },
    ...{ url: service.url, dataDir: service.config.dataDir, port },
    sql: (text: string) => service.app.get('backupDataSource').query(text) as Promise<unknown[]>,
    jobs: () => service.app.get<JobsService>(jobsToken('backup'), { strict: false }),
    service: () => service.app.get(WebhookDeliveryService, { strict: false }),
  };
}

describe('webhooks', () => {
  it('are tried again with the same id until they are accepted, and the log tells what was sent and answered', async () => {
    const [airdock, receiver] = [await start(), await startReceiver()];
    const { id: endpointId, secret } = await airdock.endpoint({ url: `${receiver.url}/hook` });
    receiver.answer = (response) =>
      response
        .writeHead(receiver.seen.length === 1 ? 500 : 200)
        .end(receiver.seen.length === 1 ? 'not\0yet' : 'thanks');
    await airdock.emit();
    const delivered = await airdock.deliveryWhen({ endpointId }, ({ state }) => state === 'delivered');
    const [first, second] = receiver.seen as [Seen, Seen];
    for (const { body, headers } of receiver.seen) new Webhook(secret).verify(body, headers);
    expect(second.headers['webhook-id']).toBe(first.headers['webhook-id']);
    expect(JSON.parse(first.body)).toEqual({ type: 'backup.stale', timestamp: expect.any(String), data: { age: 1 } });
    expect(delivered).toMatchObject({
      ...{ attempts: 2, error: null, responseStatus: 200, response: { status: 200, body: 'thanks', isCut: false } },
      request: { url: `${receiver.url}/hook`, body: first.body, headers: { 'webhook-id': delivered.eventId } },
      log: [
        { status: 500, error: 'answered 500' },
        { status: 200, error: null },
      ],
    });
    expect(delivered.request?.headers).not.toHaveProperty('webhook-signature');
  });

  it('count redirects, silence and broken connections as failures, and of an answer without end read a part only', async () => {
    const [airdock, receiver] = [await start({ timeoutSeconds: 0.3 }), await startReceiver()];
    const { id: endpointId } = await airdock.endpoint({ url: receiver.url });
    const because = async (answer: typeof receiver.answer, is: (delivery: WebhookDeliveryLog) => boolean) => {
      receiver.answer = answer;
      await airdock.emit();
      const found = await airdock.deliveryWhen({ endpointId }, is);
      receiver.answer = (response) => response.writeHead(204).end();
      return found;
    };
    const redirected = await because(
      (response) => response.writeHead(307, { location: `${receiver.url}/elsewhere` }).end(),
      ({ responseStatus }) => responseStatus === 307,
    );
    expect(redirected.error).toBe('answered 307: redirects are not followed');
    const silent = await because(
      () => undefined,
      ({ error }) => error === 'no answer within 0.3 s',
    );
    expect(silent).toMatchObject({ response: null, responseStatus: null });
    await because(
      (response) => response.destroy(),
      ({ error }) => error === 'no answer: ECONNRESET',
    );
    await because(
      (response) => response.writeHead(200, { 'x-huge': 'x'.repeat(100_000) }).end(),
      ({ error }) => error === 'no answer: HPE_HEADER_OVERFLOW',
    );
    const endless = await because(
      (response) => {
        const write = (): unknown =>
          response.destroyed ? undefined : response.write('a'.repeat(65_536), () => setImmediate(write));
        response.writeHead(200);
        write();
      },
      ({ response }) => response?.isCut === true,
    );
    expect(endless).toMatchObject({ state: 'delivered', response: { status: 200, body: 'a'.repeat(4096) } });
    expect(receiver.seen.map(({ path }) => path)).not.toContain('/elsewhere');
  });

  it('to a slow endpoint keep no other waiting, and do not come to it all at once', async () => {
    const [airdock, slow, fast] = [await start(), await startReceiver(), await startReceiver()];
    const held: ServerResponse[] = [];
    slow.answer = (response) => held.push(response);
    await airdock.endpoint({ url: slow.url });
    await airdock.endpoint({ url: fast.url });
    for (let count = 0; count < 10; count++) await airdock.emit();
    await waitFor(() => fast.seen.length === 10, { what: 'the fast endpoint to have all', timeoutMs: 10_000 });
    await waitFor(() => held.length >= 4, { what: 'the slow one to have its share', timeoutMs: 10_000 });
    expect(held).toHaveLength(4);
    while (slow.seen.length < 10) {
      for (const response of held.splice(0)) response.writeHead(204).end();
      await waitFor(() => held.length > 0, { what: 'the next ones', timeoutMs: 10_000 });
      expect(held.length).toBeLessThanOrEqual(4);
    }
    for (const response of held.splice(0)) response.writeHead(204).end();
  });

  it('disable an endpoint when the time for one is over, tell the others, and can be sent once more when it is enabled again', async () => {
    const [airdock, dead, other] = [
      await start({ giveUpAfterHours: 0.0003 }),
      await startReceiver(),
      await startReceiver(),
    ];
    dead.answer = (response) => response.writeHead(503).end();
    const { id: endpointId } = await airdock.endpoint({ url: `${dead.url}/secret-path`, events: ['backup.stale'] });
    await airdock.endpoint({ url: other.url, events: ['webhook.*'] });
    await airdock.emit();
    const failed = await airdock.deliveryWhen({ endpointId }, ({ state }) => state === 'failed');
    expect(failed).toMatchObject({ error: 'answered 503', nextAttemptAt: null });
    expect(failed.attempts).toBeGreaterThan(1);
    const path = `/v1/webhook-endpoints/${endpointId}`;
    const reason = 'backup.stale could not be delivered: answered 503';
    expect((await airdock.api('get', path)).body).toMatchObject({ enabled: false, disabledReason: reason });
    await waitFor(() => other.seen.length === 1, { what: 'the others to be told', timeoutMs: 10_000 });
    const { type, data } = JSON.parse(other.seen[0]?.body ?? '') as { type: string; data: object };
    expect({ type, data }).toEqual({
      type: 'webhook.disabled',
      data: { endpointId, endpoint: path, delivery: `/v1/webhook-deliveries/${failed.id}`, origin: dead.url, reason },
    });

    expect((await airdock.api('post', `/v1/webhook-deliveries/${failed.id}/redeliver`)).body).toMatchObject({
      status: 409,
      code: 'webhook_endpoint_disabled',
    });
    dead.answer = (response) => response.writeHead(204).end();
    const { body: ping } = await airdock.api('post', `${path}/pings`).expect(202);
    await airdock.deliveryWhen({ endpointId }, ({ id, state }) => id === ping.id && state === 'delivered');
    await airdock.api('patch', path).send({ enabled: true }).expect(200);
    const { body: again } = await airdock.api('post', `/v1/webhook-deliveries/${failed.id}/redeliver`).expect(202);
    expect(again).toMatchObject({ state: 'pending', redeliveryOf: failed.id, eventId: failed.eventId });
    await airdock.deliveryWhen({ endpointId }, ({ id, state }) => id === again.id && state === 'delivered');
    expect(dead.seen.at(-1)).toMatchObject({ headers: { 'webhook-id': failed.eventId }, body: dead.seen[0]?.body });
    expect(
      (await airdock.deliveries(`?endpointId=${endpointId}&state=delivered`)).map(({ eventType }) => eventType),
    ).toEqual(['backup.stale', 'webhook.ping']);
  });

  it('stop at once for a receiver that says it is gone', async () => {
    const [airdock, receiver] = [await start(), await startReceiver()];
    const { id: endpointId } = await airdock.endpoint({ url: receiver.url });
    receiver.answer = (response) => response.writeHead(410).end();
    await airdock.emit();
    expect(await airdock.deliveryWhen({ endpointId }, ({ state }) => state === 'failed')).toMatchObject({
      attempts: 1,
      error: 'answered 410',
    });
    expect((await airdock.api('get', `/v1/webhook-endpoints/${endpointId}`)).body).toMatchObject({ enabled: false });
  });

  it('are signed with both secrets for a while after a rotation, and the old one can be ended at once', async () => {
    const [airdock, receiver] = [await start(), await startReceiver()];
    const given = `whsec_${Buffer.alloc(24, 7).toString('base64')}`;
    const { id: endpointId, secret: first } = await airdock.endpoint({ url: receiver.url, secret: given });
    expect(first).toBe(given);
    const path = `/v1/webhook-endpoints/${endpointId}`;
    const rotate = async (body: object) =>
      (await airdock.api('post', `${path}/secret-rotations`).send(body).expect(201)).body as CreatedWebhookEndpoint;
    const holds = async (secret: string) => {
      const { body: ping } = await airdock.api('post', `${path}/pings`).expect(202);
      await airdock.deliveryWhen({ endpointId }, ({ id, state }) => id === ping.id && state === 'delivered');
      const { body, headers } = receiver.seen.at(-1) as Seen;
      try {
        new Webhook(secret).verify(body, headers);
        return true;
      } catch {
        return false;
      }
    };
    const second = await rotate({});
    expect(second.previousSecretUntil).not.toBeNull();
    expect(receiver.seen).toHaveLength(0);
    expect([await holds(first), await holds(second.secret)]).toEqual([true, true]);
    expect(receiver.seen.at(-1)?.headers['webhook-signature']?.split(' ')).toHaveLength(2);
    // The while is over.
    await airdock.sql(`UPDATE webhook_endpoint SET "previousSecretUntil" = '2020-01-01T00:00:00.000Z'`);
    expect([await holds(first), await holds(second.secret)]).toEqual([false, true]);
    const third = await rotate({ keepPreviousHours: 0 });
    expect([await holds(second.secret), await holds(third.secret)]).toEqual([false, true]);
    const rows = JSON.stringify([
      await airdock.sql('SELECT * FROM webhook_endpoint'),
      await airdock.sql('SELECT * FROM webhook_delivery'),
    ]);
    for (const { secret } of [{ secret: first }, second, third]) expect(rows).not.toContain(secret.slice(6, 30));
    expect(
      (await airdock.api('post', '/v1/webhook-endpoints').send({ url: receiver.url, secret: 'whsec_short' })).body.code,
    ).toBe('request_invalid');
  });

  it('try an endpoint out once: a ping that fails is not repeated and disables nothing', async () => {
    const [airdock, receiver] = [await start(), await startReceiver()];
    const { id: endpointId } = await airdock.endpoint({ url: receiver.url, events: ['backup.stale'] });
    receiver.answer = (response) => response.writeHead(500).end('no');
    const { body: ping } = await airdock.api('post', `/v1/webhook-endpoints/${endpointId}/pings`).expect(202);
    expect(ping).toMatchObject({ eventType: 'webhook.ping', state: 'pending' });
    const failed = await airdock.deliveryWhen({ endpointId }, ({ state }) => state === 'failed');
    expect(failed).toMatchObject({ id: ping.id, attempts: 1, error: 'answered 500', response: { body: 'no' } });
    expect((await airdock.api('get', `/v1/webhook-endpoints/${endpointId}`)).body).toMatchObject({ enabled: true });
    expect(
      (await airdock.api('post', '/v1/webhook-endpoints/01900000-0000-7000-8000-000000000001/pings')).body.code,
    ).toBe('resource_not_found');
  });

  it('go to those who want to hear of them, which can be changed', async () => {
    const [airdock, some, all] = [await start(), await startReceiver(), await startReceiver()];
    const { id } = await airdock.endpoint({ url: some.url, events: ['backup.*', 'image.push.succeeded'] });
    await airdock.endpoint({ url: all.url });
    await airdock.emit('image.push.failed');
    await airdock.emit('backup.stale');
    await waitFor(() => all.seen.length === 2 && some.seen.length > 0, { what: 'the events', timeoutMs: 10_000 });
    expect(some.types()).toEqual(['backup.stale']);
    const { body: changed } = await airdock
      .api('patch', `/v1/webhook-endpoints/${id}`)
      .send({ events: ['*.failed'] })
      .expect(200);
    expect(changed as WebhookEndpoint).toMatchObject({ events: ['*.failed'], url: `${some.url}/` });
    await airdock.emit('backup.stale');
    await airdock.emit('image.push.failed');
    await waitFor(() => all.seen.length === 4 && some.seen.length > 1, { what: 'the events', timeoutMs: 10_000 });
    expect(some.types()).toEqual(['backup.stale', 'image.push.failed']);
    for (const events of [['backup.creat.*'], ['nothing'], ['backup.*.'], []])
      expect(
        (await airdock.api('post', '/v1/webhook-endpoints').send({ url: some.url, events })).body.code,
        String(events),
      ).toBe('request_invalid');
    await airdock.api('patch', `/v1/webhook-endpoints/${id}`).send({ enabled: false }).expect(200);
    await airdock.emit('image.push.failed');
    await waitFor(() => all.seen.length === 5, { what: 'the event', timeoutMs: 10_000 });
    expect(some.seen).toHaveLength(2);
  });

  it('go only where the configuration allows, when an endpoint is made and with every delivery', async () => {
    const [before, receiver] = [await start(), await startReceiver()];
    const { id: endpointId } = await before.endpoint({ url: receiver.url });
    expect((await before.api('post', '/v1/webhook-endpoints').send({ url: 'http://169.254.169.254/' })).body.code).toBe(
      'webhook_target_forbidden',
    );
    await before.close();
    const airdock = await start({ allowedHosts: ['10.0.0.0/8'] }, { dataDir: before.dataDir });
    const { body: problem } = await airdock.api('post', '/v1/webhook-endpoints').send({ url: receiver.url });
    expect(problem).toMatchObject({
      status: 422,
      code: 'webhook_target_forbidden',
      detail: '127.0.0.1 is not in airdock.webhooks.allowedHosts',
    });
    expect(
      (await airdock.api('patch', `/v1/webhook-endpoints/${endpointId}`).send({ url: receiver.url })).body.code,
    ).toBe('webhook_target_forbidden');
    await airdock.emit();
    const refused = await airdock.deliveryWhen({ endpointId }, ({ attempts, error }) => attempts > 0 && error !== null);
    expect(refused.error).toContain('127.0.0.1 is not in airdock.webhooks.allowedHosts');
    expect(receiver.seen).toHaveLength(0);
  });

  it.each(['SQLite', 'PostgreSQL'])(
    'are forgotten after a while on %s, but not those that are on their way',
    async (database) => {
      const postgres = database === 'PostgreSQL' ? await startPostgres() : undefined;
      onTestFinished(() => postgres?.stop());
      const [airdock, receiver] = [
        await start({}, { overrides: { databaseUrl: postgres?.url } }),
        await startReceiver(),
      ];
      const { id: endpointId } = await airdock.endpoint({ url: receiver.url });
      await airdock.emit();
      const plain = await airdock.deliveryWhen({ endpointId }, ({ state }) => state === 'delivered');
      await airdock.emit();
      const repeated = await airdock.deliveryWhen(
        { endpointId },
        ({ id, state }) => state === 'delivered' && id !== plain.id,
      );
      const { body: again } = await airdock.api('post', `/v1/webhook-deliveries/${repeated.id}/redeliver`).expect(202);
      await airdock.deliveryWhen({ endpointId }, ({ id, state }) => id === again.id && state === 'delivered');
      receiver.answer = (response) => response.writeHead(500).end();
      await airdock.emit();
      const pending = await airdock.deliveryWhen(
        { endpointId },
        ({ state, error }) => state === 'pending' && error !== null,
      );
      const schema = postgres ? 'backup.' : '';
      for (const table of ['webhook_event', 'webhook_delivery'])
        await airdock.sql(`UPDATE ${schema}${table} SET "createdAt" = '2020-01-01T00:00:00.000Z'`);
      await airdock.sql(
        `UPDATE ${schema}webhook_delivery SET "nextAttemptAt" = '2999-01-01T00:00:00.000Z' WHERE state = 'pending'`,
      );
      await airdock.sql(
        `UPDATE ${schema}webhook_delivery SET "createdAt" = '${new Date().toISOString()}' WHERE id = '${again.id}'`,
      );
      await airdock.service().forgetOld();
      // Of the young one that repeats it the old one can still be looked up.
      expect((await airdock.deliveries()).map(({ id }) => id)).toEqual([pending.id, again.id, repeated.id]);
      await airdock.sql(`UPDATE ${schema}webhook_delivery SET "createdAt" = '2020-01-01T00:00:00.000Z'`);
      for (let round = 0; round < 2; round++) await airdock.service().forgetOld();
      expect((await airdock.deliveries()).map(({ id }) => id)).toEqual([pending.id]);
      expect(await airdock.sql(`SELECT id FROM ${schema}webhook_event`)).toEqual([{ id: pending.eventId }]);
    },
  );

  it('of a worker that was killed in the middle are delivered by another, and tell the start of its job once', async () => {
    const receiver = await startReceiver();
    const api = await start({ timeoutSeconds: 0.1 }, { roles: ['api'] });
    const { id: endpointId } = await api.endpoint({ url: receiver.url });
    // What the killed one left behind: a delivery that it had begun, and a job that it had claimed.
    const { body: ping } = await api.api('post', `/v1/webhook-endpoints/${endpointId}/pings`).expect(202);
    expect(await api.service().claim(endpointId, 10)).toHaveLength(1);
    const { id } = await api
      .jobs()
      .submit({ type: 'backup.restore', resource: '/v1/restores/01900000-0000-7000-8000-000000000001' });
    expect(await api.jobs().claims.claim(id, 'a worker that was killed')).toMatchObject({ attempt: 1 });
    const worker = await start(
      { timeoutSeconds: 0.1 },
      { roles: ['worker'], dataDir: api.dataDir, overrides: { 'services.backup': api.url } },
    );
    const delivered = await api.deliveryWhen(
      { endpointId },
      ({ id: of, state }) => of === ping.id && state === 'delivered',
    );
    expect(delivered).toMatchObject({ attempts: 2, log: [{ status: 204 }] });
    await waitFor(() => receiver.types().includes('backup.restore.failed'), {
      what: 'the end of the job',
      timeoutMs: 30_000,
    });
    expect((await api.api('get', `/v1/jobs/${id}`)).body).toMatchObject({ state: 'failed', attempt: 2 });
    expect(receiver.types().sort()).toEqual(['backup.restore.failed', 'backup.restore.started', 'webhook.ping']);
    const failed = receiver.seen
      .map(({ body }) => JSON.parse(body))
      .find(({ type }) => type === 'backup.restore.failed');
    expect(failed.data).toMatchObject({
      jobId: id,
      job: `/v1/jobs/${id}`,
      state: 'failed',
      error: { code: 'resource_not_found', nextStep: expect.any(String) },
    });
    await worker.close();
  });

  it('that are being sent when the worker shuts down are sent by the next one, and do not count', async () => {
    const receiver = await startReceiver();
    const first = await start();
    const { id: endpointId } = await first.endpoint({ url: receiver.url });
    receiver.answer = () => undefined;
    await first.emit();
    await waitFor(() => receiver.seen.length === 1, { what: 'the first try', timeoutMs: 10_000 });
    await first.close();
    receiver.answer = (response) => response.writeHead(204).end();
    const second = await start({}, { dataDir: first.dataDir });
    const delivered = await second.deliveryWhen({ endpointId }, ({ state }) => state === 'delivered');
    expect(delivered).toMatchObject({ attempts: 1, log: [{ status: 204 }] });
    expect(receiver.seen[1]?.headers['webhook-id']).toBe(receiver.seen[0]?.headers['webhook-id']);
  });
});
