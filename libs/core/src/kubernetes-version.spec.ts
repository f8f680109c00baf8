import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseKubernetesVersion, supportsLocalRegistry, upgradeKind } from './kubernetes-version.js';

describe('Kubernetes versions', () => {
  it.each([
    ['1.20.11', { major: 1, minor: 20, patch: 11, build: undefined }],
    ['v1.20.11', { major: 1, minor: 20, patch: 11, build: undefined }],
    ['1.20.11-pmk.2038', { major: 1, minor: 20, patch: 11, build: 2038 }],
  ])('reads %s', (text, version) => expect(parseKubernetesVersion(text)).toEqual(version));

  it.each(['1.20', 'latest', '1.20.11-rc.1', '1.20.11-pmk.x', '1.20.11-pmk.1.2', '1.20.11+k3s1', ' 1.20.11', ''])(
    'refuses %s',
    (text) => {
      expect(() => parseKubernetesVersion(text)).toThrow(
        expect.objectContaining({ code: 'kubernetes_version_unsupported' }),
      );
    },
  );

  it('knows which can use a local registry', () => {
    expect(
      ['1.19.16', '1.20.0', '1.34.1', '2.0.0'].map((text) => supportsLocalRegistry(parseKubernetesVersion(text))),
    ).toEqual([false, true, true, true]);
  });

  it.each([
    ['1.19.16', '1.20.11', 'minor'],
    ['1.20.4', '1.20.11', 'patch'],
    ['1.20.11-pmk.2000', '1.20.11-pmk.2038', 'patch'],
    ['1.20.11-pmk.2038', '1.21.0-pmk.1', 'minor'],
  ])('goes from %s to %s as a %s upgrade', (from, to, kind) => expect(upgradeKind(from, to)).toBe(kind));

  it.each([
    ['1.20.11', '1.20.11', 'has this version'],
    ['1.20.11', '1.19.16', 'a downgrade'],
    ['1.20.11-pmk.2038', '1.20.11-pmk.2000', 'a downgrade'],
    ['1.19.16', '1.21.3', 'go over 1.20 first'],
    ['1.35.0', '2.0.0', 'major version'],
  ])('refuses to go from %s to %s, since it is or does: %s', (from, to, why) => {
    expect(() => upgradeKind(from, to)).toThrow(
      expect.objectContaining({ code: 'upgrade_refused', message: expect.stringContaining(why) }),
    );
  });
});

describe('Kubernetes versions, whatever their numbers', () => {
  const part = fc.nat({ max: 40 });
  const versions = fc.record({ major: fc.nat({ max: 3 }), minor: part, patch: part, build: fc.option(fc.nat()) });
  type Parts = { major: number; minor: number; patch: number; build: number | null };
  const written = ({ major, minor, patch, build }: Parts) =>
    `${major}.${minor}.${patch}${build === null ? '' : `-pmk.${build}`}`;

  it('are read as they are written, with a v before them or none', () => {
    fc.assert(
      fc.property(versions, fc.constantFrom('', 'v'), (version, lead) => {
        expect(parseKubernetesVersion(lead + written(version))).toEqual({
          ...version,
          build: version.build ?? undefined,
        });
      }),
    );
  });

  it('can be upgraded in one direction at most', () => {
    fc.assert(
      fc.property(versions, versions, (from, to) => {
        const kinds = [
          [from, to],
          [to, from],
        ].map(([a, b]) => {
          try {
            return upgradeKind(written(a as Parts), written(b as Parts));
          } catch (error) {
            expect(error).toMatchObject({ code: 'upgrade_refused' });
            return undefined;
          }
        });
        expect(kinds.filter(Boolean).length).toBeLessThanOrEqual(1);
        const [kind] = kinds;
        if (kind === 'patch') expect([to.major, to.minor]).toEqual([from.major, from.minor]);
        if (kind === 'minor') expect([to.major, to.minor]).toEqual([from.major, from.minor + 1]);
      }),
    );
  });

  it('refuses what is no version before it compares, and does not repeat a long one in full', () => {
    const code = { code: 'kubernetes_version_unsupported' };
    expect(() => upgradeKind('latest', '1.20.11')).toThrow(expect.objectContaining(code));
    expect(() => upgradeKind('1.20.11', 'latest')).toThrow(expect.objectContaining(code));
    expect(() => parseKubernetesVersion('9'.repeat(500))).toThrow(/'9{60}' is not/);
  });
});
