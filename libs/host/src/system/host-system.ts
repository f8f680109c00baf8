import { AppError } from '@airdock/core/errors';
import { cleanLine } from '@airdock/core/host/host-text';
import type { PackageFamily } from '@airdock/core/host/package-list';
import { commandError } from '@airdock/ssh/command/command-error';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { runPackageManager } from './package-locks.js';
import { type SystemFacts, scriptFunctions, systemFacts, systemFactsScript } from './system-facts.js';

/** Which packages may be taken, and what they may change. */
export interface InstallOptions {
  /** Only from Airdock's repositories, since others may be out of reach. */
  onlyAirdock: boolean;
  /** The names say versions, see `findVersions`: also of packages that are held. */
  exact?: boolean;
}

/** A package in one version. */
export interface ExactPackage {
  name: string;
  /** With epoch and build, as the package manager has it. */
  version: string;
}

// What the command starts may keep its output open for as long as it runs, so the output goes through a file.
const quietScript = `
out=$(mktemp)
trap 'rm -f "$out"' EXIT
"$@" >"$out" 2>&1 </dev/null
code=$?
tail -c 2000 "$out"
exit $code`;

const serviceScript = `
action=$1 name=$2
if [ -d /run/systemd/system ]; then
  set -- systemctl "$action" "$name"
  [ "$action" != start ] || systemctl enable "$name" >/dev/null 2>&1
  # A package that was exchanged may have brought another unit.
  systemctl daemon-reload >/dev/null 2>&1
  systemctl reset-failed "$name" >/dev/null 2>&1
elif [ -x "/etc/init.d/$name" ]; then set -- service "$name" "$action"
else echo "there is neither systemd nor /etc/init.d/$name"; exit 69; fi
${quietScript}`;

/**
 * Prints the HTTP status that the host gets from a URL: $1, its host, port and path. The first program that is there
 * asks, bash first, which starts faster than the others; without any nothing is printed.
 */
export const statusScript = `
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY
if command -v bash >/dev/null && command -v timeout >/dev/null; then
  timeout 10 bash -c 'exec 3<>"/dev/tcp/$1/$2" && printf "GET %s HTTP/1.0\\r\\nHost: $1\\r\\n\\r\\n" "$3" >&3 && read -r _ code _ <&3 && echo "$code"' bash "$2" "$3" "$4" 2>/dev/null || echo 000
elif command -v curl >/dev/null; then curl -q -s -o /dev/null -m 10 -w '%{http_code}' "$1"
elif command -v wget >/dev/null; then wget -q -O /dev/null -T 10 "$1" && echo 200 || echo 000
fi
exit 0`;

/** Of lists that package managers print. */
const maxLines = 200_000;
const maxLineLength = 1_000;
/** As dpkg and rpm have them; a host may say anything, and the names come back to it as arguments. */
const packageName = /^[A-Za-z0-9][A-Za-z0-9+._~-]{0,199}$/;

const aptOnly = ['-o', 'Dir::Etc::sourcelist=/etc/apt/sources.list.d/airdock.list', '-o', 'Dir::Etc::sourceparts=-'];
const aptAlways = [
  ['-o', 'Acquire::http::Proxy::127.0.0.1=DIRECT'],
  // A configuration file that is there already is the host's own.
  ['-o', 'Dpkg::Options::=--force-confdef', '-o', 'Dpkg::Options::=--force-confold'],
].flat();
const aptInstall = (names: readonly string[], onlyAirdock: boolean, ...further: string[]): string[] => [
  ...[
    'env',
    'DEBIAN_FRONTEND=noninteractive',
    'apt-get',
    'install',
    '-y',
    '-qq',
    '--no-install-recommends',
    ...further,
  ],
  ...aptAlways,
  ...(onlyAirdock ? aptOnly : []),
  '--',
  ...names,
];
const aptExact = ['--allow-change-held-packages'];
// Who has its locks is waited for by us, with a bound, which dnf and yum do not have.
const dnfAlways = ['-y', '--setopt=exit_on_lock=1'];
const dnfOnly = ['--disablerepo=*', '--enablerepo=airdock-*', '--setopt=airdock-*.skip_if_unavailable=0'];

