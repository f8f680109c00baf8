import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { OutboundPost } from './outbound-post.js';

describe('OutboundPost', () => {
  let server: Server;
  let hits = 0;
  const url = (host: string) => `http://${host}:${(server.address() as AddressInfo).port}/`;
  const { signal } = new AbortController();
  const post = (outbound: OutboundPost, to: string) => outbound.post(to, { headers: {}, body: '{}', timeoutMs: 5_000, maxAnswerBytes: 100, signal });
  /** Resolves to the addresses one after the other; the last one stays. */
  const resolving = (...addresses: string[]) => {
    let asked = 0;
    return async () => [{ address: addresses[Math.min(asked++, addresses.length - 1)] as string, family: 4 }];
  };

  beforeAll(async () => {
    server = createServer((request, response) => {
      hits++;
      request.resume().once('end', () => response.end('fine'));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  });
  afterAll(() => new Promise((resolve) => server.close(resolve)));

  it.each([
    [[], 'http://127.0.0.1/', false],
    [[], 'http://127.9.9.9/', false],
    [[], 'http://0x7f000001/', false],
    [[], 'http://localhost/', false],
    [[], 'http://[::1]/', false],
    [[], 'http://[::ffff:127.0.0.1]/', false],
    [[], 'http://[::127.0.0.1]/', false],
    [[], 'http://[::ffff:0:127.0.0.1]/', false],
    [[], 'http://[2002:7f00:1::]/', false],
    [[], 'http://[2002:a9fe:a9fe::]/', false],
    [[], 'http://[2001:0:a9fe:a9fe::1]/', false],
    [[], 'http://[2001:0:4136:e378:8000:63bf:5601:5601]/', false],
    [[], 'http://[64:ff9b::127.0.0.1]/', false],
    [[], 'http://[64:ff9b::a9fe:a9fe]/', false],
    [[], 'http://[64:ff9b:1::a00:5]/', false],
    [[], 'http://[fe80::5efe:a9fe:a9fe]/', false],
    [[], 'http://[2a00::5efe:127.0.0.1]/', false],
    [[], 'http://[fec0::1]/', false],
    [[], 'http://[ff02::1]/', false],
    [[], 'http://255.255.255.255/', false],
    [[], 'http://[2002:a00:5::]/', true],
    [[], 'http://[64:ff9b::10.0.0.5]/', true],
    [[], 'http://[2a00:1450::1]/', true],
    [['127.0.0.0/8'], 'http://127.0.0.1/', true],
    [['::1'], 'http://[::1]/', true],
    [['localhost'], 'http://localhost/', false],
    [[], 'https://10.0.0.5/hook', true],
    [[], 'http://169.254.169.254/latest/meta-data', false],
    [[], 'http://2852039166/', false],
    [[], 'http://[::ffff:169.254.169.254]/', false],
    [[], 'http://[fe80::1]/', false],
    [[], 'http://0.0.0.0/', false],
    [[], 'http://[::]/', false],
    [[], 'http://224.0.0.1/', false],
    [[], 'ftp://10.0.0.5/', false],
    [[], 'http://user:secret@10.0.0.5/', false],
    [[], 'nonsense', false],
    [['10.0.0.0/8'], 'http://10.1.2.3/', true],
    [['10.0.0.0/8'], 'http://[::ffff:10.1.2.3]/', true],
    [['10.0.0.0/8'], 'http://127.0.0.1/', false],
    [['fd00::/8'], 'http://[fd12::1]/', true],
    [['169.254.169.254'], 'http://169.254.169.254/', true],
  ])('with the list %j takes %s: %s', async (allowed, target, expected) => {
    const checked = new OutboundPost(allowed).check(target);
    if (expected) expect(await checked).toBe(new URL(target).href);
    else await expect(checked).rejects.toMatchObject({ code: 'webhook_target_forbidden' });
  });

  it.each([
    ['hooks.site', ['hooks.site'], '10.0.0.5', true],
    ['HOOKS.site.', ['hooks.site'], '10.0.0.5', true],
    ['a.hooks.site', ['*.site'], '10.0.0.5', true],
    ['evilsite', ['*.site'], '10.0.0.5', false],
    ['hooks.site', ['10.0.0.0/8'], '10.0.0.5', true],
    ['hooks.site', ['10.0.0.0/8'], '11.0.0.5', false],
    ['hooks.site', ['hooks.site'], '169.254.169.254', false],
    ['hooks.site', ['hooks.site', '169.254.0.0/16'], '169.254.169.254', true],
    ['hooks.site', [], '169.254.169.254', false],
  ])('takes %s with the list %j when it resolves to %s: %s', async (name, allowed, address, expected) => {
    const checked = new OutboundPost(allowed, resolving(address)).check(`http://${name}/`);
    if (expected) await expect(checked).resolves.toContain('http://');
    else await expect(checked).rejects.toMatchObject({ code: 'webhook_target_forbidden' });
  });

  it('takes a name that does not resolve now, unless its address is what would have to be allowed', async () => {
    const unknown = () => Promise.reject(new Error('ENOTFOUND'));
    await expect(new OutboundPost([], unknown).check('http://later.site/')).resolves.toBeDefined();
    await expect(new OutboundPost(['*.site'], unknown).check('http://later.site/')).resolves.toBeDefined();
    await expect(new OutboundPost(['10.0.0.0/8'], unknown).check('http://later.site/')).rejects.toMatchObject({ code: 'webhook_target_forbidden' });
  });

  it('connects to the address that was checked, and to none that a name resolves to later', async () => {
    const outbound = new OutboundPost(['127.0.0.0/8'], resolving('127.0.0.1', '127.0.0.1', '10.255.255.1'));
    await outbound.check(url('rebound.site'));
    expect(await post(outbound, url('rebound.site'))).toEqual({ status: 200, body: 'fine', isCut: false });
    const before = hits;
    expect(await post(outbound, url('rebound.site'))).toEqual({
      error: expect.stringContaining('rebound.site (10.255.255.1) is not in airdock.webhooks.allowedHosts'),
    });
    expect(await post(new OutboundPost(['10.0.0.0/8']), url('127.0.0.1'))).toEqual({ error: expect.stringContaining('127.0.0.1 is not in') });
    expect(await post(new OutboundPost([], resolving('169.254.169.254')), url('meta.site'))).toEqual({ error: expect.stringContaining('link-local') });
    expect(hits).toBe(before);
  });
});
