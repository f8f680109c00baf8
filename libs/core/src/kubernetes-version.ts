import semver from 'semver';
import { AppError } from './errors.js';

/** A Kubernetes version as PMK writes it: `1.20.11` or, with the PMK build, `1.20.11-pmk.2038`. */
export interface KubernetesVersion {
  major: number;
  minor: number;
  patch: number;
  /** PMK build number, if the version names one. */
  build?: number | undefined;
}

/** Reads `1.20.11`, `v1.20.11` or `1.20.11-pmk.2038`. Throws `kubernetes_version_unsupported`. */
export function parseKubernetesVersion(text: string): KubernetesVersion {
  const version = semver.parse(text);
  const [label, build] = version?.prerelease ?? [];
  if (!version || (label !== undefined && (label !== 'pmk' || typeof build !== 'number')))
    throw new AppError('kubernetes_version_unsupported', { detail: `'${text.slice(0, 60)}' is not a version like 1.20.11 or 1.20.11-pmk.2038` });
  return { major: version.major, minor: version.minor, patch: version.patch, build: build as number | undefined };
}

/** Local-registry mode exists from Kubernetes 1.20 on. */
export const supportsLocalRegistry = ({ major, minor }: KubernetesVersion): boolean => major > 1 || (major === 1 && minor >= 20);