/** Packages and services of a host. */
export class HostSystem {
  constructor(
    private readonly connection: SshConnection,
    private readonly signal: AbortSignal,
    /** So long another package manager is waited for. */
    private readonly lockSeconds = 600,
  ) {}

  /** Throws only when the connection breaks. */
  async facts(): Promise<SystemFacts> {
    const output = await this.connection.run(['sh', '-s'], {
      stdin: `${scriptFunctions}${systemFactsScript}\nexit 0\n`,
      sudo: true,
      signal: this.signal,
    });
    const values = new Map(
      output
        .split('\n', maxLines)
        .map((line) => [line.slice(0, line.indexOf('=')), cleanLine(line.slice(line.indexOf('=') + 1), 100)]),
    );
    return systemFacts((key) => values.get(key) ?? '');
  }

  /**
   * The HTTP status that the host itself gets from a plain HTTP URL; 0 when it gets no answer, undefined when it has no
   * program to ask with (bash with timeout, curl, or wget). wget tells 200 and 0 only.
   */
  async statusOf(url: string): Promise<number | undefined> {
    const { hostname, port, pathname } = new URL(url);
    const { stdout } = await this.connection.exec(
      ['sh', '-c', statusScript, 'sh', url, hostname, port || '80', pathname],
      { signal: this.signal },
    );
    const [status] = /^\d{3}$/.exec(stdout.trim()) ?? [];
    return status === undefined ? undefined : Number(status);
  }

  /** Those of the packages that are not installed. */
  async missingPackages(family: PackageFamily, names: readonly string[]): Promise<string[]> {
    if (names.length === 0) return [];
    const isInstalled =
      family === 'debian'
        ? `[ "$(dpkg-query -W -f '\${db:Status-Status}' "$name" 2>/dev/null)" = installed ]`
        : 'rpm -q --quiet "$name" || rpm -q --quiet --whatprovides "$name"';
    const output = await this.connection.run(
      ['sh', '-c', `for name; do { ${isInstalled}; } >/dev/null 2>&1 || echo "$name"; done`, 'sh', ...names],
      {
        sudo: true,
        signal: this.signal,
      },
    );
    // Only what was asked for: the host may say anything.
    const missing = new Set(output.split('\n'));
    return names.filter((name) => missing.has(name));
  }

  /** Reads Airdock's package lists anew, and no others. Throws `host_packages_failed`, `host_packages_locked`. */
  async refreshLists(family: PackageFamily): Promise<void> {
    // With its cleanup apt would throw away the lists of all other repositories.
    if (family === 'debian')
      await this.packages([
        'apt-get',
        'update',
        '-qq',
        ...aptOnly,
        ...aptAlways,
        '-o',
        'APT::Get::List-Cleanup=0',
        '-o',
        'Acquire::Retries=2',
      ]);
    else await this.packages([await this.yum(), ...dnfAlways, ...dnfOnly, 'makecache']);
  }

  /**
   * Installs packages with what they need, without asking. Throws `host_packages_failed` with the package manager's own
   * words.
   */
  async install(
    family: PackageFamily,
    names: readonly string[],
    { onlyAirdock, exact }: InstallOptions,
  ): Promise<void> {
    if (family === 'debian') await this.packages(aptInstall(names, onlyAirdock, ...(exact ? aptExact : [])));
    else await this.packages([await this.yum(), ...dnfAlways, ...(onlyAirdock ? dnfOnly : []), 'install', ...names]);
  }

  /**
   * What `install` would bring or bring anew, as far as that is known before: dnf says it to people only, so there it
   * is the packages themselves.
   */
  async wouldInstall(
    family: PackageFamily,
    names: readonly string[],
    { onlyAirdock, exact }: InstallOptions,
  ): Promise<string[]> {
    if (family !== 'debian') return [...names];
    const argv = aptInstall(names, onlyAirdock, '--simulate', ...(exact ? aptExact : []));
    const { stdout } = await this.connection.exec(argv, { sudo: true, signal: this.signal });
    // `Inst NAME [OLD VERSION] (…)`. What it cannot do it says when it does it.
    return [
      ...names,
      ...stdout.split('\n').flatMap((line) => /^Inst ([a-z0-9][a-z0-9.+-]{0,199}) /.exec(line)?.[1] ?? []),
    ];
  }

