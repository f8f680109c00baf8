import { isIPv6 } from 'node:net';
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { embeddedIpv4 } from './embedded-ipv4.js';
import { OutboundTargets, type Resolve } from './outbound-targets.js';
import { addressesIn, pinUrl } from './pinned-url.js';

const policy = { code: 'registry_target_forbidden', key: 'airdock.registry.allowedHosts' } as const;
const forbidden = { code: 'registry_target_forbidden' };
const resolving =
  (...addresses: string[]): Resolve =>
  async () =>
    addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 }));

const octet = fc.integer({ min: 0, max: 255 });
const ipv4 = fc.tuple(octet, octet, octet, octet);
const hexOf = (bytes: readonly number[]) =>
  [0, 2].map((at) => (((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0)).toString(16)).join(':');

/** The ways of writing an IPv4 address into an IPv6 address, each with the RFC that has it. */
const forms: [string, (bytes: readonly number[]) => string][] = [
  ['mapped (4291)', (bytes) => `::ffff:${bytes.join('.')}`],
  ['mapped, in hexadecimal', (bytes) => `::FFFF:${hexOf(bytes)}`],
  ['mapped, without a gap', (bytes) => `0:0:0:0:0:ffff:${hexOf(bytes)}`],
  ['compatible (4291)', (bytes) => `::${bytes.join('.')}`],
  ['translated (2765)', (bytes) => `::ffff:0:${bytes.join('.')}`],
  ['6to4 (3056)', (bytes) => `2002:${hexOf(bytes)}::1`],
  ['the server of Teredo (4380)', (bytes) => `2001:0:${hexOf(bytes)}::1`],
  ['the client of Teredo (4380)', (bytes) => `2001:0:1:2:3:4:${hexOf(bytes.map((byte) => byte ^ 255))}`],
  ['ISATAP (5214)', (bytes) => `fe80::5efe:${bytes.join('.')}`],
  ['ISATAP of a public address', (bytes) => `2a00:1:2:3:200:5efe:${hexOf(bytes)}`],
  ['NAT64 (6052)', (bytes) => `64:ff9b::${hexOf(bytes)}`],
  ['with a zone', (bytes) => `::ffff:${bytes.join('.')}%eth0`],
];

describe('embeddedIpv4', () => {
  it.each(forms)('finds every address that is %s', (_form, write) => {
    fc.assert(
      fc.property(ipv4, (bytes) => {
        expect(isIPv6(write(bytes).split('%')[0] ?? '')).toBe(true);
        expect(embeddedIpv4(write(bytes))).toContain(bytes.join('.'));
      }),
    );
  });

  it.each(['2a00:1450::1', 'fd00::10:0:0:5', '2001:db8::7f00:1', '127.0.0.1', 'images.site', ''])(
    'finds none in %j',
    (text) => expect(embeddedIpv4(text)).toEqual([]),
  );
});

describe('OutboundTargets', () => {
  it.each(forms)('refuses this machine as an IPv6 address that is %s', (_form, write) => {
    const targets = new OutboundTargets([], policy);
    const address = write([127, 1, 2, 3]).split('%')[0] ?? '';
    expect(() => targets.assertAddress(address)).toThrow('may not be reached');
  });

  it('allows an address that is listed, in each way of writing it, and leaves names to the resolver', async () => {
    const targets = new OutboundTargets(['fd00::/8', '127.0.0.5'], policy, resolving('127.0.0.5'));
    for (const address of ['fd12:0:0:0:0:0:0:1', 'FD12::1', '127.0.0.5', '::ffff:127.0.0.5'])
      expect(() => targets.assertAddress(address)).not.toThrow();
    for (const address of ['fe12::1', '127.0.0.6', '::ffff:127.0.0.6'])
      expect(() => targets.assertAddress(address)).toThrow('may not be reached');
    expect(() => targets.assertAddress('localhost')).not.toThrow();
    expect(await targets.addressesOf('http://images.site')).toEqual(['127.0.0.5']);
  });

  it('takes of the addresses of a name those that may be connected to, and refuses it when there are none', async () => {
    const mixed = new OutboundTargets([], policy, resolving('169.254.169.254', '10.0.0.5', '::1', '2a00::1'));
    expect(await mixed.addressesOf('http://images.site')).toEqual(['10.0.0.5', '2a00::1']);
    const local = new OutboundTargets(['*.site'], policy, resolving('127.0.0.1', '::ffff:127.0.0.1'));
    await expect(local.addressesOf('http://images.site')).rejects.toMatchObject({
      ...forbidden,
      details: { detail: expect.stringContaining('images.site (127.0.0.1, ::ffff:127.0.0.1) is this machine') },
    });
  });

  it('looks at a name again for each connection, and says what the resolver says', async () => {
    const answers = [['10.0.0.5'], ['127.0.0.1'], []];
    const targets = new OutboundTargets([], policy, async (name) => {
      const addresses = answers.shift();
      if (!addresses) throw new Error('ENOTFOUND');
      return resolving(...addresses)(name);
    });
    const look = (all: boolean) =>
      new Promise((resolve) => targets.lookup('rebound.site', { all }, (error, address) => resolve(error ?? address)));
    expect(await look(false)).toBe('10.0.0.5');
    expect(await look(false)).toMatchObject(forbidden);
    expect(await look(true)).toMatchObject(forbidden);
    expect(await look(true)).toMatchObject({ message: 'ENOTFOUND' });
  });

  it('waits two seconds at most for a name that does not resolve, before anybody connects there', async () => {
    vi.useFakeTimers();
    try {
      const never = () => new Promise<never>(() => undefined);
      const checks = [['*.site'], ['10.0.0.0/8']].map((allowed) =>
        new OutboundTargets(allowed, policy, never).check('http://slow.site').catch((error: unknown) => error),
      );
      await vi.advanceTimersByTimeAsync(2_000);
      expect(await Promise.all(checks)).toEqual(['http://slow.site/', expect.objectContaining(forbidden)]);
    } finally {
      vi.useRealTimers();
    }
  });

  it('knows what is listed by its own name or address from what a pattern or a network takes', () => {
    const targets = new OutboundTargets(['Images.Site', '*.example', '10.0.0.5', '10.0.0.0/8'], policy);
    const isListed = (host: string) => targets.isListed(`http://${host}/`);
    expect(['images.site', 'IMAGES.site.', '10.0.0.5'].map(isListed)).toEqual([true, true, true]);
    expect(['a.images.site', 'a.example', '10.0.0.6'].map(isListed)).toEqual([false, false, false]);
    for (const url of ['ftp://10.0.0.5', 'http://u:p@10.0.0.5', 'images.site', ''])
      expect(() => targets.isListed(url)).toThrow('may not be reached');
  });
});

describe('a pinned URL', () => {
  it('has the addresses that were checked, which can be read from it, and nothing of an older pin', async () => {
    const targets = new OutboundTargets([], policy, resolving('10.0.0.5', '127.0.0.1', '2a00::1'));
    const pinned = await pinUrl(targets, 'https://images.site:5000/x?y=1#at=127.0.0.1');
    expect(pinned).toBe('https://images.site:5000/x?y=1#at=10.0.0.5,2a00::1');
    expect(addressesIn(new URL(pinned))).toEqual([
      { address: '10.0.0.5', family: 4 },
      { address: '2a00::1', family: 6 },
    ]);
  });

  it.each(['#at=localhost,10.0.0', '#at=', '#10.0.0.5', ''])('has no addresses in %j', (hash) =>
    expect(addressesIn(new URL(`http://images.site/${hash}`))).toEqual([]),
  );
});
