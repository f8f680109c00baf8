import semver from 'semver';
import { AppError } from './errors.js';

/** Versions of a DU from which on it has a local registry, and from which on clusters that exist can be moved to it. */
const registrySince = '5.2.0';
const movesClustersSince = '5.3.0';

/**
 * What a DU of this version can do with a local registry. Versions look like `v-5.3.0-1558488`, where the last number
 * is a build; `5.3.0` is read too. Throws `configuration_invalid`.
 */
export function duCapabilities(version: string): { hasRegistry: boolean; movesClusters: boolean } {
  const { number } = parseDuVersion(version);
  return { hasRegistry: semver.gte(number, registrySince), movesClusters: semver.gte(number, movesClustersSince) };
}

/**
 * Negative when the first is older, positive when it is newer; a version without a build is as good as any of its
 * builds. Throws `configuration_invalid`.
 */
export function compareDuVersions(a: string, b: string): number {
  const [first, second] = [parseDuVersion(a), parseDuVersion(b)];
  const builds = first.build !== undefined && second.build !== undefined ? first.build - second.build : 0;
  return semver.compare(first.number, second.number) || builds;
}

function parseDuVersion(version: string): { number: string; build: number | undefined } {
  const [, number, build] = /^(?:v-?)?(\d+\.\d+\.\d+)(?:-(\d+))?$/.exec(version) ?? [];
  if (!number)
    throw new AppError('configuration_invalid', {
      detail: `'${version.slice(0, 60)}' is not a version like v-5.3.0-1558488`,
    });
  return { number, build: build === undefined ? undefined : Number(build) };
}
