import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Du } from '../support/du.js';
import { bySocket } from '../support/raw-http.js';

/** What is not to be reached, however it is written. */
const forbidden = [
  'http://127.0.0.1:PORT',
  'http://localhost:PORT',
  'http://2130706433:PORT',
  'http://0x7f.1:PORT',
  'http://127.1:PORT',
  'http://0:PORT',
  'http://[::1]:PORT',
  'http://[::]:PORT',
  'http://[::ffff:127.0.0.1]:PORT',
  'http://[::ffff:7f00:1]:PORT',
  'http://[64:ff9b::7f00:1]:PORT',
  'http://[2002:7f00:1::1]:PORT',
  'http://[2002:a9fe:a9fe::]:PORT',
  'http://[2001:0:7f00:1::]:PORT',
  'http://169.254.169.254',
  'http://[fe80::1]',
  'http://100.100.100.200',
  'http://224.0.0.1',
];

describe('M6: requests that others choose the target of', () => {
  let folder: string;
  let du: Du;
  let server: Server;
  let hits = 0;
  const at = (url: string) => url.replace('PORT', String((server.address() as AddressInfo).port));
  const post = (path: string, body: unknown) => bySocket(du.socket, 'POST', path, { body });

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'airdock-outbound-'));
    // What listens on loopback and trusts whoever reaches it.
    server = createServer((_request, response) => {
      hits += 1;
      response.end('{}');
    });
    await new Promise<void>((resolve) => server.listen(0, resolve));
    du = await Du.start({ folder, privateRegistryType: 'none', stopsRegistry: true });
  });
  afterAll(async () => {
    await du?.stop();
    server?.close();
    await rm(folder, { recursive: true, force: true });
  });

  it.each(forbidden)('send no webhooks to %s', async (url) => {
    expect(await post('/v1/webhook-endpoints', { url: at(url), events: ['*'] })).toMatchObject({
      status: 422,
      json: { code: 'webhook_target_forbidden' },
    });
    expect(hits).toBe(0);
  });

  it.each(forbidden)('take no registry at %s', async (url) => {
    const put = await bySocket(du.socket, 'PUT', '/v1/registry', { body: { mode: 'external', externalUrl: at(url) } });
    expect(put).toMatchObject({ status: 422, json: { code: 'registry_target_forbidden' } });
    const body = { backupId: '0198c0de-0000-7000-8000-000000000000', registry: { url: at(url) } };
    // The backup is looked for first; there is none.
    expect([404, 422]).toContain((await post('/v1/restores', body)).status);
    expect(hits).toBe(0);
  });

  it.each(['ftp://10.0.0.1', 'file:///etc/passwd', 'http://user:pw@10.0.0.1', '', 'http://', 'nonsense'])(
    'take no URL %j',
    async (url) => {
      expect((await post('/v1/webhook-endpoints', { url, events: ['*'] })).status).toBe(422);
      expect(
        (await bySocket(du.socket, 'PUT', '/v1/registry', { body: { mode: 'external', externalUrl: url } })).status,
      ).toBe(422);
      expect(
        (await post('/v1/restores', { backupId: '0198c0de-0000-7000-8000-000000000000', registry: { url } })).status,
      ).toBe(422);
    },
  );

  it('reach registries on private networks', async () => {
    const put = await bySocket(du.socket, 'PUT', '/v1/registry', {
      body: { mode: 'external', externalUrl: 'http://10.255.255.1:5000' },
    });
    expect(put.status).toBe(202);
    expect((await bySocket(du.socket, 'PUT', '/v1/registry', { body: { mode: 'none' } })).status).toBe(202);
  });
});