  /**
   * Installs packages, and looks whether they are there. `remember` gets the names of those that were not there before,
   * also of those that came along: first of what is about to come, then of what has come, also when it ended half way.
   * Throws `host_packages_failed`, `host_packages_locked`.
   */
  async installAndRemember(
    family: PackageFamily,
    packages: readonly (string | ExactPackage)[],
    onlyAirdock: boolean,
    remember: (names: string[]) => Promise<void>,
  ): Promise<void> {
    const names = packages.map((one) => (typeof one === 'string' ? one : one.name));
    const asked = packages.map((one) =>
      typeof one === 'string'
        ? one
        : `${one.name}${family === 'debian' ? '=' : '-'}${withoutEpoch(one.version, family)}`,
    );
    const options = { onlyAirdock, exact: packages.some((one) => typeof one !== 'string') };
    const before = await this.installedPackages(family);
    // Whoever comes after an installation whose end was not seen does not know what came along.
    const expected = [
      ...names,
      ...(await this.wouldInstall(family, asked, options)).filter((name) => !asked.includes(name)),
    ];
    await remember([...new Set(expected)].filter((name) => !before.has(name)));
    try {
      await this.install(family, asked, options);
    } finally {
      await remember([...(await this.installedPackages(family))].filter((name) => !before.has(name)));
    }
    const still = await this.missingPackages(family, names);
    const versions = await this.installedVersions(family, names);
    const others = packages.flatMap((one) =>
      typeof one === 'string' || versions.get(one.name) === one.version ? [] : one.name,
    );
    if (still.length > 0)
      throw new AppError('host_packages_failed', { detail: `${still.join(', ')} not there after the installation` });
    if (others.length > 0)
      throw new AppError('host_packages_failed', {
        detail: `${others.join(', ')} not there in the version that was installed`,
      });
  }

  /** Versions of those packages that are installed, by name. */
  async installedVersions(family: PackageFamily, names: readonly string[]): Promise<Map<string, string>> {
    if (names.length === 0) return new Map();
    const list =
      family === 'debian'
        ? `dpkg-query -W -f '\${db:Status-Status} \${Package} \${Version}\\n' "$@" 2>/dev/null`
        : `rpm -q --qf 'installed %{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\\n' "$@"`;
    const output = await this.connection.run(['sh', '-c', `${list}; :`, 'sh', ...names], {
      sudo: true,
      signal: this.signal,
    });
    const found = output.split('\n').map((line) => line.split(' '));
    return new Map(
      found.flatMap(([status, name = '', version = '']) =>
        status === 'installed' && version ? [[name, version]] : [],
      ),
    );
  }

  /**
   * The versions of a package that Airdock's repositories have, as far as their lists were read; in the order of the
   * package manager. Throws `host_packages_locked`.
   */
  async offeredVersions(family: PackageFamily, name: string): Promise<string[]> {
    const argv =
      family === 'debian'
        ? ['apt-cache', ...aptOnly, 'madison', '--', name]
        : [await this.yum(), '-q', ...dnfAlways, ...dnfOnly, 'list', '--showduplicates', name];
    // No answer is an answer: dnf calls it an error. Without its cache it reads the lists first, for which it wants
    // their lock.
    const { stdout } =
      family === 'debian'
        ? await this.connection.exec(argv, { sudo: true, signal: this.signal })
        : await runPackageManager(this.connection, argv, this.lockSeconds, this.signal);
    const lines = stdout.split('\n', maxLines).map((line) => columnsOf(line.slice(0, maxLineLength), family));
    // `kubeadm | 1.20.11-00 | http://…`; `kubeadm.x86_64 1.20.11-0 airdock-x`, and `@airdock-x` of what is installed.
    const isOffered = ([first = '', , from = '']: string[]) =>
      first.replace(/\.[a-z0-9_]+$/, '') === name && !from.startsWith('@');
    return [...new Set(lines.filter(isOffered).flatMap(([, version]) => version ?? []))];
  }

