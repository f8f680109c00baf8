import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { OutboundTargets } from '@airdock/outbound/outbound-targets';
import { pinUrl } from '@airdock/outbound/pinned-url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { RegistryClient } from './registry-client.js';

const policy = { code: 'registry_target_forbidden', key: 'airdock.registry.allowedHosts' } as const;

describe('a registry whose address was pinned', () => {
  let server: Server;
  const seen: { path: string; host: string | undefined; authorization: string | undefined }[] = [];
  let redirect = '';
  const port = () => (server.address() as AddressInfo).port;

  beforeAll(async () => {
    server = createServer(({ url = '', headers }, response) => {
      seen.push({ path: url, host: headers.host, authorization: headers.authorization });
      if (url.includes('/blobs/')) response.writeHead(307, { location: redirect }).end();
      else response.end('{}');
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  });
  afterAll(() => new Promise((resolve) => server.close(resolve)));

  it('is reached where it was allowed, whatever its name leads to by then', async () => {
    const addresses = ['127.0.0.1', '169.254.169.254'];
    const targets = new OutboundTargets(['127.0.0.0/8'], policy, async () => [
      { address: addresses.shift() ?? '169.254.169.254', family: 4 },
    ]);
    const pinned = await pinUrl(targets, `http://images.invalid:${port()}`);
    await using registry = new RegistryClient(pinned);
    await registry.ping();
    expect(seen.at(-1)).toMatchObject({ path: '/v2/', host: `images.invalid:${port()}` });
  });

  it('cannot send anybody on to this machine', async () => {
    const targets = new OutboundTargets(['127.0.0.1'], policy);
    await using registry = new RegistryClient(await pinUrl(targets, `http://127.0.0.1:${port()}`), {
      auth: { username: 'me', password: 'secret' },
    });
    const digest = `sha256:${'a'.repeat(64)}` as const;
    for (const host of ['127.0.0.2', 'localhost', '[::1]', '169.254.169.254', '[2002:7f00:1::]']) {
      redirect = `http://${host}:${port()}/elsewhere`;
      const read = async () => {
        for await (const chunk of await registry.getBlob('a/b', digest)) void chunk;
      };
      await expect(read()).rejects.toMatchObject({
        code: expect.stringMatching(/registry_target_forbidden|registry_rejected|registry_unavailable/),
      });
    }
    expect(seen.filter(({ path }) => path === '/elsewhere')).toEqual([]);
  });

  it('is refused when none of its addresses is allowed', async () => {
    const targets = new OutboundTargets([], policy, async () => [{ address: '127.0.0.1', family: 4 }]);
    await expect(pinUrl(targets, 'http://images.site:5000')).rejects.toMatchObject({
      code: 'registry_target_forbidden',
    });
  });
});
