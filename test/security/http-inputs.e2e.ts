import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startPostgres } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Du } from '../support/du.js';
import { bySocket } from '../support/raw-http.js';
import { fuzz } from './http-fuzz.js';

describe.each(['SQLite', 'PostgreSQL'] as const)('L1: the API on %s', (database) => {
  let folder: string;
  let du: Du;
  let postgres: Awaited<ReturnType<typeof startPostgres>> | undefined;
  const call = async (method: string, path: string, body?: unknown, headers: Record<string, string> = {}) => {
    const sent = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body);
    const answer = await fetch(`${du.url}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${await du.token()}`,
        ...(sent === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(sent === undefined ? {} : { body: sent }),
    });
    return {
      status: answer.status,
      type: answer.headers.get('content-type') ?? '',
      json: (await answer.json().catch(() => ({}))) as { code?: string; detail?: string },
    };
  };

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'airdock-inputs-'));
    postgres = database === 'PostgreSQL' ? await startPostgres() : undefined;
    du = await Du.start({
      folder,
      privateRegistryType: 'none',
      stopsRegistry: true,
      environment: postgres ? { DATABASE_URL: postgres.url } : {},
    });
  });
  afterAll(async () => {
    await du?.stop();
    await postgres?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  const id = '0198c0de-0000-7000-8000-000000000000';
  it.each([
    ['POST', '/v1/restores', { backupId: id, registry: { url: '' } }],
    ['POST', '/v1/restores', { backupId: id, registry: { url: 'http://' } }],
    ['POST', '/v1/backup-targets/constructor/adoptions', {}],
    ['POST', '/v1/backup-targets/__proto__/adoptions', {}],
    ['POST', '/v1/backup-targets/toString/adoptions', {}],
    ['POST', '/v1/backup-targets/hasOwnProperty/adoptions', {}],
    ['POST', '/v1/backups', { target: 'constructor' }],
    ['POST', '/v1/backup-operations', { kind: 'verify', target: '__proto__' }],
    ['POST', '/v1/backup-schedules', { name: 'a', cron: '0 3 * * *', target: 'toString' }],
    ['POST', '/v1/webhook-endpoints', { url: 'http://10.0.0.1/', events: ['constructor'] }],
    ['GET', '/v1/states/constructor', undefined],
    ['GET', '/v1/hosts/a%00b', undefined],
    ['GET', '/v1/jobs/%00', undefined],
    ['GET', '/v1/jobs/%00/events', undefined],
    ['GET', '/v1/jobs?type=a%00b', undefined],
    ['GET', '/v1/images?search=%00', undefined],
    ['GET', '/v1/hosts?labels=%00', undefined],
    ['POST', '/v1/ssh-credentials', { name: 'a\0b', username: 'root', password: 'x' }],
    ['POST', '/v1/ssh-credentials', { name: 'a', username: 'ro\0ot', password: 'x' }],
    ['POST', '/v1/ssh-credentials', '{"name":"a\\u0000","username":"root","password":"x"}'],
    ['POST', '/v1/image-sets', { name: 'a\0', kubernetesVersion: '1.20.11', images: ['quay.io/a:1'] }],
    ['POST', '/v1/bundles', { path: 'a\0.tar' }],
    ['POST', '/v1/hosts', { name: 'a', address: '10.0.0.1', credentialId: id, hostKey: 'x', labels: { 'a\0': 'b' } }],
    ['PATCH', `/v1/webhook-endpoints/${id}`, { events: ['\0'] }],
  ])('answers %s %s %j with a problem document that is not its own fault', async (method, path, body) => {
    const { status, type, json } = await call(method, path, body);
    expect(status).toBeGreaterThanOrEqual(400);
    expect(status).toBeLessThan(500);
    expect(type).toContain('application/problem+json');
    expect(json.code).toEqual(expect.any(String));
  });

  it.each(['partial', 'final;/v1/uploads/a /v1/uploads/b', 'x'])(
    'answers an upload with Upload-Concat: %s with a problem document',
    async (concat) => {
      const headers = { 'tus-resumable': '1.0.0', 'upload-length': '3', 'upload-concat': concat };
      const { status, type, json } = await call('POST', '/v1/uploads', undefined, headers);
      expect({ status, type }).toEqual({ status: 400, type: expect.stringContaining('application/problem+json') });
      expect(json.detail).not.toContain('{');
    },
  );

  it('answers uploads that are created without a body', async () => {
    for (const length of ['0', '3'])
      expect(
        (await call('POST', '/v1/uploads', undefined, { 'tus-resumable': '1.0.0', 'upload-length': length })).status,
      ).toBe(201);
    const { status } = await bySocket(du.socket, 'POST', '/v1/uploads', {
      headers: { 'tus-resumable': '1.0.0', 'upload-length': '3' },
    });
    expect(status).toBe(201);
  });

  it('takes no control characters as the name of an upload', async () => {
    const headers = {
      'tus-resumable': '1.0.0',
      'upload-length': '3',
      'upload-metadata': `filename ${Buffer.from('a\0b').toString('base64')}`,
    };
    expect((await call('POST', '/v1/uploads', undefined, headers)).status).toBe(400);
  });

  it('answers a repeated Idempotency-Key whose first request was refused, however they overlap', async () => {
    const body = { name: 'refused', address: '10.0.0.1', credentialId: id, hostKey: `SHA256:${'A'.repeat(43)}` };
    for (let round = 0; round < 20; round++) {
      const headers = { 'idempotency-key': `refused-${round}` };
      const answers = await Promise.all(Array.from({ length: 8 }, () => call('POST', '/v1/hosts', body, headers)));
      expect(answers.filter(({ status }) => status >= 500)).toEqual([]);
      expect(answers.filter(({ status }) => status === 404 || status === 409 || status === 422)).toHaveLength(8);
    }
  });

  it('answers whatever the OpenAPI document allows and forbids with what it documents', async () => {
    const { requests, findings } = await fuzz(du, { seconds: 20, seed: 15 });
    expect(findings).toEqual([]);
    expect(requests).toBeGreaterThan(100);
    expect((await fetch(`${du.url}/livez`)).status).toBe(200);
  });
});