  /**
   * Keeps packages from being exchanged by an automatic upgrade, or no longer. Where the package manager has no such
   * mark nothing is done.
   */
  async hold(family: PackageFamily, names: readonly string[], isHeld: boolean): Promise<void> {
    if (family === 'debian' && names.length > 0)
      await this.packages(['apt-mark', isHeld ? 'hold' : 'unhold', ...names]);
  }

  /** All packages that are installed. */
  async installedPackages(family: PackageFamily): Promise<Set<string>> {
    const list =
      family === 'debian'
        ? ['dpkg-query', '-W', '-f', '${db:Status-Status} ${Package}\\n']
        : ['rpm', '-qa', '--qf', 'installed %{NAME}\\n'];
    const output = await this.connection.run(list, { sudo: true, signal: this.signal });
    const names = output
      .split('\n', maxLines)
      .flatMap((line) => (line.startsWith('installed ') ? [line.slice('installed '.length)] : []));
    return new Set(names.filter((name) => packageName.test(name)));
  }

  /** Removes packages, all or none. Throws `host_packages_failed` when others need them, which are left alone. */
  async remove(family: PackageFamily, names: readonly string[]): Promise<void> {
    const remove =
      family === 'debian' ? ['env', 'DEBIAN_FRONTEND=noninteractive', 'dpkg', '--purge'] : ['rpm', '--erase'];
    await this.packages([...remove, '--', ...names]);
  }

  /** Forgets what was read of Airdock's package lists. */
  async forgetLists(family: PackageFamily, baseUrl: string): Promise<void> {
    const host = new URL(baseUrl).host;
    if (family === 'debian')
      await this.connection.run(
        ['sh', '-c', 'rm -f "/var/lib/apt/lists/$1"_* "/var/lib/apt/lists/partial/$1"_*', 'sh', host],
        {
          sudo: true,
          signal: this.signal,
        },
      );
    else await this.packages([await this.yum(), ...dnfAlways, ...dnfOnly, 'clean', 'all']);
  }

  /** With systemd, else with an init script. Returns the service manager's complaint, undefined when there was none. */
  async service(action: 'start' | 'restart', name: string): Promise<string | undefined> {
    const { exitCode, stdout, stderr } = await this.connection.exec(['sh', '-c', serviceScript, 'sh', action, name], {
      sudo: true,
      signal: this.signal,
      stallTimeoutMs: 180_000,
    });
    return exitCode === 0 ? undefined : lastLines(stdout || stderr) || `${action} ended with ${exitCode}`;
  }

  private async yum(): Promise<string> {
    return this.connection.run(['sh', '-c', 'command -v dnf || command -v yum || echo dnf'], {
      sudo: true,
      signal: this.signal,
    });
  }

  private async packages(argv: string[]): Promise<void> {
    const { exitCode, stdout, stderr } = await runPackageManager(this.connection, argv, this.lockSeconds, this.signal);
    if (exitCode === 0) return;
    const program = argv.find((word) => /apt-get|dnf|yum|dpkg|rpm/.test(word)) ?? argv[0];
    throw commandError('host_packages_failed', {
      detail: `${program}: ${(stdout || stderr).trim().slice(-1000)}`,
      exitCode,
    });
  }
}

/** The version that the makers of the program gave it: without epoch and build. `1:1.20.11-00` is `1.20.11`. */
export const upstreamVersion = (version: string): string => version.replace(/^\d+:/, '').replace(/-[^-]*$/, '');

/**
 * Split at single characters: an expression that takes blanks on both sides of one along tries each beginning of a long
 * run of them.
 */
const columnsOf = (line: string, family: PackageFamily): string[] =>
  family === 'debian'
    ? line.split('|').map((column) => column.trim())
    : line.split(/\s/).filter((column) => column !== '');

/** dnf wants it before the name, and does without. */
const withoutEpoch = (version: string, family: PackageFamily): string =>
  family === 'debian' ? version : version.replace(/^\d+:/, '');

/** What a program complains about stands at the end of what it says. */
const lastLines = (output: string): string => output.slice(-4000).trim().split('\n').slice(-2).join(' ').slice(-500);
