import { AppError, toProblem } from '@airdock/core/errors';
import type { HeldPort, HostPorts } from '@airdock/core/host/held-port';
import { packageFamily } from '@airdock/core/host/package-list';
import { DockerHost } from '@airdock/host/runtime/docker-host';
import { type SystemFacts, systemFacts } from '@airdock/host/system/host-system';
import { firstCommandMs } from '@airdock/ssh/command/command-time';
import type { SshConnection } from '@airdock/ssh/connection/connection';
import { settingsOf } from '@airdock/ssh/tunnel/sshd-look';
import { mayBindSockets, tryPort } from '@airdock/ssh/tunnel/tunnel';
import type { HostFacts } from '../host/host.schema.js';
import type { Check } from './host-check.schema.js';
import { hostScript } from './host-script.js';

/** What one look at a host found. */
export interface Inspection {
  facts: HostFacts;
  system: SystemFacts;
  checks: Check[];
  hasDocker: boolean;
  isPortTaken: boolean;
  ports: HostPorts;
  /** Why a tunnel would not come up, as far as it was tried. */
  refusal: AppError | undefined;
  /**
   * Asked through our own tunnel the registry answers the host, or the host has nothing to ask with. Undefined where it
   * was not asked.
   */
  leads: boolean | undefined;
}

const architectures: Record<string, string> = { x86_64: 'amd64', aarch64: 'arm64' };
/** The oldest major version of each that PMK was made for, and Debian's of about the same age. */
const supportedOs: Record<string, number> = { debian: 10, ubuntu: 16, rhel: 7, centos: 7, rocky: 8, almalinux: 8 };
const gib = 1024 ** 3;
const minDiskFreeBytes = 2 * gib;
/** What PMK asks of a node. */
const pmk = { cpus: 2, memoryBytes: 12e9, rootBytes: 30e9, rootFreeBytes: 15e9 };
const pmkPorts = [443, 2379, 2380, 8285, 10250, 10255, 4194, 3306, 8158, 5672, 5673, 8023, 9080, 6264, 5395, 8558];
const timeOffset = { warningSeconds: 2, failureSeconds: 60 };

/** The whole script, which takes a second or two where nothing hangs. */
const lookMs = 90_000;
const maxLines = 5000;
const maxValueLength = 100;

type Found = [status: Check['status'], seen: string, nextStep?: string];

export interface Look {
  /** The registry's on the host. */
  port: number;
  /** The listener on the port is our own tunnel. */
  ownsPort: boolean;
  /** Let the host ask the registry through the tunnel. */
  asksRegistry: boolean;
  /** What a tunnel will need of sshd is tried: ports, unless the host holds them, and sockets. */
  tries: { ports: readonly number[]; sockets: boolean };
  seenAt: string;
}

/**
 * Looks at a host: how it is reached, what it is, what it has, and what is in the way. Changes nothing. Throws
 * `host_sudo_failed`, `host_timeout`, and what breaks the connection.
 */
