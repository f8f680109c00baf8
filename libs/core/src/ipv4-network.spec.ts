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
