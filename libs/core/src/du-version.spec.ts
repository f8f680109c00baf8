import { expect, it } from 'vitest';
import { compareDuVersions, duCapabilities } from './du-version.js';

it.each([
  ['v-5.1.0-1400000', false, false],
  ['v-5.2.9-1500000', true, false],
  ['v-5.3.0-1558488', true, true],
  ['5.10.0', true, true],
])('a DU %s has a registry: %s, and moves clusters that exist to it: %s', (version, hasRegistry, movesClusters) => {
  expect(duCapabilities(version)).toEqual({ hasRegistry, movesClusters });
});

it.each(['', '5.3', 'v-5.3.0-', 'latest'])('refuses %j', (version) => {
  expect(() => duCapabilities(version)).toThrow(expect.objectContaining({ code: 'configuration_invalid' }));
});

it('knows which of two versions is older', () => {
  expect(compareDuVersions('v-5.3.0-1558488', '5.10.0')).toBeLessThan(0);
  expect(compareDuVersions('v-5.3.0-1558488', 'v-5.3.0-1558489')).toBeLessThan(0);
  expect(compareDuVersions('v-5.3.0-1558488', '5.3.0')).toBe(0);
  expect(compareDuVersions('5.3.1', 'v-5.3.0-1558488')).toBeGreaterThan(0);
});