export async function inspectHost(
  connection: SshConnection,
  { port, ownsPort, asksRegistry, tries, seenAt }: Look,
  signal: AbortSignal,
): Promise<Inspection> {
  const elevation = await connection.elevation(signal);
  // Through sudo there is no way to Docker's API, and the script may as well ask.
  const knowsDocker = elevation === 'root';
  // The script says the time first.
  const askedAt = Date.now();
  let answeredAt: number | undefined;
  const silence = new AbortController();
  const timer = setTimeout(
    () => silence.abort(new AppError('host_timeout', { detail: `sh did nothing for ${firstCommandMs / 1000} s` })),
    firstCommandMs,
  );
  const onOutput = () => {
    answeredAt ??= Date.now();
    clearTimeout(timer);
  };
  const options = {
    stdin: hostScript,
    sudo: true,
    deadlineMs: lookMs,
    onOutput,
    signal: AbortSignal.any([signal, silence.signal]),
  };
  const [output, dockerVersion] = await Promise.all([
    connection.run(['sh', '-s', '--', asksRegistry ? String(port) : '', knowsDocker ? 'yes' : ''], options),
    knowsDocker ? new DockerHost(connection, signal).version() : undefined,
    // A second session, as configuring will want it.
    connection.exec(['true'], { signal }),
  ]).finally(() => clearTimeout(timer));
  const values = parse(dockerVersion ? `docker=${dockerVersion}\n${output}` : output);
  const roundTripMs = (answeredAt ?? Date.now()) - askedAt;
  const offset = offsetOf(values.text('time'), askedAt + roundTripMs / 2);
  const facts = factsOf(values, seenAt);
  const listening = new Set([
    ...values.all('listens').map((hex) => Number.parseInt(hex, 16)),
    ...values.all('listensOn').map(Number),
  ]);
  const ports = portsOf(values);
  if (ports.holder && tries.sockets && !(await mayBindSockets(connection, signal)))
    Object.assign(ports, { holder: undefined, why: noSockets });
  const holdsPort = ports.held.some((held) => held.name === 'registry' && held.port === port);
  const isPortTaken = listening.has(port) && !ownsPort && !holdsPort;
  const exposed = values.all('exposed');
  const refusal = exposed[0]
    ? new AppError('tunnel_exposed', { detail: `${connection.where}: ${exposed[0]}` })
    : await tryPorts(connection, ports, tries.ports, listening);
  const programOn = new Map(
    values.all('program').map((line) => [Number(line.split(' ')[0]), line.slice(line.indexOf(' ') + 1)]),
  );
  const byWhom = (taken: number) => `${taken}${programOn.has(taken) ? ` by ${programOn.get(taken)}` : ''}`;
  const taken = pmkPorts.filter((wanted) => listening.has(wanted) && wanted !== port);
  const runtimes = [...(facts.dockerVersion ? [`docker ${facts.dockerVersion}`] : []), ...values.all('runtime')];
  const conflicts = [...new Set(values.all('conflict'))];
  const firewalls = values.all('firewall');
  const unwritable = values.all('unwritable');
  const swapBytes = values.bytes('swapKiB');

  const found: Record<string, Found> = {
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
    os: osOf(facts),
    packages: facts.packageManager
      ? ['pass', facts.packageManager]
      : ['warning', 'no package manager', 'apt-get, dnf or yum is needed where packages are to be installed.'],
    cpu: atLeast(values.count('cpus'), pmk.cpus, String, 'CPUs'),
    memory: atLeast(values.bytes('memoryKiB'), pmk.memoryBytes, inGib, 'of memory'),
    disk:
      values.bytes('diskFreeKiB') === undefined
        ? unseen('the space below /var/lib')
        : [
            facts.diskFreeBytes >= minDiskFreeBytes ? 'pass' : 'failure',
            `${inGib(facts.diskFreeBytes)} free below /var/lib`,
            `Free at least ${inGib(minDiskFreeBytes)}.`,
          ],
    'disk size': atLeast(values.bytes('rootKiB'), pmk.rootBytes, inGib, 'on /'),
    'disk space': atLeast(values.bytes('rootFreeKiB'), pmk.rootFreeBytes, inGib, 'free on /'),
    'disk writes': [
      unwritable.length === 0 ? 'pass' : 'warning',
      unwritable.join(', ') || 'are taken',
      'Nothing can be configured there: make room (`df -h`, `df -i`), or check the disk (`dmesg`) and mount it for writing.',
    ],
    systemd: values.text('systemd')
      ? ['pass', 'runs']
      : ['warning', 'does not run', 'The services of a Kubernetes node need systemd as the first process.'],
    time: timeFound(offset, roundTripMs),
    swap:
      swapBytes === undefined
        ? unseen('swap')
        : [
            swapBytes === 0 ? 'pass' : 'warning',
            swapBytes === 0 ? 'off' : inGib(swapBytes),
            'Switch swap off for Kubernetes: swapoff -a.',
          ],
    [`port ${port}`]: [
      isPortTaken ? 'failure' : 'pass',
      isPortTaken
        ? `taken: ${byWhom(port)}`
        : holdsPort
          ? 'held by the host for our tunnel'
          : ownsPort
            ? 'our tunnel'
            : 'free',
      `Find the program with \`ss -ltnp sport = :${port}\` on the host and stop it.`,
    ],
    'port holder': holderFound(ports),
    forwarding: refusal
      ? ['failure', String(refusal.details.detail), toProblem(refusal).nextStep]
      : [
          'pass',
          tries.sockets || (!ports.holder && tries.ports.length > 0)
            ? 'sshd lets the tunnel listen, on the loopback of the host'
            : 'nothing to try',
        ],
    ports:
      taken.length === 0
        ? ['pass', `those of PMK are free`]
        : [
            'warning',
            `taken: ${taken.map(byWhom).join(', ')}`,
            'PMK listens on these ports: stop the programs before the host becomes a node.',
          ],
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
    cgroup: values.text('cgroup')
      ? ['pass', `version ${values.text('cgroup')}`]
      : ['warning', 'not mounted', 'Containers need /sys/fs/cgroup, which systemd mounts.'],
  };
  const checks = Object.entries(found).map(([name, [status, seen, nextStep]]) => ({
    name,
    status,
    seen: seen.slice(0, 1000),
    nextStep: status === 'pass' ? null : (nextStep ?? null),
  }));
  return {
    facts,
    system: systemFacts(values.text),
    checks,
    hasDocker: facts.dockerVersion !== null,
    isPortTaken,
    ports,
    refusal,
    leads: asksRegistry ? ['', '200'].includes(values.text('leads')) : undefined,
  };
}

interface Values {
  text(key: string): string;
  all(key: string): string[];
  count(key: string): number | undefined;
  bytes(keyOfKiB: string): number | undefined;
}

