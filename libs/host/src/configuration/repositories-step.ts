import { AppError } from '@airdock/core/errors';
import { isOwn } from '@airdock/core/host/host-file';
import {
  keyPaths,
  type PackageFamily,
  renderAptList,
  renderYumRepo,
  repositoriesFor,
  type ServedRepository,
} from '@airdock/core/host/package-list';
import { type HostChange, hostChange, type StepOutcome, type StepStatus, skipped } from '../work/host-work.js';
import type { ConfigurationWork } from './configuration-work.js';

/** Where a host keeps Airdock's package list. */
export const listPaths = { debian: '/etc/apt/sources.list.d/airdock.list', redhat: '/etc/yum.repos.d/airdock.repo' };

/** The package repositories of the DU, as its hosts find them. */
export interface PackageSource {
  /** Where hosts find the repositories: their own end of the tunnel. */
  readonly baseUrl: string;
  /** The key that vouches for the packages. */
  key(): Promise<{ publicKey: string }>;
  /** The public key that signs the packages of this repository; undefined where the DU alone vouches for them. */
  vendorKey(name: string): Promise<string | undefined>;
}

/**
 * The host finds the package repositories of the DU, and has the packages of `airdock.packages.install`. The way to the
 * DU must be open. Throws `host_packages_failed`.
 */
export async function configureRepositories(
  work: ConfigurationWork,
  packages: PackageSource,
): Promise<StepOutcome<StepStatus | 'skipped'>> {
  const { site, facts, system } = work;
  const { baseUrl } = packages;
  const { repositories, install } = site.packages;
  if (work.wishes.skipYumRepoInstall) return skipped('skipYumRepoInstall');
  if (repositories.length === 0) return skipped('the DU serves no package repositories: airdock.packages.repositories');
  if (!work.hasTunnel) return skipped('without a tunnel the host has no way to the package repositories of the DU');
  const { family, distribution } = facts;
  if (!family) return skipped('the operating system uses neither apt nor yum repositories');
  const own = repositoriesFor(repositories, family, distribution);
  if (own.length === 0) {
    if (install[family].length > 0)
      throw new AppError('host_packages_failed', {
        detail: `the DU has no repository with ${install[family].join(', ')} for this host (${family} ${distribution})`,
      });
    return skipped(`the DU has no repository for this host (${family} ${distribution})`);
  }

  const render = family === 'debian' ? renderAptList : renderYumRepo;
  const changes: HostChange[] = [];
  const write = async (path: string, text: string, hasHeader: boolean) => {
    const change = await work.write(await work.files.read(path), text, { hasHeader });
    if (change) changes.push(change);
    return change !== undefined;
  };
  // The keys come first: a list without its keys would keep apt from reading any list of the host.
  for (const { path, text } of await keysFor(packages, family, own)) await write(path, text, false);
  const written = await write(listPaths[family], render(own, baseUrl, distribution), true);
  const missing = await system.missingPackages(family, install[family]);
  if (written || missing.length > 0) {
    changes.push(...own.map(({ name }) => hostChange('package', 'refresh', `${baseUrl}/${name}`)));
    if (!work.dryRun) await system.refreshLists(family);
  }
  if (missing.length > 0) {
    changes.push(...missing.map((name) => hostChange('package', 'install', name)));
    if (!work.dryRun) await installPackages(work, missing, true);
  }
  const installed = install[family].length > 0 ? `; packages ${install[family].join(', ')}` : '';
  return work.outcome(changes, `${own.map(({ name }) => name).join(', ')} in ${listPaths[family]}${installed}`);
}

/** The public keys that the host needs: the DU's, and those of repositories whose packages are signed themselves. */
async function keysFor(packages: PackageSource, family: PackageFamily, own: readonly ServedRepository[]) {
  const keys = [{ path: keyPaths[family], text: (await packages.key()).publicKey }];
  if (family === 'debian') return keys;
  for (const { name } of own) {
    const text = await packages.vendorKey(name);
    if (text !== undefined) keys.push({ path: keyPaths.vendor(name), text });
  }
  return keys;
}

/**
 * Installs packages and checks that they are there; what is about to be installed is remembered before. Throws
 * `host_packages_failed`.
 */
export async function installPackages(work: ConfigurationWork, names: string[], onlyAirdock: boolean): Promise<void> {
  const { family } = work.facts;
  if (!family) throw new AppError('host_packages_failed', { detail: 'the operating system is of no known family' });
  await work.system.installAndRemember(family, names, onlyAirdock, (packages) => work.remember({ packages }));
}

/** Removes Airdock's package list and its keys from a host. */
export async function unconfigureRepositories(
  work: ConfigurationWork,
  { baseUrl }: Pick<PackageSource, 'baseUrl'>,
): Promise<StepOutcome<StepStatus | 'skipped'>> {
  const { family } = work.facts;
  if (!family) return skipped('the operating system uses neither apt nor yum repositories');
  const list = await work.files.read(listPaths[family]);
  if (!isOwn(list.text)) return work.outcome([], `${list.path} is not of Airdock`);
  // dnf finds what it has of a repository by the list.
  if (!work.dryRun) await work.system.forgetLists(family, baseUrl);
  const changes: HostChange[] = [];
  const removed = await work.revert(list, await work.files.before(list.path));
  if (removed) changes.push(removed);
  const vendors = family === 'redhat' ? work.site.packages.repositories.map(({ name }) => keyPaths.vendor(name)) : [];
  for (const key of await work.files.readAll([keyPaths[family], ...vendors])) {
    const change = await work.revert(key, null);
    if (change) changes.push(change);
  }
  return work.outcome(changes, list.path);
}
