import fc from 'fast-check';
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

const part = fc.nat({ max: 30 });
const versions = fc.tuple(part, part, part, fc.option(fc.nat({ max: 2_000_000 })));
const written = ([major, minor, patch, build]: readonly [number, number, number, number | null], lead: string) =>
  `${lead}${major}.${minor}.${patch}${build === null ? '' : `-${build}`}`;
const leads = fc.constantFrom('', 'v', 'v-');

it('orders versions number by number, then by build where both have one', () => {
  fc.assert(
    fc.property(versions, versions, leads, leads, (a, b, leadA, leadB) => {
      const builds = a[3] === null || b[3] === null ? 0 : a[3] - b[3];
      const expected = [a[0] - b[0], a[1] - b[1], a[2] - b[2], builds].find((difference) => difference !== 0) ?? 0;
      const order = compareDuVersions(written(a, leadA), written(b, leadB));
      expect(Math.sign(order)).toBe(Math.sign(expected));
      expect(Math.sign(compareDuVersions(written(b, leadB), written(a, leadA)))).toBe(-Math.sign(expected) + 0);
    }),
  );
});

it('a later version can do no less', () => {
  fc.assert(
    fc.property(versions, versions, (a, b) => {
      fc.pre(compareDuVersions(written(a, 'v-'), written(b, 'v-')) <= 0);
      const [earlier, later] = [duCapabilities(written(a, 'v-')), duCapabilities(written(b, 'v-'))];
      if (earlier.hasRegistry) expect(later.hasRegistry).toBe(true);
      if (earlier.movesClusters) expect(later).toEqual({ hasRegistry: true, movesClusters: true });
    }),
  );
});

it('does not repeat a long text that is no version in full', () => {
  const text = 'x'.repeat(1_000);
  expect(() => compareDuVersions('5.3.0', text)).toThrow(new RegExp(`'x{60}'`));
});

it.each(['v--5.3.0', 'V-5.3.0', '5.3.0-1-2', '5.3.0-beta', ' 5.3.0', '5.3.0\n', '-5.3.0', '5.3.0.1'])(
  'refuses to compare %j',
  (version) =>
    expect(() => compareDuVersions(version, '5.3.0')).toThrow(
      expect.objectContaining({ code: 'configuration_invalid' }),
    ),
);
