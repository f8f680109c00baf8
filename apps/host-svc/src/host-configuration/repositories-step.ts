import { AppError } from '@airdock/core/errors';
import { isOwn } from '@airdock/core/host/host-file';
import { renderAptList, renderYumRepo, repositoriesFor } from '@airdock/core/host/package-list';
import type { Change } from '../host/host.schema.js';
import { change, type HostSteps, type Outcome, skipped } from './host-steps.js';

/** Where a host keeps Airdock's package list. */
export const listPaths = { debian: '/etc/apt/sources.list.d/airdock.list', redhat: '/etc/yum.repos.d/airdock.repo' };

/**
 * The host finds the package repositories of the DU, and has the packages of `airdock.packages.install`. The way to the DU must be open.
 * Throws `host_packages_failed`.
 */
export async function configureRepositories(steps: HostSteps, baseUrl: string): Promise<Outcome> {
  const { config, facts, system } = steps;
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
  const before = await steps.files.read(listPaths[family]);
  const written = await steps.bring(before, render(own, baseUrl, distribution), { hasHeader: true });
  const changes: Change[] = written ? [written] : [];
  const missing = await system.missingPackages(family, install[family]);
  if (written || missing.length > 0) {
    changes.push(...own.map(({ name }) => change('package', 'refresh', `${baseUrl}/${name}`)));
    if (!steps.dryRun) await system.refreshLists(family);
  }
  if (missing.length > 0) {
    changes.push(...missing.map((name) => change('package', 'install', name)));
    if (!steps.dryRun) await installAndCheck(steps, missing, true);
  }
  const packages = install[family].length > 0 ? `; packages ${install[family].join(', ')}` : '';
  return steps.outcome(changes, `${own.map(({ name }) => name).join(', ')} in ${listPaths[family]}${packages}`);
}

/** Installs packages, and looks whether they are there. Throws `host_packages_failed`. */
export async function installAndCheck({ facts, system, remember }: HostSteps, names: string[], onlyAirdock: boolean): Promise<void> {
  if (!facts.family) throw new AppError('host_packages_failed', { detail: 'the operating system is of no known family' });
  await system.bring(facts.family, names, onlyAirdock, (packages) => remember({ packages }));
}

/** Takes Airdock's package list off a host. */
export async function unconfigureRepositories(steps: HostSteps, baseUrl: string): Promise<Outcome> {
  const { family } = steps.facts;
  if (!family) return { status: 'skipped', detail: 'the operating system uses neither apt nor yum repositories', changes: [] };
  const list = await steps.files.read(listPaths[family]);
  if (!isOwn(list.text)) return steps.outcome([], `${list.path} is not of Airdock`);
  // dnf finds what it has of a repository by the list.
  if (!steps.dryRun) await steps.system.forgetLists(family, baseUrl);
  const removed = await steps.takeBack(list, await steps.files.before(list.path));
  return steps.outcome(removed ? [removed] : [], list.path);
}
