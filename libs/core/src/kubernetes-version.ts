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
  // `version` is without what semver reads past, such as +k3s1: two versions that differ in that alone would count as
  // the same.
  if (
    version?.version !== text.replace(/^v/, '') ||
    (label !== undefined && (label !== 'pmk' || typeof build !== 'number' || version.prerelease.length > 2))
  )
    throw new AppError('kubernetes_version_unsupported', {
      detail: `'${text.slice(0, 60)}' is not a version like 1.20.11 or 1.20.11-pmk.2038`,
    });
  return { major: version.major, minor: version.minor, patch: version.patch, build: build as number | undefined };
}

/** Local-registry mode exists from Kubernetes 1.20 on. */
export const supportsLocalRegistry = ({ major, minor }: KubernetesVersion): boolean =>
  major > 1 || (major === 1 && minor >= 20);

/**
 * What kind of an upgrade leads from one version to another. Throws `upgrade_refused` for the same version, a
 * downgrade, and one that skips a minor version, which neither kubeadm nor PMK does:
 * https://kubernetes.io/releases/version-skew-policy/
 */
export function upgradeKind(from: string, to: string): 'minor' | 'patch' {
  const [old, wanted] = [parseKubernetesVersion(from), parseKubernetesVersion(to)];
  const refuse = (why: string) => new AppError('upgrade_refused', { detail: `from ${from} to ${to}: ${why}` });
  const order = [
    wanted.major - old.major,
    wanted.minor - old.minor,
    wanted.patch - old.patch,
    (wanted.build ?? 0) - (old.build ?? 0),
  ].find((difference) => difference !== 0);
  if (order === undefined) throw refuse('the cluster has this version');
  if (order < 0) throw refuse('this is a downgrade');
  if (wanted.major !== old.major) throw refuse('there is no way from one major version to another');
  if (wanted.minor > old.minor + 1)
    throw refuse(`go over ${old.major}.${old.minor + 1} first: no minor version may be skipped`);
  return wanted.minor === old.minor ? 'patch' : 'minor';
}
