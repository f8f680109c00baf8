import { type AppError, toProblem } from '@airdock/core/errors';
import type { HostPorts } from '@airdock/core/host/held-port';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { settingsOf } from '@airdock/ssh/tunnel/sshd-look';
import { architectures, type HostAnswer, type HostFacts } from './host-answer.js';

/** What was found of one thing on a host, and what to do about it. */
export interface HostFinding {
  name: string;
  status: 'pass' | 'warning' | 'failure';
  seen: string;
  nextStep: string | null;
}

/** What is known of a host, for the checks. */
export interface CheckedHost {
  connection: SshConnection;
  answer: HostAnswer;
  facts: HostFacts;
  elevation: string;
  /** Of a first answer. */
  roundTripMs: number;
  /** See `offsetOf`. */
  clockOffset: number | undefined;
  /** The ports that something listens on. */
  listening: ReadonlySet<number>;
  registryPort: number;
  /** What listens on the registry port is the host's own unit, our tunnel, or something else. */
  registryPortUse: 'held' | 'tunnel' | 'taken' | 'free';
  ports: HostPorts;
  /** Why a tunnel would not come up, as far as it was tried. */
  refusal: AppError | undefined;
  /** What a tunnel needs of sshd was tried. */
  isForwardingTried: boolean;
}

/** The oldest major version of each that PMK was made for, and Debian's of about the same age. */
const supportedOs: Record<string, number> = { debian: 10, ubuntu: 16, rhel: 7, centos: 7, rocky: 8, almalinux: 8 };
const gib = 1024 ** 3;
const minDiskFreeBytes = 2 * gib;
/** What PMK asks of a node. */
const pmk = { cpus: 2, memoryBytes: 12e9, rootBytes: 30e9, rootFreeBytes: 15e9 };
const pmkPorts = [443, 2379, 2380, 8285, 10250, 10255, 4194, 3306, 8158, 5672, 5673, 8023, 9080, 6264, 5395, 8558];
const timeOffset = { warningSeconds: 2, failureSeconds: 60 };

type Found = [status: HostFinding['status'], seen: string, nextStep?: string];

/** Checks a host for what Airdock and PMK need of it. */
export async function checkHost(host: CheckedHost, signal: AbortSignal): Promise<HostFinding[]> {
  const found: Record<string, Found> = {
    ...(await accessFound(host, signal)),
    ...machineFound(host),
    ...portsFound(host),
    ...softwareFound(host),
  };
  return Object.entries(found).map(([name, [status, seen, nextStep]]) => ({
    name,
    status,
    seen: seen.slice(0, 1000),
    nextStep: status === 'pass' ? null : (nextStep ?? null),
  }));
}

async function accessFound(
  { connection, elevation, roundTripMs }: CheckedHost,
  signal: AbortSignal,
): Promise<Record<string, Found>> {
  return {
    login: connection.noise
      ? [
          'warning',
          `prints around every command: ${connection.noise}`,
          'Let it print in interactive shells only, e.g. in .bashrc after `case $- in *i*) ;; *) return ;; esac`.',
        ]
      : ['pass', 'runs commands, and prints nothing else'],
    sessions:
      connection.sessions.limit === Number.POSITIVE_INFINITY
        ? ['pass', 'several at a time']
        : [
            'warning',
            `${connection.sessions.limit} at a time: ${await settingsOf(connection, 'sessions', signal)}`,
            'Everything waits for everything else: set MaxSessions 10 in its sshd_config.',
          ],
    ssh: ['pass', `${connection.where}, ${roundTripMs} ms`],
    sudo: ['pass', elevation],
  };
}

function machineFound({ answer, facts, clockOffset, roundTripMs }: CheckedHost): Record<string, Found> {
  const unwritable = answer.all('unwritable');
  const swapBytes = answer.bytes('swapKiB');
  return {
    os: osFound(facts),
    packages: facts.packageManager
      ? ['pass', facts.packageManager]
      : ['warning', 'no package manager', 'apt-get, dnf or yum is needed where packages are to be installed.'],
    cpu: atLeast(answer.count('cpus'), pmk.cpus, String, 'CPUs'),
    memory: atLeast(answer.bytes('memoryKiB'), pmk.memoryBytes, inGib, 'of memory'),
    disk:
      answer.bytes('diskFreeKiB') === undefined
        ? unseen('the space below /var/lib')
        : [
            facts.diskFreeBytes >= minDiskFreeBytes ? 'pass' : 'failure',
            `${inGib(facts.diskFreeBytes)} free below /var/lib`,
            `Free at least ${inGib(minDiskFreeBytes)}.`,
          ],
    'disk size': atLeast(answer.bytes('rootKiB'), pmk.rootBytes, inGib, 'on /'),
    'disk space': atLeast(answer.bytes('rootFreeKiB'), pmk.rootFreeBytes, inGib, 'free on /'),
    'disk writes': [
      unwritable.length === 0 ? 'pass' : 'warning',
      unwritable.join(', ') || 'are taken',
      'Nothing can be configured there: make room (`df -h`, `df -i`), or check the disk (`dmesg`) and mount it for writing.',
    ],
    systemd: answer.text('systemd')
      ? ['pass', 'runs']
      : ['warning', 'does not run', 'The services of a Kubernetes node need systemd as the first process.'],
    time: timeFound(clockOffset, roundTripMs),
    swap:
      swapBytes === undefined
        ? unseen('swap')
        : [
            swapBytes === 0 ? 'pass' : 'warning',
            swapBytes === 0 ? 'off' : inGib(swapBytes),
            'Switch swap off for Kubernetes: swapoff -a.',
          ],
  };
}

