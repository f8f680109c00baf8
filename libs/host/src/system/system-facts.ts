import { type PackageFamily, packageFamily } from '@airdock/core/host/package-list';

/** What a host is: its distribution, its package manager, its init. */
export interface SystemFacts {
  family: PackageFamily | undefined;
  /**
   * Which of several distributions of a repository is the host's: the codename on Debian, the major release on Red Hat.
   */
  distribution: string;
  /** Docker's daemon is there, and answers. */
  docker: { isInstalled: boolean; version: string | undefined };
  /** containerd's is; the one inside Docker does not count. */
  containerd: { version: string | undefined };
}

/** For scripts that look: is a program there; a program whose daemon may hang. */
export const scriptFunctions = `
has() { command -v "$1" >/dev/null 2>&1; }
brief() { if has timeout; then timeout 20 "$@"; else "$@"; fi 2>/dev/null; }`;

/** Prints Docker's version, as its program has it from its daemon. */
export const dockerVersionScript = `if has docker; then echo "docker=$(brief docker version --format '{{.Server.Version}}')"; fi`;

/**
 * The part of one that prints what `systemFacts` wants to know, as `key=value`; of Docker not what `$knowsDocker` says
 * that is known.
 */
export const systemFactsScript = `
( . /etc/os-release 2>/dev/null; echo "os=$ID"; echo "osVersion=$VERSION_ID"; echo "osLike=$ID_LIKE"; echo "codename=$VERSION_CODENAME" )
if has dockerd; then echo dockerd=yes; fi
[ -n "$knowsDocker" ] || { ${dockerVersionScript}; }
# ctr would wait ten seconds for a socket that is not there.
[ ! -S /run/containerd/containerd.sock ] || echo "containerd=$(brief ctr --connect-timeout 5s version | sed -n '/^Server/,$ s/^ *Version: *//p')"`;

/** From the values that the scripts have printed; empty where they have not. */
export function systemFacts(text: (key: string) => string): SystemFacts {
  const family = packageFamily(text('os'), text('osLike'));
  return {
    family,
    distribution: family === 'debian' ? text('codename') : (text('osVersion').split('.')[0] ?? ''),
    docker: { isInstalled: text('dockerd') !== '', version: text('docker') || undefined },
    containerd: { version: text('containerd') || undefined },
  };
}
