import { ownHeader } from './host-file.js';

/** A folder of packages as hosts see it. */
export interface ServedRepository {
  name: string;
  format: 'apt' | 'yum';
  /** apt: suites below `dists/`; yum: subfolders, by major release. Empty: one flat folder for every host. */
  distributions: readonly string[];
  /** apt with distributions. */
  components: readonly string[];
  /**
   * yum: the packages are signed themselves, by a key that the site knows; the metadata is signed by the DU in any
   * case.
   */
  gpgKey?: string | undefined;
}

/** Which packages a host takes. */
export type PackageFamily = 'debian' | 'redhat';

/** By `ID` and `ID_LIKE` of os-release(5); undefined for others than Debian's and Red Hat's relatives. */
export function packageFamily(id: string, idLike: string): PackageFamily | undefined {
  const names = [id, ...idLike.split(/\s+/)].map((name) => name.toLowerCase());
  const is = (...wanted: string[]) => names.some((name) => wanted.includes(name));
  if (is('debian', 'ubuntu')) return 'debian';
  return is('rhel', 'centos', 'fedora', 'rocky', 'almalinux') ? 'redhat' : undefined;
}

/** What a host of this kind can use: those of its package format that are flat, or have its distribution. */
export function repositoriesFor(
  repositories: readonly ServedRepository[],
  family: PackageFamily,
  distribution: string,
): ServedRepository[] {
  const format = family === 'debian' ? 'apt' : 'yum';
  return repositories.filter(
    (one) => one.format === format && (one.distributions.length === 0 || one.distributions.includes(distribution)),
  );
}

/** Where hosts keep the public key of the DU, and those of repositories whose packages are signed themselves. */
export const keyPaths = {
  debian: '/etc/apt/keyrings/airdock.asc',
  redhat: '/etc/pki/rpm-gpg/RPM-GPG-KEY-airdock',
  vendor: (name: string) => `/etc/pki/rpm-gpg/RPM-GPG-KEY-airdock-${name}`,
};

/**
 * `/etc/apt/sources.list.d/airdock.list`, see sources.list(5). Only what the DU has signed is taken: whoever else
 * answers at `baseUrl` on a host, which any of its users may try while the tunnel is down, has not.
 */
export function renderAptList(repositories: readonly ServedRepository[], baseUrl: string, codename: string): string {
  const lines = repositories.map(
    ({ name, distributions, components }) =>
      `deb [signed-by=${keyPaths.debian}] ${baseUrl}/${name} ${distributions.length === 0 ? './' : `${codename} ${components.join(' ')}`}`,
  );
  return `${[ownHeader, ...lines].join('\n')}\n`;
}

/**
 * `/etc/yum.repos.d/airdock.repo`, see dnf.conf(5). A tunnel that is down must not keep the host from its other
 * repositories.
 */
export function renderYumRepo(repositories: readonly ServedRepository[], baseUrl: string, release: string): string {
  const sections = repositories.map(({ name, distributions, gpgKey }) =>
    [
      `[airdock-${name}]`,
      `name=${name}, served by Airdock`,
      `baseurl=${baseUrl}/${name}/${distributions.length === 0 ? '' : `${release}/`}`,
      'enabled=1',
      // The signed metadata says what each package must be; packages that are signed themselves are checked once more.
      'repo_gpgcheck=1',
      `gpgcheck=${gpgKey ? 1 : 0}`,
      `gpgkey=${[keyPaths.redhat, ...(gpgKey ? [keyPaths.vendor(name)] : [])].map((path) => `file://${path}`).join(' ')}`,
      'skip_if_unavailable=1',
      // What the site brings is not for the distribution's modules to filter out. yum of version 7 does not know the
      // key, and leaves it alone.
      'module_hotfixes=1',
      'proxy=_none_',
    ].join('\n'),
  );
  return `${[ownHeader, ...sections].join('\n\n')}\n`;
}