function portsFound(host: CheckedHost): Record<string, Found> {
  const { answer, listening, registryPort, registryPortUse, ports, refusal, isForwardingTried } = host;
  const programOn = new Map(
    answer.all('program').map((line) => [Number(line.split(' ')[0]), line.slice(line.indexOf(' ') + 1)]),
  );
  const byWhom = (taken: number) => `${taken}${programOn.has(taken) ? ` by ${programOn.get(taken)}` : ''}`;
  const taken = pmkPorts.filter((wanted) => listening.has(wanted) && wanted !== registryPort);
  const uses = {
    taken: `taken: ${byWhom(registryPort)}`,
    held: 'held by the host for our tunnel',
    tunnel: 'our tunnel',
    free: 'free',
  };
  return {
    [`port ${registryPort}`]: [
      registryPortUse === 'taken' ? 'failure' : 'pass',
      uses[registryPortUse],
      `Find the program with \`ss -ltnp sport = :${registryPort}\` on the host and stop it.`,
    ],
    'port holder': holderFound(ports),
    forwarding: refusal
      ? ['failure', String(refusal.details.detail), toProblem(refusal).nextStep]
      : ['pass', isForwardingTried ? 'sshd lets the tunnel listen, on the loopback of the host' : 'nothing to try'],
    ports:
      taken.length === 0
        ? ['pass', 'those of PMK are free']
        : [
            'warning',
            `taken: ${taken.map(byWhom).join(', ')}`,
            'PMK listens on these ports: stop the programs before the host becomes a node.',
          ],
  };
}

function softwareFound({ answer, facts }: CheckedHost): Record<string, Found> {
  const runtimes = [...(facts.dockerVersion ? [`docker ${facts.dockerVersion}`] : []), ...answer.all('runtime')];
  const conflicts = [...new Set(answer.all('conflict'))];
  const firewalls = answer.all('firewall');
  return {
    docker: [
      facts.dockerVersion ? 'pass' : 'failure',
      facts.dockerVersion ?? 'no answer from docker',
      'Install Docker, or see why `docker info` fails on the host.',
    ],
    runtimes:
      runtimes.length > 0
        ? ['pass', runtimes.join(', ')]
        : ['warning', 'none', 'A Kubernetes node needs Docker or containerd.'],
    conflicts:
      conflicts.length === 0
        ? ['pass', 'none']
        : [
            'warning',
            conflicts.join(', '),
            'Remove these before the host becomes a node: PMK brings its own Kubernetes.',
          ],
    firewall:
      firewalls.length === 0
        ? ['pass', 'none']
        : [
            'warning',
            firewalls.join(', '),
            'Let SSH from the DU in, and what the nodes of a cluster say to each other; Airdock needs nothing else.',
          ],
    cgroup: answer.text('cgroup')
      ? ['pass', `version ${answer.text('cgroup')}`]
      : ['warning', 'not mounted', 'Containers need /sys/fs/cgroup, which systemd mounts.'],
  };
}

function osFound({ os, osVersion, architecture }: HostFacts): Found {
  const seen = `${os} ${osVersion}, ${architecture}`;
  const oldest = Object.hasOwn(supportedOs, os) ? supportedOs[os] : undefined;
  const known = Object.entries(supportedOs).map(([name, version]) => `${name} ${version}`);
  if (oldest === undefined || !(Number.parseFloat(osVersion) >= oldest))
    return ['warning', seen, `Supported are these and later: ${known.join(', ')}.`];
  if (!Object.values(architectures).includes(architecture)) return ['warning', seen, 'Supported are amd64 and arm64.'];
  return ['pass', seen];
}

function holderFound({ holder, why }: HostPorts): Found {
  if (holder) return ['pass', `systemd ${holder.systemdVersion}`];
  return [
    'warning',
    `${why}: while the tunnel is down any user of the host can answer in its place`,
    'Boot the host with systemd, and set AllowStreamLocalForwarding yes in its sshd_config; then configure the host again.',
  ];
}

function timeFound(offset: number | undefined, roundTripMs: number): Found {
  if (offset === undefined) return unseen('the time');
  const seconds = Math.abs(offset);
  const seen = `${seconds.toFixed(1)} s ${offset < 0 ? 'behind' : 'ahead of'} the DU`;
  // How long the way there took is known only to half of the round trip.
  const certain = seconds - roundTripMs / 2000;
  const nextStep =
    'Let chrony or systemd-timesyncd on host and DU follow one clock: certificates and logs need the same time.';
  return [
    certain > timeOffset.failureSeconds ? 'failure' : certain > timeOffset.warningSeconds ? 'warning' : 'pass',
    seen,
    nextStep,
  ];
}

const unseen = (what: string): Found => [
  'warning',
  `${what} could not be seen`,
  'The host lacks a program for it: df, awk, sed and date are needed.',
];

function atLeast(value: number | undefined, wanted: number, format: (value: number) => string, what: string): Found {
  if (value === undefined) return unseen(what);
  return [
    value >= wanted ? 'pass' : 'warning',
    `${format(value)} ${what}`,
    `A node of PMK needs at least ${format(wanted)} ${what}.`,
  ];
}

const inGib = (bytes: number): string => `${(bytes / gib).toFixed(1)} GiB`;
