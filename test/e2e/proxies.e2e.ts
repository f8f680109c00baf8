/** The proxies of the environment are for others: nothing of Airdock's own goes there, in either deployment. */
import { execFile } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import {
  createBackup,
  createVerification,
  createWebhookEndpoint,
  getRegistry,
} from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { buildOciArchive, makeImage } from '@airdock/testing/bundles';
import { startS3Server } from '@airdock/testing/s3-server';
import { tempDir, waitFor } from '@airdock/testing/servers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { push, register } from '../support/bundles.js';
import { Du } from '../support/du.js';
import { success } from '../support/jobs.js';
import { type ServiceName, Services } from '../support/services.js';
import { startWebhookReceiver } from '../support/webhook-receiver.js';

/** Notes the first line of whatever comes, and answers nothing that helps. */
async function startProxy() {
  const seen: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.once('data', (chunk) => {
      seen.push(chunk.toString('latin1').split('\r\n')[0] ?? '');
      socket.end('HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n');
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const names = ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'].flatMap((name) => [name, name.toLowerCase()]);
  const stop = async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
  return {
    seen,
    stop,
    environment: {
      NODE_USE_ENV_PROXY: '1',
      NO_PROXY: '',
      no_proxy: '',
      ...Object.fromEntries(names.map((name) => [name, url])),
    },
  };
}

describe('the proxies of the environment', () => {
  let proxy: Awaited<ReturnType<typeof startProxy>>;
  let s3: Awaited<ReturnType<typeof startS3Server>>;
  beforeAll(async () => {
    [proxy, s3] = await Promise.all([startProxy(), startS3Server()]);
  });
  afterAll(async () => {
    await Promise.all([proxy.stop(), s3.stop()]);
  });

  it('would get what Node.js sends by itself', async () => {
    const program = `fetch('http://127.0.0.1:65123/').catch(() => undefined)`;
    await promisify(execFile)(process.execPath, ['-e', program], {
      env: { PATH: process.env.PATH, ...proxy.environment },
    });
    expect(proxy.seen.splice(0)).toHaveLength(1);
  });

  it.each(['in one process', 'apart'])(
    'get nothing of services %s, the registry, S3 and webhooks',
    { timeout: 180_000 },
    async (form) => {
      await using folder = await tempDir('proxies');
      const bundleDir = join(folder.path, 'bundles');
      await mkdir(bundleDir, { recursive: true });
      const secretKeyFile = join(folder.path, 's3.key');
      await writeFile(secretKeyFile, s3.secretAccessKey, { mode: 0o600 });
      const target = {
        endpoint: s3.url,
        bucket: s3.bucket,
        prefix: `${form.length}/`,
        accessKeyId: s3.accessKeyId,
        secretKeyFile,
      };
      const airdock = { backup: { targets: { s3: { s3: target } } }, webhooks: { allowedHosts: ['127.0.0.0/8'] } };
      await using site = await (async () => {
        if (form !== 'apart')
          return Du.start({ folder: folder.path, bundleDir, airdock, environment: proxy.environment });
        // What is read at the start of Node.js changes nothing for this process.
        const before = { ...process.env };
        Object.assign(process.env, proxy.environment);
        try {
          return await Services.start(folder.path, bundleDir, airdock);
        } finally {
          for (const name of Object.keys(proxy.environment)) {
            if (before[name] === undefined) delete process.env[name];
            else process.env[name] = before[name];
          }
        }
      })();
      const one = site instanceof Du ? await site.client() : undefined;
      const client = (service: ServiceName): Client => one ?? (site as Services).client(service);
      await using receiver = await startWebhookReceiver();
      await createWebhookEndpoint({
        client: client('backup'),
        body: { url: receiver.url, events: ['backup.*'] } as never,
        throwOnError: true,
      });
      const file = join(bundleDir, 'images.tar');
      await buildOciArchive(file, [await makeImage({ name: 'quay.io/app:1', layers: [{ randomBytes: 300_000 }] })]);
      await push(client('image'), await register(client('image'), file));
      await success(client('image'), createVerification({ client: client('image'), body: {}, throwOnError: true }));
      await success(
        client('backup'),
        createBackup({ client: client('backup'), body: { target: 's3' }, throwOnError: true }),
      );
      const registry = await waitFor(
        async () => {
          const { data } = await getRegistry({ client: client('registry'), throwOnError: true });
          return data.health?.ok && data.health.localhostOk ? data : undefined;
        },
        { what: 'the registry and its front to be well' },
      );
      expect(registry).toMatchObject({ error: null, localhostError: null });
      await waitFor(() => receiver.received.length > 0, { what: 'an event to be delivered', timeoutMs: 30_000 });
      expect(proxy.seen).toEqual([]);
    },
  );
});
