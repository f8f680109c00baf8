import { AppError } from '@airdock/core/errors';
import { plainVersion } from '@airdock/core/kubernetes/kubeadm-config';
import { type ExactPackage, upstreamVersion } from '../system/host-system.js';
import { type HostChange, hostChange } from '../work/host-work.js';
import type { NodeWork } from './node-work.js';

/** Those whose name says so have the version of Kubernetes; others of the list, e.g. cri-tools, one of their own. */
const hasKubernetesVersion = (name: string): boolean => /^(?:kubeadm|kubelet|kubectl)/.test(name);

/** Those of the packages that are not there, or in another version. Throws `host_packages_failed`. */
export async function packagesToInstall(
  { host, family, packages, system }: NodeWork,
  kubernetesVersion: string,
): Promise<string[]> {
  if (!family)
    throw new AppError('host_packages_failed', {
      detail: `${host.hostName}: the operating system is of no known family`,
    });
  const version = plainVersion(kubernetesVersion);
  const installed = await system.installedVersions(family, packages);
  return packages.filter((name) => {
    const present = installed.get(name);
    return present === undefined || (hasKubernetesVersion(name) && upstreamVersion(present) !== version);
  });
}

/**
 * Installs those of the packages for which `isMeant`, in exactly this version, and holds them there. Throws `host_packages_failed`, with the
 * versions that there are.
 */
export async function installNodePackages(
  work: NodeWork,
  kubernetesVersion: string,
  isMeant: (name: string) => boolean,
): Promise<HostChange[]> {
  const { host, family, dryRun, system } = work;
  const names = (await packagesToInstall(work, kubernetesVersion)).filter(isMeant);
  if (names.length === 0 || !family) return [];
  if (!dryRun) await system.refreshLists(family);
  const version = plainVersion(kubernetesVersion);
  const chosen: (string | ExactPackage)[] = [];
  for (const name of names) {
    const offered = hasKubernetesVersion(name) ? await system.offeredVersions(family, name) : undefined;
    const found = offered?.find((one) => upstreamVersion(one) === version);
    if (offered && !found)
      throw new AppError('host_packages_failed', {
        detail: `${host.hostName}: the DU's package repositories have no ${name} ${version}; of ${name} there is ${offered.join(', ') || 'nothing'}`,
        offered,
      });
    chosen.push(found ? { name, version: found } : name);
  }
  if (!dryRun) {
    await system.installAndRemember(family, chosen, true, (added) => work.remember({ packages: added }));
    await system.hold(family, names, true);
  }
  return chosen.map((one) =>
    hostChange('package', 'install', typeof one === 'string' ? one : `${one.name} ${one.version}`),
  );
}
