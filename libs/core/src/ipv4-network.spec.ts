import { BlockList } from 'node:net';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { assertNetworksApart, parseIpv4Network } from './ipv4-network.js';

const invalid = (detail: string) =>
  expect.objectContaining({ code: 'cluster_network_invalid', message: expect.stringContaining(detail) });

describe('networks of a cluster', () => {
  it('reads networks of every size', () => {
    expect(parseIpv4Network('10.20.0.0/16')).toEqual({ first: 0x0a140000, last: 0x0a14ffff });
    expect(parseIpv4Network('0.0.0.0/0')).toEqual({ first: 0, last: 2 ** 32 - 1 });
    expect(parseIpv4Network('255.255.255.255/32')).toEqual({ first: 2 ** 32 - 1, last: 2 ** 32 - 1 });
  });

  it.each([
    '10.20.0.0',
    '10.20.0.0/33',
    '10.20.0/16',
    '10.20.0.256/32',
    'fd00::/64',
    '',
    '10.20.0.0/1x',
    '10.20.0.0/16/24',
    '10.020.0.0/16',
    '10.20.0.0/08',
    '10.20.0.0/',
  ])('refuses %j', (text) => {
    expect(() => parseIpv4Network(text)).toThrow(invalid('is not a network'));
  });

  it('refuses one that begins in the middle', () => {
    expect(() => parseIpv4Network('10.20.1.0/16')).toThrow(invalid('begins in the middle'));
  });

  it.each([
    ['10.20.0.0/16', '10.20.128.0/17'],
    ['10.20.128.0/17', '10.20.0.0/16'],
    ['10.20.0.0/16', '10.20.0.0/16'],
  ])('refuses %s for pods with %s for services', (pods, services) =>
    expect(() => assertNetworksApart(pods, services, [])).toThrow(invalid('overlap')),
  );

  it('refuses a network that holds a host, and cannot tell of names', () => {
    const hosts = [
      { name: 'one', address: '192.168.0.7' },
      { name: 'two', address: 'two.example' },
    ];
    expect(() => assertNetworksApart('10.20.0.0/16', '192.168.0.0/24', hosts)).toThrow(
      invalid('services (192.168.0.0/24) holds one, 192.168.0.7'),
    );
    expect(() => assertNetworksApart('10.20.0.0/16', '10.21.0.0/16', hosts)).not.toThrow();
  });
});

/** The oracle: Node.js's own list of networks. */
describe('networks, beside BlockList', () => {
  const networks = fc.tuple(fc.nat({ max: 2 ** 32 - 1 }), fc.integer({ min: 0, max: 32 })).map(([address, prefix]) => {
    const size = 2 ** (32 - prefix);
    const first = Math.floor(address / size) * size;
    return { first, size, prefix, text: `${written(first)}/${prefix}` };
  });
  function written(address: number): string {
    return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join('.');
  }

  it('hold the addresses that it says they hold', () => {
    fc.assert(
      fc.property(networks, fc.nat({ max: 2 ** 32 - 1 }), ({ first, prefix, text }, address) => {
        const list = new BlockList();
        list.addSubnet(written(first), prefix);
        const { first: lowest, last } = parseIpv4Network(text);
        for (const one of [address, lowest, last]) expect(lowest <= one && one <= last).toBe(list.check(written(one)));
      }),
    );
  });

  it('begin at a multiple of their size only', () => {
    fc.assert(
      fc.property(networks, fc.nat(), ({ first, size, prefix }, more) => {
        fc.pre(more % size !== 0);
        expect(() => parseIpv4Network(`${written(first + (more % size))}/${prefix}`)).toThrow(
          invalid('begins in the middle'),
        );
      }),
    );
  });

  it('are apart in whichever order they are named, and never from themselves', () => {
    fc.assert(
      fc.property(networks, networks, (one, other) => {
        const areApart = one.first + one.size <= other.first || other.first + other.size <= one.first;
        for (const [pods, services] of [
          [one.text, other.text],
          [other.text, one.text],
        ] as const)
          if (areApart) expect(() => assertNetworksApart(pods, services, [])).not.toThrow();
          else expect(() => assertNetworksApart(pods, services, [])).toThrow(invalid('overlap'));
        expect(() => assertNetworksApart(one.text, one.text, [])).toThrow(invalid('overlap'));
      }),
    );
  });

  it('of pods are named when they hold a host, up to their last address', () => {
    const hosts = (address: string) => [{ name: 'one', address }];
    for (const address of ['10.20.0.0', '10.20.255.255'])
      expect(() => assertNetworksApart('10.20.0.0/16', '10.21.0.0/16', hosts(address))).toThrow(
        invalid(`pods (10.20.0.0/16) holds one, ${address}`),
      );
    for (const address of ['10.19.255.255', '10.22.0.0', '010.20.0.1', '10.20.0.256', '::1'])
      expect(() => assertNetworksApart('10.20.0.0/16', '10.21.0.0/16', hosts(address))).not.toThrow();
  });
});
