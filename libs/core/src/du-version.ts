import semver from 'semver';
import { AppError } from './errors.js';

/** Versions of a DU from which on it has a local registry, and from which on clusters that exist can be moved to it. */
const registrySince = '5.2.0';
const movesClustersSince = '5.3.0';

/**
 * What a DU of this version can do with a local registry. Versions look like `v-5.3.0-1558488`, where the last number is a build; `5.3.0` is read too.
 * Throws `configuration_invalid`.
 */
export function duCapabilities(version: string): { hasRegistry: boolean; movesClusters: boolean } {
  const number = /^(?:v-?)?(\d+\.\d+\.\d+)(?:-\d+)?$/.exec(version)?.[1];
  if (!number) throw new AppError('configuration_invalid', { detail: `'${version.slice(0, 60)}' is not a version like v-5.3.0-1558488` });
  return { hasRegistry: semver.gte(number, registrySince), movesClusters: semver.gte(number, movesClustersSince) };
}