/** A host may say anything: lines and values are bounded, and without control characters. */
function parse(output: string): Values {
  const values = new Map<string, string[]>();
  for (const line of output.split('\n', maxLines)) {
    const at = line.indexOf('=');
    const value = line
      .slice(at + 1, at + 1 + maxValueLength)
      .replaceAll(/\p{C}/gu, '')
      .trim();
    if (at <= 0 || value === '') continue;
    const key = line.slice(0, at);
    const known = values.get(key);
    if (known) known.push(value);
    else values.set(key, [value]);
  }
  const all = (key: string) => values.get(key) ?? [];
  const text = (key: string) => all(key)[0] ?? '';
  const count = (key: string) => (/^\d{1,12}$/.test(text(key)) ? Number(text(key)) : undefined);
  const bytes = (key: string) => {
    const kibibytes = count(key);
    return kibibytes === undefined ? undefined : kibibytes * 1024;
  };
  return { all, text, count, bytes };
}

function factsOf(values: Values, seenAt: string): HostFacts {
  const os = values.text('os') || 'unknown';
  return {
    os,
    osVersion: values.text('osVersion') || 'unknown',
    osFamily: packageFamily(os, values.text('osLike')) ?? null,
    packageManager: values.text('packageManager') || null,
    architecture: architectures[values.text('machine')] ?? (values.text('machine') || 'unknown'),
    cpus: values.count('cpus') ?? 0,
    memoryBytes: values.bytes('memoryKiB') ?? 0,
    diskFreeBytes: values.bytes('diskFreeKiB') ?? 0,
    dockerVersion: values.text('docker') || null,
    containerdVersion: values.text('containerd') || null,
    seenAt,
  };
}

function osOf({ os, osVersion, architecture }: HostFacts): Found {
  const seen = `${os} ${osVersion}, ${architecture}`;
  const oldest = Object.hasOwn(supportedOs, os) ? supportedOs[os] : undefined;
  const known = Object.entries(supportedOs).map(([name, version]) => `${name} ${version}`);
  if (oldest === undefined || !(Number.parseFloat(osVersion) >= oldest))
    return ['warning', seen, `Supported are these and later: ${known.join(', ')}.`];
  if (!Object.values(architectures).includes(architecture)) return ['warning', seen, 'Supported are amd64 and arm64.'];
  return ['pass', seen];
}

const noSockets = 'its sshd does not allow stream local forwarding';

/**
 * What stands in the way of a tunnel on these ports. One that is taken is another matter, as is one that the host
 * holds. Throws what breaks the connection.
 */
async function tryPorts(
  connection: SshConnection,
  { holder }: HostPorts,
  ports: readonly number[],
  listening: ReadonlySet<number>,
): Promise<AppError | undefined> {
  for (const port of holder ? [] : ports) {
    if (listening.has(port)) continue;
    try {
      await tryPort(connection, port);
    } catch (error) {
      if (error instanceof AppError && ['host_forwarding_refused', 'tunnel_exposed'].includes(error.code)) return error;
      if (!(error instanceof AppError) || !['host_port_taken', 'tunnel_failed'].includes(error.code)) throw error;
    }
  }
  return undefined;
}

function portsOf(values: Values): HostPorts {
  const held = values.all('holds').flatMap((line): HeldPort[] => {
    const [, name, port] = /^(registry|packages) (\d{1,5})$/.exec(line) ?? [];
    return name === undefined ? [] : [{ name: name as HeldPort['name'], port: Number(port) }];
  });
  const [proxyd] = /^(?:\/usr)?\/lib\/systemd\/systemd-socket-proxyd$/.exec(values.text('proxyd')) ?? [];
  const userId = values.count('userId');
  const isForbidden =
    ['no', 'local'].includes(values.text('allowstreamlocalforwarding')) || values.text('disableforwarding') === 'yes';
  const why = !values.text('systemd')
    ? 'systemd is not its first process'
    : !proxyd || userId === undefined
      ? 'it has no systemd-socket-proxyd'
      : isForbidden
        ? noSockets
        : '';
  const systemdVersion = Number.parseInt(values.text('systemdVersion'), 10) || 0;
  const holder =
    why || !proxyd || userId === undefined
      ? undefined
      : { proxyd, userId, systemdVersion, hasIpv6: values.text('ipv6') === 'yes' };
  return { holder, why, held };
}

function holderFound({ holder, why }: HostPorts): Found {
  if (holder) return ['pass', `systemd ${holder.systemdVersion}`];
  return [
    'warning',
    `${why}: while the tunnel is down any user of the host can answer in its place`,
    'Boot the host with systemd, and set AllowStreamLocalForwarding yes in its sshd_config; then configure the host again.',
  ];
}

/** Seconds that the host's clock is ahead of ours. Undefined when its `date` says nothing that can be used. */
function offsetOf(said: string, oursMs: number): number | undefined {
  const [, seconds, fraction] = /^(\d{1,12})(?:\.(\d{1,9}))?/.exec(said) ?? [];
  // busybox knows no %N: then the middle of the second is the best guess.
  return seconds === undefined ? undefined : Number(`${seconds}.${fraction ?? '5'}`) - oursMs / 1000;
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
