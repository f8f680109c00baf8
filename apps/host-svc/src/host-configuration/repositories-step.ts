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
import type { PackageRepositoryConfig } from '@airdock/platform/config';
import type { Change } from '../host/host.schema.js';
import type { PackageRepositoryService } from '../package-repository/package-repository.service.js';
import { change, type HostSteps, type Outcome, skipped } from './host-steps.js';

/** Where a host keeps Airdock's package list. */
export const listPaths = { debian: '/etc/apt/sources.list.d/airdock.list', redhat: '/etc/yum.repos.d/airdock.repo' };

/**
 * The host finds the package repositories of the DU, and has the packages of `airdock.packages.install`. The way to the
 * DU must be open. Throws `host_packages_failed`.
 */
export async function configureRepositories(steps: HostSteps, packages: PackageRepositoryService): Promise<Outcome> {
  const { config, facts, system } = steps;
  const { baseUrl } = packages;
  const { repositories, install } = config.packages;
  if (steps.options.skipYumRepoInstall) return skipped('skipYumRepoInstall');
  if (repositories.length === 0) return skipped('the DU serves no package repositories: airdock.packages.repositories');
  if (!steps.hasTunnel) return skipped('without a tunnel the host has no way to the package repositories of the DU');
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
  const changes: Change[] = [];
  const bring = async (path: string, text: string, hasHeader: boolean) => {
    const brought = await steps.bring(await steps.files.read(path), text, { hasHeader });
    if (brought) changes.push(brought);
    return brought !== undefined;
  };
  // The keys first: a list without them would keep apt from all lists of the host.
  for (const { path, text } of await keysFor(packages, family, repositories, own)) await bring(path, text, false);
  const written = await bring(listPaths[family], render(own, baseUrl, distribution), true);
  const missing = await system.missingPackages(family, install[family]);
  if (written || missing.length > 0) {
    changes.push(...own.map(({ name }) => change('package', 'refresh', `${baseUrl}/${name}`)));
    if (!steps.dryRun) await system.refreshLists(family);
  }
  if (missing.length > 0) {
    changes.push(...missing.map((name) => change('package', 'install', name)));
    if (!steps.dryRun) await installAndCheck(steps, missing, true);
  }
  const installed = install[family].length > 0 ? `; packages ${install[family].join(', ')}` : '';
  return steps.outcome(changes, `${own.map(({ name }) => name).join(', ')} in ${listPaths[family]}${installed}`);
}

/** The public keys that the host needs: the DU's, and those of repositories whose packages are signed themselves. */
async function keysFor(
  packages: PackageRepositoryService,
  family: PackageFamily,
  all: readonly PackageRepositoryConfig[],
  own: readonly ServedRepository[],
) {
  const keys = [{ path: keyPaths[family], text: (await packages.key()).publicKey }];
  if (family === 'debian') return keys;
  for (const repository of all.filter(({ name }) => own.some((one) => one.name === name))) {
    const text = await packages.vendorKey(repository);
    if (text !== undefined) keys.push({ path: keyPaths.vendor(repository.name), text });
  }
  return keys;
}

/** Installs packages, and looks whether they are there. Throws `host_packages_failed`. */
export async function installAndCheck(
  { facts, system, remember }: HostSteps,
  names: string[],
  onlyAirdock: boolean,
): Promise<void> {
  if (!facts.family)
    throw new AppError('host_packages_failed', { detail: 'the operating system is of no known family' });
  await system.bring(facts.family, names, onlyAirdock, (packages) => remember({ packages }));
}

/** Takes Airdock's package list off a host. */
export async function unconfigureRepositories(
  steps: HostSteps,
  { baseUrl }: PackageRepositoryService,
): Promise<Outcome> {
  const { family } = steps.facts;
  if (!family)
    return { status: 'skipped', detail: 'the operating system uses neither apt nor yum repositories', changes: [] };
  const list = await steps.files.read(listPaths[family]);
  if (!isOwn(list.text)) return steps.outcome([], `${list.path} is not of Airdock`);
  // dnf finds what it has of a repository by the list.
  if (!steps.dryRun) await steps.system.forgetLists(family, baseUrl);
  const changes: Change[] = [];
  const removed = await steps.takeBack(list, await steps.files.before(list.path));
  if (removed) changes.push(removed);
  const vendors =
    family === 'redhat' ? steps.config.packages.repositories.map(({ name }) => keyPaths.vendor(name)) : [];
  for (const key of await steps.files.readAll([keyPaths[family], ...vendors])) {
    const gone = await steps.takeBack(key, null);
    if (gone) changes.push(gone);
  }
  return steps.outcome(changes, list.path);
}
